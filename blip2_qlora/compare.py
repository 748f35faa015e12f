"""Two runs side by side: what changed, how sure that is, and on which pictures.

Pairs the questions of two runs of `evaluate.py`, tests the difference, and writes a page that needs
nothing but itself. Runs that are not comparable (other questions, prompt, decoding, protocol or
dtype) are refused, or shown under a red banner with `--force`. Two files of `predict.py` give a
gallery. `--verify` scores a run's records again and compares.

    python blip2_qlora/compare.py --toy                         # the two runs of make quickstart
    python blip2_qlora/compare.py --base_run RUN --tuned_run RUN   # two folders of evaluate.py
    python blip2_qlora/compare.py --base_run a.jsonl --tuned_run b.jsonl --images_root photos/
    python blip2_qlora/compare.py --verify outputs/blip2_qlora/RUN

Reads config.json, environment.json, predictions.jsonl, scored.jsonl, metrics.json of both runs and
the pictures of the gallery. Writes report.html and comparison.json. `--verify` exits with 1 when
something differs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from blip2_qlora.scoring import score_run
from blip2_qlora.settings import RUNS, prepare_toy
from blip2_qlora.verifying import verify_all
from shared.caption_runs import are_caption_runs, score_again
from shared.comparison import compare, pair_up, picture_file, reasons_against
from shared.options import (
    UserError,
    check_output_folder,
    guarded,
    parse_options,
    portable_path,
    write_json,
)
from shared.run_comparison import page_settings
from shared.runs import Run, read_run
from shared.vqa_score import PUBLISHED_UNDER

if TYPE_CHECKING:
    from shared.report import Report

BASELINE_PICTURES = Path(__file__).with_name("baseline_images")  # predict.py's default
MOST_DIFFERENCES = 20  # printed by --verify
TOY_DEFAULTS = {
    "base_run": str(RUNS / "quickstart_zero-shot"),
    "tuned_run": str(RUNS / "quickstart_tuned"),
    "output_dir": str(RUNS / "quickstart_report"),
}


@dataclass
class CompareOptions:
    """What is compared, and the page"""

    base_run: str | None = field(
        default=None, metadata={"help": "run folder of evaluate.py, or a file of predict.py"}
    )
    tuned_run: str | None = field(default=None, metadata={"help": "the same, of the other model"})
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "where the report goes (default: outputs/blip2_qlora/compare_BASE_TUNED)"
        },
    )
    language: Literal["en", "zh"] = field(
        default="en", metadata={"help": "of the page and the summary"}
    )
    seed: int = field(default=0, metadata={"help": "of the gallery's sample and the resampling"})
    force: bool = field(
        default=False, metadata={"help": "compare what is not comparable, under a red banner"}
    )
    images_root: str | None = field(
        default=None,
        metadata={
            "help": "folder of the pictures that predict.py's files name (default: as named, then "
            "beside the file, then the ten baseline pictures)"
        },
    )
    verify: str | None = field(
        default=None, metadata={"help": "score this run's records again instead, and compare"}
    )
    toy: bool = field(
        default=False,
        metadata={"help": "the embedded synthetic world: compares the runs of make quickstart"},
    )


def main(options: CompareOptions) -> None:
    if options.verify:
        print_verification(Path(options.verify))
        return

    # Read
    base, tuned = read_both(options)
    folder = Path(options.output_dir or RUNS / f"compare_{base.name}_{tuned.name}")
    captions = are_caption_runs([base, tuned])
    reasons = reasons_against(base, tuned, score_again if captions else score_run)
    if reasons and not options.force:
        listed = "\n  ".join(reasons)
        raise UserError(
            f"{base.name} and {tuned.name} should not be compared:\n  {listed}\n"
            "Run evaluate.py again with the same options for both, or give --force: the report "
            "then compares the common questions under a red banner."
        )

    check_output_folder(folder)

    # Compare and report
    from shared.report import write_report

    make = of_captions if captions else of_answers
    settings = page_settings(
        reasons,
        lambda record: find_picture(record, base, options.images_root),
        options.language,
    )
    page = portable_path(folder / "report.html")
    comparison, report, said = make(base, tuned, page, options.seed, settings)
    write_json(folder / "comparison.json", comparison | {"not_comparable": reasons})
    write_report(folder / "report.html", report)
    print(said)


def of_answers(
    base: Run, tuned: Run, page: str, seed: int, settings: dict[str, Any]
) -> tuple[dict[str, Any], Report, str]:
    """Figures, page and summary of two runs that answered questions."""
    from blip2_qlora.compare_texts import TEXTS
    from shared.comparison_report import make_report, summary

    comparison = compare(base, tuned, protocols=PUBLISHED_UNDER, seed=seed)
    report = make_report(comparison, base, tuned, pair_up(base, tuned), texts=TEXTS, **settings)
    words = TEXTS[settings["language"]]
    return comparison, report, summary(comparison, settings["reasons"], page, words)


def of_captions(
    base: Run, tuned: Run, page: str, seed: int, settings: dict[str, Any]
) -> tuple[dict[str, Any], Report, str]:
    """The same of two runs of --task caption."""
    from blip2_qlora.compare_texts import TEXTS
    from shared.caption_report import captions_compared

    names = [TEXTS[settings["language"]][side] for side in ("base", "tuned")]
    return captions_compared([base, tuned], names, page, seed=seed, model="BLIP-2", **settings)


def read_both(options: CompareOptions) -> tuple[Run, Run]:
    """Two run folders, or two files of predict.py. Raises UserError for anything else."""
    from blip2_qlora.predictions import read_predictions

    if not options.base_run or not options.tuned_run:
        finished = sorted(portable_path(p.parent) for p in RUNS.glob("*/scored.jsonl"))
        there = "\n  ".join(finished) or "none yet: python blip2_qlora/evaluate.py --toy makes one"
        raise UserError(f"give two: --base_run and --tuned_run. Finished runs here:\n  {there}")
    paths = [Path(options.base_run), Path(options.tuned_run)]
    for path in paths:
        if not path.exists():
            made_by = "make quickstart" if options.toy else "evaluate.py, or predict.py --output"
            raise UserError(f"{path}: no such run; {made_by} writes it")
    if all(path.is_dir() for path in paths):
        return read_run(paths[0]), read_run(paths[1])
    if any(path.is_dir() for path in paths):
        raise UserError("give two run folders or two files of predict.py, not one of each")
    return read_predictions(paths[0]), read_predictions(paths[1])


def find_picture(record: Mapping[str, Any], run: Run, images_root: str | None) -> Path:
    """The picture file of a record, whether or not it is there.

    A run's pictures lie under its data root, or beside its own rows; those of a predict.py file
    under --images_root, as named, beside the file, or among the baseline pictures.
    """
    name = record["image"]
    if images_root:
        return Path(images_root) / name
    if run.config:
        return picture_file(run, record)
    tried = [Path(name), run.folder.parent / name, BASELINE_PICTURES / name]
    return next((path for path in tried if path.is_file()), tried[0])


def print_verification(folder: Path) -> None:
    """Prints whether the stored scores are those of the records; exit status 1 when not."""
    run = read_run(folder)
    differing, unknown = verify_all(run)
    if not differing:
        print(f"{folder}: {len(run.records)} questions scored again, all as stored")
    if unknown:
        print(f"not checked, as nothing here tells them again: {', '.join(unknown)}")
    if not differing:
        return
    print(f"{folder}: {len(differing)} things are not as its records give:")
    for line in differing[:MOST_DIFFERENCES]:
        print(f"  {line}")
    if len(differing) > MOST_DIFFERENCES:
        print(f"  ... and {len(differing) - MOST_DIFFERENCES} more")
    sys.exit(1)


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                CompareOptions,
                description=__doc__.split("\n")[0],
                toy_defaults=TOY_DEFAULTS,
                prepare_toy=prepare_toy,
            )
        )
    )
