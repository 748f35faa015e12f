"""COCO captions as what is asked about pictures: one entry a picture, its captions the references.

    captions_{split}.json, or annotations/captions_{split}.json    https://cocodataset.org/#download
    dataset_coco.json                                              Karpathy's split

in a data root that has the pictures in `{split}/`, as VQAv2's. Split karpathy_test (5,000 pictures)
is the part of val2014 on which papers report; its file holds captions and pictures' names itself
(https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip). Bad rows are left out,
counted and listed, more than a bounded share of them is an error. Writes the results file's rows
that the official server and pycocoevalcap read. No torch.

    python -m pytest tests/shared/test_coco_captions.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.options import MissingError, UserError, read_json
from shared.vqav2 import Question, QuestionSet, check_usable, image_name

KARPATHY = {"karpathy_test": "test", "karpathy_val": "val"}
SPLITS = ("val2014", "train2014", *KARPATHY)
KARPATHY_FILE = "dataset_coco.json"
KARPATHY_SOURCE = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"


def load_captions(data_root: Path, split: str) -> QuestionSet:
    """One `Question` a picture (its `question` is ""), in the file's order, captions as references.

    Raises MissingError where the file is not there, UserError for an unknown split, a file in
    another layout, too many bad rows, or none that can be used.
    """
    if split not in SPLITS:
        raise UserError(f"--split {split}: COCO's captions have {', '.join(SPLITS)}")
    if data_root.is_file():
        raise UserError(f"{data_root}: a file; --data_root takes the folder with the captions file")
    if split in KARPATHY:
        return _load_karpathy(data_root, split)
    path = _captions_file(data_root, split)
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise UserError(f"{path}: no list under 'annotations'; expected COCO's captions layout")
    names, problems = _file_names(content.get("images") or [], path)
    captions: dict[int, list[str]] = {}
    for i, row in enumerate(content["annotations"]):
        problem = _caption_problem(row)
        if problem:
            problems.append(f"{path.name} annotations[{i}]: {problem}")
            continue
        captions.setdefault(row["image_id"], []).append(row["caption"])
    pictures = {
        image_id: f"{split}/{names[image_id]}" if image_id in names else image_name(split, image_id)
        for image_id in captions
    }
    questions = [_entry(data_root, pictures[key], key, texts) for key, texts in captions.items()]
    check_usable(questions, problems, len(content["annotations"]), path)
    return QuestionSet(questions, problems)


def _captions_file(data_root: Path, split: str) -> Path:
    """In the data root, or in annotations/ where COCO's archive puts it."""
    name = f"captions_{split}.json"
    for path in (data_root / name, data_root / "annotations" / name):
        if path.is_file():
            return path
    part = split.removesuffix("2014")
    raise MissingError(
        f"{data_root / 'annotations' / name} is not there.\n"
        f"  real data: python -m shared.download coco2014 --splits {part}\n"
        "  without any download: the same command with --toy"
    )


def _file_names(images: Any, path: Path) -> tuple[dict[int, str], list[str]]:
    names: dict[int, str] = {}
    problems = []
    for i, row in enumerate(images if isinstance(images, list) else []):
        if not isinstance(row, dict) or not _is_whole(row.get("id")):
            problems.append(f"{path.name} images[{i}]: no whole-numbered id")
        elif isinstance(row.get("file_name"), str):
            names[row["id"]] = row["file_name"]
    return names, problems


def _caption_problem(row: Any) -> str | None:
    if not isinstance(row, dict):
        return f"expected an object, found {type(row).__name__}"
    if not _is_whole(row.get("image_id")):
        return f"image_id is {row.get('image_id')!r}, expected a whole number"
    if not isinstance(row.get("caption"), str) or not row["caption"].strip():
        return f"image {row['image_id']}: caption is {row.get('caption')!r:.60}, expected text"
    return None


def _load_karpathy(data_root: Path, split: str) -> QuestionSet:
    path = data_root / KARPATHY_FILE
    if not path.is_file():
        raise MissingError(
            f"{path} is not there.\n"
            f"  it is in the archive {KARPATHY_SOURCE}\n"
            "  the whole split that it is part of: --split val2014"
        )
    content = read_json(path)
    rows = content.get("images") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{path}: no list under 'images'; expected Karpathy's dataset_coco.json")
    questions: dict[int, Question] = {}
    problems: list[str] = []
    for i, row in enumerate(rows):
        if isinstance(row, dict) and row.get("split") != KARPATHY[split]:
            continue
        problem = _karpathy_problem(row, questions)
        if problem:
            problems.append(f"{path.name} images[{i}]: {problem}")
            continue
        texts = [sentence["raw"] for sentence in row["sentences"]]
        picture = f"{row['filepath']}/{row['filename']}"
        questions[row["cocoid"]] = _entry(data_root, picture, row["cocoid"], texts)
    check_usable(list(questions.values()), problems, len(rows), path)
    return QuestionSet(list(questions.values()), problems)


def _karpathy_problem(row: Any, seen: Mapping[int, Any]) -> str | None:
    if not isinstance(row, dict) or not _is_whole(row.get("cocoid")):
        return "no whole-numbered cocoid"
    if row["cocoid"] in seen:
        return f"cocoid {row['cocoid']} stands twice; the first is used"
    if not all(isinstance(row.get(key), str) for key in ("filepath", "filename")):
        return f"cocoid {row['cocoid']}: filepath or filename is no text"
    sentences = row.get("sentences")
    texts = [s.get("raw") if isinstance(s, dict) else None for s in sentences or []]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        return f"cocoid {row['cocoid']}: 'sentences' is not a list of objects with a text 'raw'"
    return None


def _entry(data_root: Path, picture: str, image_id: int, captions: Sequence[str]) -> Question:
    return Question(
        sample_id=str(image_id),
        image=data_root / picture,
        image_name=picture,
        image_id=image_id,
        question="",
        references=tuple(captions),
        target=captions[0],
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def results_file(split: str, run: str, sample: int | None) -> str:
    """Name of the official results file; a sample's says its size, as no server takes it."""
    part = split if sample is None else f"{split}_sample{sample}"
    return f"captions_{part}_{run}_results.json"


def official_results(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the official server and pycocoevalcap read: one caption a picture.

    A picture without a caption (an error) has an empty one: left out, those programs would refuse
    the file or score the others alone.
    """
    return [
        {"image_id": record["image_id"], "caption": record["answer"] or ""} for record in records
    ]
