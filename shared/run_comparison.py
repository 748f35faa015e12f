"""Runs side by side, as the compare.py of the experiments have it: two by the page of base and
tuned, more by that of every pair; the flags and the lines on the page that they share.

Used by llava_repro/compare.py, qwen_clip_llava_lora/compare.py, in part by the others. Reads and
writes nothing; no torch.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.comparison import compare, pair_up
from shared.comparison_many import common_questions, compare_all, questions_of
from shared.comparison_sections import FindPicture
from shared.options import this_command
from shared.report import Language
from shared.runs import Run

if TYPE_CHECKING:
    from shared.report import Report


def runs_first(argv: Sequence[str], flag: str = "--runs") -> list[str]:
    """`RUN RUN --x` is `--runs RUN RUN --x`; a leading .yaml of options stays what it is."""
    argv = list(argv)
    given = bool(argv) and not argv[0].startswith("-")
    return [flag, *argv] if given and Path(argv[0]).suffix not in (".yaml", ".yml") else argv


def page_date() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def page_settings(
    reasons: Sequence[str], find_picture: FindPicture, language: Language
) -> dict[str, Any]:
    """What every comparison's page takes: why the runs do not compare, where pictures are, its
    language, the command and the date that made it."""
    return {
        "reasons": reasons,
        "find_picture": find_picture,
        "language": language,
        "made_by": this_command(),
        "date": page_date(),
    }


def compared(
    runs: Sequence[Run],
    names: Sequence[str],
    page: str,
    *,
    texts: Mapping[str, Mapping[str, str]],
    protocols: Mapping[str, str],
    seed: int,
    settings: Mapping[str, Any],
) -> tuple[dict[str, Any], Report, str]:
    """Figures, page and summary of two runs by their headline, or of three and more.

    `page` is the path that the summary names, `texts` language -> words of the page, `protocols`
    what the page says of each scoring protocol, `settings` those of `page_settings`.
    """
    words = texts[settings["language"]]
    if len(runs) == 2:
        from shared.comparison_report import make_report, summary

        comparison = compare(*runs, protocols=protocols, seed=seed)
        report = make_report(comparison, *runs, pair_up(*runs), texts=texts, **settings)
        return comparison, report, summary(comparison, settings["reasons"], page, words)
    from shared.comparison_many_report import make_report_of_all, summary_of_all

    comparison = compare_all(runs, names=names, seed=seed)
    asked = questions_of(common_questions(runs))
    report = make_report_of_all(comparison, runs, asked, texts=texts, **settings)
    return comparison, report, summary_of_all(comparison, settings["reasons"], page, words)
