"""From a published data set to train, validation and test files: checking, splitting, writing.

Every picture is looked up, its header read and its content hashed. Splits are made by picture, not
by row: rows that share a picture (by content, whatever its name) stay together, and a training row
whose picture is in the official test part is left out. Exact duplicates are kept once. Used by
`prepare_data.py` and `toy_sets.py`; no torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from qwen_clip_llava_lora.converters import EMOTIONS, SOURCES, Found, Language
from qwen_clip_llava_lora.validation_report import Kept, build_report, write_html
from shared.conversation_files import normalise_row, row_images
from shared.images import ImageError, header_size
from shared.inline_pictures import InlinePicture
from shared.options import (
    REPO_ROOT,
    UserError,
    manifest_value,
    portable_path,
    start_run,
    write_json,
)

SPLITS = ("train", "validation", "test")
WRITTEN = (*(f"{split}.json" for split in SPLITS), "dataset.json", "validation_report.json")
SHOWN = 20  # problems and missing pictures listed
BLOCK = 1 << 20


@dataclass
class Counts:
    """What happened to the rows that were read."""

    read: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    problems: int = 0
    first_problems: list[str] = field(default_factory=list)
    missing: int = 0
    first_missing: list[str] = field(default_factory=list)
    duplicates: int = 0
    leaks: int = 0

    def problem(self, text: str) -> None:
        self.problems += 1
        self.first_problems += [_portable(text)][: SHOWN - len(self.first_problems)]

    def miss(self, text: str) -> None:
        self.missing += 1
        self.first_missing += [_portable(text)][: SHOWN - len(self.first_missing)]


def _portable(text: str) -> str:
    """Without the path of the repository, so that a report does not name a machine."""
    return text.replace(f"{REPO_ROOT}/", "")


def prepare(
    dataset: str,
    source: Path,
    output_dir: Path,
    *,
    language: Language = "en",
    question: str | None = None,
    per_class: int = 0,
    validation_share: float = 0.05,
    test_share: float = 0.05,
    limit: int = 0,
    seed: int = 0,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Read `source`, write the splits and their report into `output_dir`; returns the report.

    With `dry_run` nothing is written and pictures are only looked up, not hashed. The same call
    again writes the same files. Raises UserError when the folder holds another preparation or files
    of somebody else's, when nothing can be used, and for shares that leave nothing to train on.
    """
    if not (validation_share >= 0 and test_share >= 0 and validation_share + test_share < 1):
        raise UserError("--validation_share and --test_share: from 0, together below 1")
    config = {
        "dataset": dataset, "source": portable_path(source), "language": language,
        "question": question, "per_class": per_class, "validation_share": validation_share,
        "test_share": test_share, "limit": limit, "seed": seed,
    }  # fmt: skip
    about = SOURCES[dataset]
    if per_class and about.kind != "label":
        raise UserError(f"--per_class: {dataset} has no classes")
    if question and not about.asks:
        raise UserError(f"--question: the rows of {dataset} have questions of their own")
    found = about.read(source, language, question)
    first = next(found, None)  # a wrong folder is refused before anything is written
    if not dry_run:
        _claim(output_dir, config)
    counts = Counts()
    found = chain([] if first is None else [first], found)
    kept = _checked(found, source, output_dir, counts, limit, dry_run, about.test_part is not None)
    if not kept:
        why = [*counts.first_problems, *counts.first_missing, "every row is left out"][0]
        raise UserError(f"{source}: none of {counts.read} rows can be used: {why}")
    kept = _without_duplicates(kept, counts)
    splits = _split(kept, validation_share, test_share, seed, counts)
    if per_class:
        splits["train"] = _balanced(splits["train"], per_class, seed, counts)
    if not splits["train"]:
        raise UserError(f"{source}: no row is left to train on; lower the shares")
    synthetic = bool(manifest_value(source, "synthetic"))
    report = build_report(splits, vars(counts), config, synthetic, hashed=not dry_run)
    if not dry_run:
        inside = any(k.picture_inside for k in kept)
        classes = EMOTIONS[language] if about.kind == "label" else ()
        described = {
            "name": dataset,
            "kind": about.kind,
            "classes": list(classes),
            "source": config["source"],
            "synthetic": synthetic,
            "format_notes": about.notes,
            "image_root": "." if inside else os.path.relpath(source, output_dir),
            "counts": {split: len(rows) for split, rows in splits.items()},
        }
        _write(output_dir, splits, described, report)
    return report


def _claim(output_dir: Path, config: dict[str, Any]) -> None:
    """Refuse a folder with files that this program has not written, or another preparation."""
    foreign = [name for name in WRITTEN if (output_dir / name).exists()]
    if foreign and not (output_dir / "config.json").exists():
        raise UserError(
            f"{output_dir} holds {', '.join(foreign)} from elsewhere; give another --output_dir"
        )
    start_run(output_dir, config)


def _checked(
    found: Iterable[Found],
    source: Path,
    output_dir: Path,
    counts: Counts,
    limit: int,
    dry_run: bool,
    test_part: bool,
) -> list[Kept]:
    """The rows whose pictures are there and can be read; of each part `limit` at most."""
    from tqdm import tqdm

    kept: list[Kept] = []
    taken: Counter[str] = Counter()
    for one in tqdm(found, desc="rows", unit="row", disable=None, mininterval=1):
        if limit and taken[one.split] >= limit:
            if test_part:
                continue  # it comes behind
            break
        counts.read += 1
        if one.left_out:
            counts.left_out[one.left_out] += 1
            continue
        try:
            if one.row is None:
                raise UserError(one.problem)
            row = normalise_row(one.row)
            if one.picture is not None:
                digests = [hashlib.sha256(one.picture).hexdigest()]
                _check_bytes(one.picture)
                if not dry_run:
                    _write_picture(output_dir / row["image"], one.picture)
            else:
                pictures = row_images(row, source)
                gone = [p for p in pictures if not isinstance(p, InlinePicture) and not p.is_file()]
                if gone:
                    counts.miss(f"{one.place}: {gone[0]}")
                    continue
                digests = [picture_digest(p, dry_run) for p in pictures]
        except UserError as error:
            named = str(error).startswith(one.place)
            counts.problem(str(error) if named else f"{one.place}: {error}")
            continue
        key = tuple(digests) or (hashlib.sha256(json.dumps(row).encode()).hexdigest(),)
        kept.append(Kept(row, one.place, one.split, key, one.picture is not None))
        taken[one.split] += 1
    return kept


def picture_digest(picture: Path | InlinePicture, by_name: bool = False) -> str:
    """SHA-256 of a picture file's content, its header checked; `by_name` of its name alone."""
    if by_name or isinstance(picture, InlinePicture):
        return hashlib.sha256(str(picture).encode()).hexdigest()
    header_size(picture)
    digest = hashlib.sha256()
    with picture.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _check_bytes(content: bytes) -> None:
    try:
        header_size(io.BytesIO(content))  # type: ignore[arg-type]
    except ImageError as error:
        raise UserError("image: a picture inside that Pillow can't read") from error


def _write_picture(path: Path, content: bytes) -> None:
    """Once: a picture that is there in full is left as it is."""
    try:
        if path.is_file() and path.stat().st_size == len(content):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def _without_duplicates(kept: Sequence[Kept], counts: Counts) -> list[Kept]:
    """The first of rows with the same pictures and words; a test row goes before all others."""
    seen: dict[tuple[Any, ...], str] = {}
    unique = []
    for one in sorted(kept, key=lambda k: k.split != "test"):  # stable: else in order
        words = tuple((turn["from"], turn["value"]) for turn in one.row["conversations"])
        key = (one.digests, words)
        if key not in seen:
            seen[key] = one.split
            unique.append(one)
        elif seen[key] == one.split:
            counts.duplicates += 1
        else:
            counts.leaks += 1
    return unique


def _split(
    kept: Sequence[Kept], validation_share: float, test_share: float, seed: int, counts: Counts
) -> dict[str, list[Kept]]:
    """Rows by split. Groups of rows that share pictures are drawn in an order that depends on their
    content and the seed alone, class by class; an official test part takes the place of a share."""
    groups = _groups(kept)
    splits: dict[str, list[Kept]] = {split: [] for split in SPLITS}
    official = any(one.split == "test" for one in kept)
    free: dict[str, list[tuple[str, list[Kept]]]] = defaultdict(list)
    for group in groups:
        if any(one.split == "test" for one in group):
            test = [one for one in group if one.split == "test"]
            splits["test"] += test
            counts.leaks += len(group) - len(test)
            continue
        key = min(digest for one in group for digest in one.digests)
        order = hashlib.sha256(f"{seed}/{key}".encode()).hexdigest()
        free[str(group[0].row.get("label", ""))].append((order, group))
    for label in sorted(free):
        drawn = [group for _, group in sorted(free[label], key=lambda pair: pair[0])]
        n_test = 0 if official else round(test_share * len(drawn))
        n_validation = round(validation_share * len(drawn))
        for i, group in enumerate(drawn):
            name = "test" if i < n_test else "validation" if i < n_test + n_validation else "train"
            splits[name] += group
    order = {id(one): i for i, one in enumerate(kept)}
    return {name: sorted(rows, key=lambda one: order[id(one)]) for name, rows in splits.items()}


def _groups(kept: Sequence[Kept]) -> Iterator[list[Kept]]:
    """Rows that share a picture, directly or through others (union-find over pictures)."""
    parent: dict[str, str] = {}

    def find(digest: str) -> str:
        parent.setdefault(digest, digest)
        while parent[digest] != digest:
            parent[digest] = parent[parent[digest]]
            digest = parent[digest]
        return digest

    for one in kept:
        first = find(one.digests[0])
        for digest in one.digests[1:]:
            parent[find(digest)] = first
    groups: dict[str, list[Kept]] = defaultdict(list)
    for one in kept:
        groups[find(one.digests[0])].append(one)
    yield from groups.values()


def _balanced(rows: Sequence[Kept], per_class: int, seed: int, counts: Counts) -> list[Kept]:
    """At most `per_class` rows of each class, drawn by seed, in the order they had."""
    by_class: dict[str, list[int]] = defaultdict(list)
    for i, one in enumerate(rows):
        by_class[one.row["label"]].append(i)
    chosen: set[int] = set()
    for label, places in sorted(by_class.items()):
        rng = random.Random(f"{seed}/{label}")
        chosen |= set(rng.sample(places, min(per_class, len(places))))
    counts.left_out[f"more than {per_class} of a class"] += len(rows) - len(chosen)
    return [one for i, one in enumerate(rows) if i in chosen]


def _write(
    folder: Path, splits: dict[str, list[Kept]], described: dict[str, Any], report: dict[str, Any]
) -> None:
    """train.json and dataset.json appear last, so that no half of a set can be trained on."""
    for name in ("train.json", "dataset.json"):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / "validation_report.json", report)
    write_html(folder / "validation_report.html", report)
    for split in reversed(SPLITS):
        path = folder / f"{split}.json"
        if not splits[split]:
            path.unlink(missing_ok=True)
            continue
        lines = ",\n".join(json.dumps(one.row, ensure_ascii=False) for one in splits[split])
        temporary = path.with_name(path.name + ".tmp")
        try:
            temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    write_json(folder / "dataset.json", described)
