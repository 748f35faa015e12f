"""The samples of an open-set experiment: a saved split, and the user's own unknown pictures.

A split is a folder that `make_known_from_coco.py` wrote; its `split.json` names every sample. Own
pictures lie in `private_images/`, with a `private_labels.csv` beside (or in) it:

    filename,label
    dorm_01.jpg,dorm room

and join the split as unknown samples. No torch here.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from llava_openset.matching import AMBIGUOUS, match_answer
from shared.images import IMAGE_SUFFIXES, ImageError, header_size
from shared.options import MissingError, UserError, read_json

SPLIT_FILE = "split.json"
VERSION = 1
LABELS_FILE = "private_labels.csv"
PRIVATE = "private"  # sample ids and files of own pictures begin with it
SHOWN_PROBLEMS = 10
NO_PICTURES = frozenset({".csv", ".txt", ".md", ".json", ".xlsx", ".db", ".ini"})

Part = Literal["validation", "test"]


@dataclass(frozen=True)
class Sample:
    """One picture to be classified. `file` is what records keep, `path` where it lies."""

    sample_id: str
    path: Path
    file: str
    label: str  # a known class, an unknown class, or the label of an own picture
    known: bool
    part: Part
    image_id: int | None = None  # COCO's; None for own pictures
    box: tuple[float, float, float, float] | None = None  # of a crop in its picture
    present: tuple[str, ...] = ()  # annotated classes that it shows; () for own pictures


@dataclass(frozen=True)
class Classes:
    """Names by role. The place of a known class is its index in predictions; unknown is -1."""

    known: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """A split's samples with its rules and what is to be said of figures on it."""

    folder: Path
    synthetic: bool
    seed: int
    rules: dict[str, Any]
    classes: Classes
    samples: tuple[Sample, ...]
    left_out: dict[str, int]
    caveats: tuple[str, ...]
    data_hash: str

    def part(self, name: Part) -> list[Sample]:
        return [sample for sample in self.samples if sample.part == name]

    def examples(self, known: bool, n: int) -> list[Sample]:
        """Up to `n` known or unknown test samples of as many classes as there are, in turn."""
        rank: Counter[str] = Counter()
        ranked = []
        for sample in self.part("test"):
            if sample.known == known:
                ranked.append((rank[sample.label], sample))
                rank[sample.label] += 1
        return [sample for _, sample in sorted(ranked, key=lambda pair: pair[0])[:n]]

    def class_index(self, sample: Sample) -> int:
        """The place of its class among the known ones, -1 for an unknown sample."""
        return self.classes.known.index(sample.label) if sample.known else -1


def read_split(
    folder: Path,
    private_images: Path | None = None,
    private_labels: Path | None = None,
    private_validation_share: float = 0.0,
) -> Split:
    """A split folder, with own unknown pictures where they are given.

    Own pictures come into the test part; of `private_validation_share` > 0 so many, by the split's
    seed, into the validation part. Raises MissingError when there is no split, UserError naming
    file and entry for whatever is wrong with it or with the own pictures.
    """
    file = folder / SPLIT_FILE
    if not file.is_file():
        raise MissingError(
            f"{file}: no such file. Make a split:\n"
            "  python llava_openset/make_known_from_coco.py --output_dir FOLDER   (--toy: drawn)"
        )
    split = _split_of(folder, file, read_json(file))
    if private_images is None:
        if private_labels is not None:
            raise UserError(f"{private_labels}: labels of which pictures? give their folder too")
        return split
    own = read_private(
        private_images,
        private_labels,
        known=split.classes.known,
        validation_share=private_validation_share,
        seed=split.seed,
    )
    digest = hashlib.sha256(split.data_hash.encode())
    for sample in own:
        digest.update(f"{sample.sample_id} {sample.label} {sample.part} ".encode())
        digest.update(hashlib.sha256(sample.path.read_bytes()).digest())
    return replace(split, samples=(*split.samples, *own), data_hash=digest.hexdigest()[:16])


def _split_of(folder: Path, file: Path, content: Any) -> Split:
    if not isinstance(content, dict) or not isinstance(content.get("samples"), list):
        raise UserError(f"{file}: no split: expected an object with a list under 'samples'")
    if content.get("version") != VERSION:
        raise UserError(
            f"{file}: version {content.get('version')!r}, this program reads {VERSION}; make the "
            "split again"
        )
    try:
        classes = Classes(tuple(content["classes"]["known"]), tuple(content["classes"]["unknown"]))
        split = Split(
            folder=folder,
            synthetic=bool(content["synthetic"]),
            seed=content["seed"],
            rules=dict(content["rules"]),
            classes=classes,
            samples=(),
            left_out=dict(content["left_out"]),
            caveats=tuple(content["caveats"]),
            data_hash=str(content["data_hash"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not a whole split ({error!r}); make it again") from error
    if not classes.known:
        raise UserError(f"{file}: no known class")
    samples: list[Sample] = []
    for place, row in enumerate(content["samples"]):
        try:
            samples.append(_sample_of(folder, row, classes))
        except (KeyError, TypeError, ValueError) as error:
            what = f"no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{file}: samples[{place}]: {what}") from error
    twice = [key for key, n in Counter((s.sample_id) for s in samples).items() if n > 1]
    if twice:
        raise UserError(f"{file}: sample_id {twice[0]} stands twice")
    if not samples:
        raise UserError(f"{file}: no sample in it; make the split again")
    return replace(split, samples=tuple(samples))


def _sample_of(folder: Path, row: dict[str, Any], classes: Classes) -> Sample:
    """Raises KeyError, TypeError or ValueError with what is wrong."""
    sample = Sample(
        sample_id=row["sample_id"],
        path=folder / row["file"],
        file=row["file"],
        label=row["label"],
        known=row["known"],
        part=row["part"],
        image_id=row["image_id"],
        box=None if row["box"] is None else tuple(row["box"]),
        present=tuple(row["present"]),
    )
    if sample.part not in ("validation", "test"):
        raise ValueError(f"part is {sample.part!r}, expected 'validation' or 'test'")
    if not isinstance(sample.known, bool):
        raise ValueError(f"known is {sample.known!r}, expected true or false")
    if sample.known != (sample.label in classes.known):
        role = "known" if sample.known else "unknown"
        raise ValueError(f"label {sample.label!r} of a sample that is said to be {role}")
    if not sample.path.is_file():
        raise ValueError(f"{sample.path}: no such picture; make the split again")
    return sample


def read_private(
    folder: Path,
    labels: Path | None = None,
    *,
    known: Sequence[str] = (),
    validation_share: float = 0.0,
    seed: int = 0,
) -> list[Sample]:
    """Own unknown pictures, in the order of their CSV.

    Raises UserError with a line for each thing that is wrong: a row without its file or a file
    without its row, a name twice, a path out of the folder, what is no picture, a label that names
    a known class, in its own or in other words. None is left out silently, for each would move the
    figures.
    """
    if not 0 <= validation_share < 1:
        raise UserError(f"share of own pictures for validation {validation_share}: 0 to below 1")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of own pictures")
    folder = folder.resolve()  # "." has no name, and records begin with the folder's
    try:
        match_answer("", known or ("any",))
    except ValueError as error:
        raise UserError(f"known classes that cannot be told apart: {error}") from error
    file = labels or _labels_file(folder)
    rows = _label_rows(file)
    problems: list[str] = []
    found: dict[str, tuple[Path, str]] = {}
    for number, name, label in rows:
        problem = _private_problem(folder, name, label, found, known)
        if problem:
            problems.append(f"{file} line {number}: {problem}")
        else:
            found[_key(name)] = (folder / PurePosixPath(name), label)
    named = {_key(name) for _, name, _ in rows}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.suffix.lower() not in NO_PICTURES and _key(name) not in named:
            problems.append(f"{path}: no row in {file.name}; add one, or move the file away")
    if not rows:
        problems.append(f"{file}: no row below its first line")
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        tail = [f"and {more} more"] if more > 0 else []
        raise UserError("own pictures:\n  " + "\n  ".join([*problems[:SHOWN_PROBLEMS], *tail]))
    names = list(found)
    early = _seeded_share(names, validation_share, seed)
    return [
        Sample(
            sample_id=f"{PRIVATE}/{name}",
            path=path,
            file=f"{folder.name}/{name}",
            label=label,
            known=False,
            part="validation" if name in early else "test",
        )
        for name, (path, label) in found.items()
    ]


def _seeded_share(names: Sequence[str], share: float, seed: int) -> set[str]:
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    return set(order[: round(share * len(names))])


def _key(name: str) -> str:
    """A name as one compares it: ./a.jpg is a.jpg."""
    return PurePosixPath(name).as_posix()


def _labels_file(folder: Path) -> Path:
    """`private_labels.csv` beside the folder, as the course has it, or in it."""
    places = (folder.resolve().parent / LABELS_FILE, folder / LABELS_FILE)
    for place in places:
        if place.is_file():
            return place
    raise UserError(
        f"{folder}: no {LABELS_FILE} beside it or in it. Write one with the first line "
        "filename,label and a line for each picture"
    )


def _private_problem(
    folder: Path,
    name: str,
    label: str,
    found: dict[str, tuple[Path, str]],
    known: Sequence[str],
) -> str:
    if not name or not label:
        return f"no {'label' if name else 'filename'}"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive or "\\" in name:
        return f"{name!r}: give a name inside {folder.name}/, with forward slashes"
    if _key(name) in found:
        return f"{name} stands twice"
    if label.casefold() in {known_name.casefold() for known_name in known}:
        return f"{name}: the label {label!r} is a known class; own pictures here are unknown ones"
    named = match_answer(label, known) if known else ""
    if named in known or named == AMBIGUOUS:
        of = f"the known class {named!r}" if named in known else "more than one known class"
        return f"{name}: the label {label!r} names {of}; own pictures here are unknown ones"
    if not (folder / path).is_file():
        other = next(
            (p.name for p in folder.rglob("*") if p.name.casefold() == path.name.casefold()), None
        )
        return f"{name}: no such file in {folder.name}/" + (f"; there is {other}" if other else "")
    try:
        header_size(folder / path)
    except ImageError as error:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        return f"{error}; save it as one of {kinds}"
    return ""


def _label_rows(file: Path) -> list[tuple[int, str, str]]:
    """(line, filename, label) of every row; the separator may be Excel's semicolon, or a tab."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8; save it as 'CSV UTF-8'") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    separator = max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    rows: list[tuple[int, str, str]] = []
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if not {"filename", "label"} <= set(header):
            raise UserError(
                f"{file}: the first line must name the columns filename,label; it has: "
                f"{', '.join(filter(None, header)) or 'nothing'}"
            )
        for row in reader:
            if not any(field.strip() for field in row):
                continue
            if len(row) > len(header):
                raise UserError(
                    f"{file} line {reader.line_num}: more fields than columns: put a label with "
                    "commas in quotes"
                )
            fields = dict(zip(header, (field.strip() for field in row), strict=False))
            rows.append((reader.line_num, fields["filename"], fields.get("label", "")))
    except csv.Error as error:
        raise UserError(f"{file} line {reader.line_num}: not valid CSV ({error})") from error
    return rows
