"""LAVIS' tasks and search on one picture or a folder, from the command line.

    python lavis_apps/predict.py --task caption --image photo.jpg --n 3
    python lavis_apps/predict.py --task vqa --image photo.jpg --question "Where is the cat?"
    python lavis_apps/predict.py --task matching --image photos/ --text "a dog" "the sea" --json
    python lavis_apps/predict.py --task classification --image photos/ --classes dog cat bird \
        --output classes.csv
    python lavis_apps/predict.py --task features --image photos/ --output features.npz
    python lavis_apps/predict.py --task localization --image photo.jpg --text "a girl with a dog" \
        --output_dir maps/
    python lavis_apps/predict.py --task search --index photos_index/ --query "a red bus" --json
    python lavis_apps/predict.py --task caption --toy            # any task: pictures and words too

Prints a line a result, with `--json` as an object; `--output` also writes them to a file. Notes and
pictures that cannot be used are told on standard error, the rest goes on. Exit status: 0, 1 where
some pictures could not be used, 2 where nothing could be done. A stopped run keeps its lines; the
next starts anew. `predict_tasks.py` has what each task does.
"""

from __future__ import annotations

import json
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from lavis_apps.pictures import chosen_pictures
from lavis_apps.predict_settings import PredictOptions
from lavis_apps.settings import TOY_IMAGES, TOY_INDEX, TOY_MODELS
from shared.images import IMAGE_SUFFIXES
from shared.options import MissingError, UserError, guarded, parse_options
from shared.output_files import check_output, new_file

LONGEST = 500  # characters of a text on the screen; --json has the whole


def main(options: PredictOptions) -> None:
    if isinstance(sys.stdout, TextIOWrapper):
        # a file's name that is no UTF-8 becomes JSON's \\udcXX, which reads back as that name
        sys.stdout.reconfigure(errors="backslashreplace")
    pictures = pictures_of(options)
    lines_file = options.output if (options.output or "").endswith(".jsonl") else None
    check_output(lines_file, (options.classes_file, options.candidates_file), pictures)
    if options.index == str(TOY_INDEX):
        ensure_toy_index()
    if options.dry_run:
        print_plan(options, pictures)
        return

    from lavis_apps.predict_tasks import TASK_ROWS
    from shared.answering import is_out_of_memory

    errors: list[str] = []
    n = 0
    try:
        with new_file(lines_file) as output:
            for row in TASK_ROWS[options.task](options, pictures):
                n += 1
                if "error" in row:
                    errors.append(row["error"])
                if options.json:
                    print(json.dumps(row, ensure_ascii=False), flush=True)
                else:
                    stream = sys.stderr if "error" in row else sys.stdout
                    print(readable(row), file=stream, flush=True)
                if output is not None:  # as it is made: a stopped run keeps what it found
                    output.write([row])
    except KeyboardInterrupt:
        kept = f", and {lines_file} keeps them until then" if lines_file and n else ""
        print(f"stopped after {n} results; the same command starts anew{kept}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"the GPU's memory is full with {options.batch_size} pictures at once: give a smaller "
            "--batch_size"
        ) from error
    if errors and len(errors) == n:
        raise UserError(f"no picture could be used; the first: {errors[0]}")
    if errors:
        print(f"{len(errors)} of {len(pictures)} pictures could not be used", file=sys.stderr)
        sys.exit(1)


def pictures_of(options: PredictOptions) -> list[Path]:
    """The pictures to look at; of a search none: its --image is a query. Raises UserError."""
    if options.image is None:
        return []
    path = Path(options.image)
    if options.task == "search":
        if path.is_dir():
            raise UserError(f"{path}: a folder; --task search takes one picture as --image")
        return []
    pictures = chosen_pictures(path)
    if path.is_dir():
        others = sum(1 for p in path.rglob("*") if p.is_file()) - len(pictures)
        if others and path != TOY_IMAGES:
            known = ", ".join(sorted(IMAGE_SUFFIXES))
            print(f"note: {path}: {others} other file(s), not {known}, left out", file=sys.stderr)
    return pictures[: options.limit or None]


def print_plan(options: PredictOptions, pictures: list[Path]) -> None:
    """--dry_run: what would be asked of which model; no weights are loaded."""
    print(f"task:     {options.task}")
    if pictures:
        print(f"pictures: {len(pictures)}, first: {pictures[0]}")
    asked = {
        name: getattr(options, name)
        for name in ("prompt", "question", "text", "classes", "classes_file", "query", "image")
        if getattr(options, name) and (name != "image" or options.task == "search")
    }
    for name, value in asked.items():
        print(f"{name + ':':<9} {value if isinstance(value, str) else ' | '.join(value)}")
    model = options.model
    if options.task == "search":
        from lavis_apps.index import read_index

        index = read_index(Path(str(options.index)))
        print(f"index:    {options.index}, {len(index.images)} pictures")
        model = model or index.model
    from shared.datasets_index import load_index
    from shared.loading import model_folder, weight_files
    from shared.options import read_json

    try:
        folder = model_folder(str(model))
    except MissingError as error:
        published = {entry["id"]: entry["bytes"] for entry in load_index()["models"].values()}
        if str(model) in published:
            print(f"weights:  about {published[str(model)] / 1e9:.1f} GB, the memory for them too")
        print(f"model:    {error}")
        return
    kind = read_json(folder / "config.json").get("model_type")
    size = sum(file.stat().st_size for file in weight_files(folder)) / 1e6
    print(f"model:    {model} ({kind}, {size:,.1f} MB of weights)")


def readable(row: dict[str, Any]) -> str:
    """A result for the eye; the numbers that are long lists are left to --json."""
    if "error" in row:
        return f"left out: {row['error']}"
    shown = dict(row)
    head = shown.pop("image", shown.pop("output", ""))
    parts = []
    for name, value in shown.items():
        if name == "top":
            first = [shortened(one.get("answer", one.get("label"))) or "(empty)" for one in value]
            parts.append("top: " + ", ".join(
                f"{text} {one['probability']:.3f}" for text, one in zip(first, value, strict=True)
            ))  # fmt: skip
        elif name in ("words", "average", "attention") or name.endswith("_features"):
            parts.append(f"{name}: {shape(value)}")
        elif name == "label" and value is None:
            parts.append("none of these")
        elif isinstance(value, float):
            parts.append(f"{name} {value:.4f}")
        elif name in ("caption", "answer", "label"):
            parts.append(shortened(value) or "(empty)")
        elif name == "synthetic":
            parts.append("(SYNTHETIC: a toy)")
        else:
            parts.append(f"{name} {shortened(value) if name in ('text', 'question') else value}")
    return f"{head}: {'; '.join(parts)}" if head else "; ".join(parts)


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def shape(value: list[Any]) -> str:
    if value and isinstance(value[0], dict):
        return " ".join(one["word"] for one in value)
    if value and isinstance(value[0], list):
        return f"{len(value)} x {len(value[0])} numbers"
    return f"{len(value)} numbers"


def prepare_toy() -> None:
    """Draw the toy pictures (about ten seconds, once)."""
    from shared.toy_world.build import ensure_vqav2

    ensure_vqav2(TOY_IMAGES.parent)


def ensure_toy_index() -> None:
    """What `build_index.py --toy` writes, built where it is missing (in seconds)."""
    from lavis_apps.features import open_embedder
    from lavis_apps.index import MANIFEST, model_identity
    from lavis_apps.index_building import build

    if not (TOY_INDEX / MANIFEST).is_file():
        model = str(TOY_MODELS["matching"])
        identity = model_identity(model)
        build(TOY_IMAGES, TOY_INDEX, identity, lambda: open_embedder(model), synthetic=True)


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                PredictOptions, description=__doc__.split("\n")[0], prepare_toy=prepare_toy
            )
        )
    )
