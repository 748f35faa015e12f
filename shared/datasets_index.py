"""What the published data sets consist of, and what of it lies on this machine.

The description is `datasets_index.json` beside this file: addresses, sizes, checksums with the
page that published them, what each archive holds; and of the data sets that `shared/download.py`
does not fetch, the commands that do. For `shared/download.py` and `shared/doctor.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from shared.options import read_json

INDEX_FILE = Path(__file__).with_name("datasets_index.json")


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures, as its archive holds it and as single files on the server."""

    folder: str
    count: int
    prefix: str
    url: str


@dataclass(frozen=True)
class Archive:
    """A published zip file; `files` are the annotation files in it with their key and row count."""

    name: str
    urls: list[str]
    bytes: int
    unpacked_bytes: int
    approximate: bool = False
    sha256: str | None = None
    checksum_source: str | None = None
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pictures: Pictures | None = None

    @property
    def exact_bytes(self) -> int | None:
        return None if self.approximate else self.bytes

    @property
    def contents(self) -> list[str]:
        return [*self.files, *([f"{self.pictures.folder}/"] if self.pictures else [])]


@dataclass(frozen=True)
class ByHand:
    """A data set that comes by other programs. `files` and `pictures` are paths below data/; each
    of `pictures` names the folders that will do, with the least number of entries of each."""

    name: str
    title: str
    homepage: str
    files: list[str]
    pictures: list[dict[str, int]]
    commands: list[str]

    def absent(self, data: Path) -> list[str]:
        """The files and folders that are not there, each folder by its first place."""
        files = [name for name in self.files if not (data / name).is_file()]
        folders = [
            f"{next(iter(places))}/"
            for places in self.pictures
            if not any(holds(data / place, least) for place, least in places.items())
        ]
        return files + folders

    def how_to(self) -> str:
        """The commands, for a message."""
        lines = "\n".join(f"  {command}" for command in self.commands)
        folders = [f"{next(iter(places))}/" for places in self.pictures]
        belongs = ", ".join(f"data/{name}" for name in [*self.files, *folders])
        return (
            f"{self.title} ({self.homepage}) is not fetched by this command. From the repository "
            f"root:\n{lines}\nwhat the scripts read is then in {belongs}\n"
            "Sizes, licenses and other ways: data/README.md"
        )


def load_index() -> dict[str, Any]:
    index = read_json(INDEX_FILE)
    index["by_hand"] = {
        name: ByHand(name=name, **entry) for name, entry in index["by_hand"].items()
    }
    index["archives"] = {
        name: Archive(
            name=name,
            **{**entry, "pictures": Pictures(**entry["pictures"]) if "pictures" in entry else None},
        )
        for name, entry in index["archives"].items()
    }
    return index


def holds(folder: Path, least: int) -> bool:
    """Whether a folder has at least so many entries."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return sum(1 for _ in islice(entries, least)) == least


def picture_count(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(entry.name.endswith(".jpg") for entry in entries)


def in_place(archive: Archive, root: Path) -> bool:
    """Whether everything that the archive holds lies under `root`."""
    pictures = archive.pictures
    if pictures and picture_count(root / pictures.folder) < pictures.count:
        return False
    return all((root / name).is_file() for name in archive.files)


def sample_pictures(root: Path, pictures: Pictures, limit: int, seed: int) -> list[str]:
    """File names of the pictures of the questions that `evaluate.py --limit --seed` asks."""
    from shared.vqav2 import load_split

    chosen = load_split(root, pictures.folder).sample(limit, seed).questions
    return list(dict.fromkeys(Path(question.image_name).name for question in chosen))


def absent_from_sample(
    archives: Sequence[Archive], root: Path, limit: int, seed: int
) -> int | None:
    """How many pictures of a VQAv2 sample are not here; None while its questions are not here."""
    if any(not (root / name).is_file() for archive in archives for name in archive.files):
        return None
    pictures = next(archive.pictures for archive in archives if archive.pictures)
    if picture_count(root / pictures.folder) >= pictures.count:
        return 0
    names = sample_pictures(root, pictures, limit, seed)
    return sum(not (root / pictures.folder / name).is_file() for name in names)
