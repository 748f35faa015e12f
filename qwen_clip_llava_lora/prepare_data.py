"""Published data sets as train, validation and test files, with a validation report.

Rows are read in the published layout, checked with their pictures, split by picture content and
written as LLaVA rows that train.py and evaluate.py read. MedTrinity's pictures are written out of
its Parquet shards; other pictures stay where they are.

    python qwen_clip_llava_lora/prepare_data.py --dataset medtrinity --source data/medtrinity
    python qwen_clip_llava_lora/prepare_data.py --dataset affectnet --source data/affectnet \
        --per_class 3000
    python qwen_clip_llava_lora/prepare_data.py --dataset affectnet --toy

Reads --source. Writes into --output_dir (default: prepared/ in the source): train.json,
validation.json, test.json, dataset.json (kind, classes, where the pictures are), config.json,
validation_report.json and .html. Licences and personal data: see the README.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qwen_clip_llava_lora.settings import TOY_SETS, TOY_SHARES
from shared.options import DATA_ROOT, guarded, parse_options


@dataclass
class PrepareOptions:
    """Data"""

    dataset: Literal["medtrinity", "affectnet", "cc3m", "descriptions"] = field(
        default="cc3m", metadata={"help": "which layout the source has"}
    )
    source: str | None = field(
        default=None, metadata={"help": "the published folder; default: by its name in --data_root"}
    )
    data_root: str = field(default=str(DATA_ROOT), metadata={"help": "where sources lie"})
    output_dir: str | None = field(
        default=None, metadata={"help": "default: prepared/ in the source"}
    )
    language: Literal["en", "zh"] = field(
        default="en", metadata={"help": "of the question, and of AffectNet's classes"}
    )
    question: str | None = field(
        default=None,
        metadata={"help": "medtrinity, affectnet: asked of every picture; {classes} is replaced"},
    )
    per_class: int = field(
        default=0, metadata={"help": "affectnet: training rows of each class at most; 0 = all"}
    )
    validation_share: float = field(default=0.05, metadata={"help": "of the training pictures"})
    test_share: float = field(
        default=0.05, metadata={"help": "of the pictures, where the source has no test part"}
    )
    limit: int = field(default=0, metadata={"help": "usable rows at most, the first; 0 = all"})
    seed: int = field(default=0, metadata={"help": "of the splits and the balanced sample"})
    toy: bool = field(
        default=False, metadata={"help": "the toy sets in the same layouts: no download, seconds"}
    )
    dry_run: bool = field(default=False, metadata={"help": "count only, write nothing"})


def main() -> None:
    options = parse_options(
        PrepareOptions,
        description="a published data set as train, validation and test files, with a report",
        toy_defaults={"data_root": str(TOY_SETS), **TOY_SHARES},
        prepare_toy=prepare_toy,
    )
    from qwen_clip_llava_lora.converters import SOURCES
    from qwen_clip_llava_lora.preparing import prepare
    from qwen_clip_llava_lora.validation_report import text_summary

    source = Path(options.source or Path(options.data_root) / SOURCES[options.dataset].folder)
    output_dir = Path(options.output_dir or source / "prepared")
    report = prepare(
        options.dataset,
        source,
        output_dir,
        language=options.language,
        question=options.question,
        per_class=options.per_class,
        validation_share=options.validation_share,
        test_share=options.test_share,
        limit=options.limit,
        seed=options.seed,
        dry_run=options.dry_run,
    )
    print(text_summary(report))
    if options.dry_run:
        print("dry run: nothing was written")
    else:
        print(output_dir / "validation_report.html")
        print(f"train with --data {shlex.quote(str(output_dir))}")


def prepare_toy() -> None:
    from qwen_clip_llava_lora import toy_sets

    toy_sets.ensure_cc3m()
    toy_sets.ensure_descriptions()
    toy_sets.ensure_medtrinity()
    toy_sets.ensure_affectnet()


if __name__ == "__main__":
    guarded(main)
