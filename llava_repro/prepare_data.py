"""Published datasets as LLaVA JSON lines, with a report of what was left out and what is wrong.

Rows are read one by one, checked (structure, path, picture there) and written; then the file that
came out is looked through like any other (`python -m shared.conversations FILE --validate`).

    python llava_repro/prepare_data.py --dataset scienceqa --data_root data/scienceqa --split train
    python llava_repro/prepare_data.py --dataset cogvlm_sft \
        --data_root data/llava/cogvlm_sft_311k --language zh
    python llava_repro/prepare_data.py --dataset sa1b_dense_caption \
        --data_root data/llava/sa1b_dense_caption
    python llava_repro/prepare_data.py --toy                    (ScienceQA of the toy world)

Reads the dataset's folder. Writes {output}.jsonl and {output}.report.json, by default into that
folder, from which the rows name their pictures; for SA1B also {output}.missing_urls.txt, the
addresses of pictures that are not there yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llava_repro.source_datasets import Found, cogvlm_sft, sa1b_dense_caption, scienceqa
from shared.conversation_check import SHOWN_PROBLEMS, check_conversations, print_report
from shared.conversation_files import normalise_row, open_conversations, row_images
from shared.options import (
    DATA_ROOT,
    UserError,
    guarded,
    parse_options,
    portable_path,
    write_json,
)


@dataclass
class PrepareOptions:
    """Dataset"""

    dataset: Literal["scienceqa", "cogvlm_sft", "sa1b_dense_caption"] = field(
        default="scienceqa", metadata={"help": "which layout --data_root has"}
    )
    data_root: str = field(
        default=str(DATA_ROOT / "scienceqa"), metadata={"help": "folder as published, unpacked"}
    )
    split: str = field(
        default="train", metadata={"help": "scienceqa: train, val, test, trainval, ..."}
    )
    prompt_format: Literal["QCM-LEA", "QCM-A"] = field(
        default="QCM-LEA", metadata={"help": "scienceqa: reasoning and answer, or the answer alone"}
    )
    language: Literal["zh", "en"] = field(
        default="zh", metadata={"help": "cogvlm_sft: which labels; both: language of questions"}
    )
    limit: int = field(default=0, metadata={"help": "rows written at most, the first; 0 = all"})
    output: str | None = field(
        default=None, metadata={"help": "the .jsonl file; default: in --data_root, named by choice"}
    )
    toy: bool = field(
        default=False, metadata={"help": "the toy world's ScienceQA: no download, seconds"}
    )


def found_rows(options: PrepareOptions) -> Iterator[Found]:
    """The chosen dataset's rows. See source_datasets.py."""
    root = Path(options.data_root)
    if options.dataset == "scienceqa":
        return scienceqa(root, options.split, options.prompt_format)
    if options.dataset == "cogvlm_sft":
        return cogvlm_sft(root, options.language)
    return sa1b_dense_caption(root, options.language)


def output_file(options: PrepareOptions) -> Path:
    """Where the rows go; the name says what was chosen."""
    if options.output:
        return Path(options.output)
    name = (
        f"llava_{options.split}_{options.prompt_format}"
        if options.dataset == "scienceqa"
        else f"llava_{options.dataset}_{options.language}"
    )
    limit = f"_{options.limit}" if options.limit else ""
    return Path(options.data_root) / f"{name}{limit}.jsonl"


def write_rows(found: Iterator[Found], root: Path, output: Path, limit: int) -> dict[str, Any]:
    """Write the usable rows, whole or not at all; returns what was read, written and left out."""
    n_read = n_written = n_left_out = 0
    problems: list[str] = []
    missing_urls: list[str] = []
    temporary = output.with_name(output.name + ".tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            for place, row, problem in found:
                n_read += 1
                if row is not None:
                    problem = row_problem(row, root)
                    if problem and "url" in row:
                        missing_urls.append(row["url"])
                if row is None or problem:
                    n_left_out += 1
                    if len(problems) < SHOWN_PROBLEMS:
                        problems.append(f"{place}: {problem}")
                    continue
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                n_written += 1
                if limit and n_written == limit:
                    break
        if n_written:
            temporary.replace(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    if missing_urls:
        urls = output.with_suffix(".missing_urls.txt")
        urls.write_text("".join(f"{url}\n" for url in missing_urls), encoding="utf-8")
        print(
            f"{len(missing_urls)} pictures are not there; fetch them and run this again:\n"
            f"  wget -nc -P {root / 'images'} -i {urls}"
        )
    if not n_written:
        first = f": {problems[0]}" if problems else ""
        raise UserError(f"none of {n_read} rows can be used, nothing was written{first}")
    return {
        "rows_read": n_read,
        "rows_written": n_written,
        "rows_left_out": n_left_out,
        "missing_urls": len(missing_urls),
        "problems": problems,
    }


def row_problem(row: dict[str, Any], root: Path) -> str:
    """What keeps a row from being used, "" if nothing does: its structure, a path, no picture."""
    try:
        missing = [path for path in row_images(normalise_row(row), root) if not path.is_file()]
    except UserError as error:
        return str(error)
    return f"image: {missing[0]}: no such picture" if missing else ""


def main() -> None:
    options = parse_options(
        PrepareOptions,
        description="a published dataset as LLaVA JSON lines, with a validation report",
        toy_defaults={"data_root": str(DATA_ROOT / "toy" / "scienceqa")},
        prepare_toy=prepare_toy,
    )
    root, output = Path(options.data_root), output_file(options)
    source = write_rows(found_rows(options), root, output, options.limit)
    check = check_conversations(open_conversations(output, root), progress=True)
    write_json(
        output.with_suffix(".report.json"),
        {
            "dataset": options.dataset,
            "data_root": portable_path(options.data_root),
            "source": source,
            "output": check | {"file": portable_path(output)},
        },
    )
    print(
        f"{options.dataset}: {source['rows_read']} rows read, {source['rows_written']} written, "
        f"{source['rows_left_out']} left out"
    )
    for problem in source["problems"]:
        print(f"  - {problem}")
    print_report(check)
    print(f"pictures are named from {root}: train with --data {output} --image_root {root}")


def prepare_toy() -> None:
    from shared.toy_world.benchmarks import ensure_scienceqa

    ensure_scienceqa()


if __name__ == "__main__":
    guarded(main)
