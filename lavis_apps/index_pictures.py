"""The pictures of a folder for an index: which there are, and their opening batch by batch.

Links are not followed: what they show inside the folder is found at its own place, what lies
outside is not opened. Used by index_building.py; reads the pictures' folder, writes nothing.

    pictures, problems = scan(Path("photos"), leave_out=Path("photos/INDEX"))
    for batch in opened_batches(Path("photos"), pictures, batch_size=32): ...
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from lavis_apps.pictures import within
from shared.images import IMAGE_SUFFIXES, ImageError, header_size, open_image
from shared.options import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

# an index has one picture a row: of an animated file or a TIFF of several pages the first
SUFFIXES = IMAGE_SUFFIXES | {".gif", ".tif", ".tiff"}
PIXELS_AT_ONCE = 100_000_000  # decoded pictures of one batch: 300 MB
READERS = 2  # threads that decode the next batch while this one is encoded


@dataclass(frozen=True)
class Picture:
    """A file in the pictures' folder as it was when the folder was read; `image` its path there."""

    image: str
    size: int
    mtime_ns: int


def scan(root: Path, leave_out: Path) -> tuple[list[Picture], dict[str, str]]:
    """Pictures of a folder and its subfolders (hidden ones too) by path, each file once, and what
    could not be looked at: path -> reason. The folder `leave_out` (the index) is passed over.

    Raises UserError when `root` is no folder or has no picture in it.
    """
    if not root.is_dir():
        problem = "a file; --images takes a folder" if root.exists() else "no such folder"
        raise UserError(f"{root}: {problem}")
    top, left_out = os.path.realpath(root), os.path.realpath(leave_out)
    found: dict[str, Picture] = {}
    problems: dict[str, str] = {}
    links: list[str] = []
    folders = [""]
    while folders:
        prefix = folders.pop()
        try:
            entries = list(os.scandir(os.path.join(top, prefix)))
        except OSError as error:
            problems[prefix or "."] = f"the folder cannot be read: {error.strerror or error}"
            continue
        for entry in entries:
            name = f"{prefix}{entry.name}"
            is_picture = os.path.splitext(entry.name)[1].lower() in SUFFIXES
            if entry.is_symlink():
                if is_picture or os.path.isdir(entry.path):
                    links.append(name)
            elif entry.is_dir(follow_symlinks=False):
                if entry.path != left_out:
                    folders.append(f"{name}/")
            elif is_picture and entry.is_file(follow_symlinks=False):
                add(found, problems, name, entry.path)
    targets: set[str] = set()
    for name in sorted(links):
        target = os.path.realpath(os.path.join(top, name))
        if not os.path.exists(target):
            problems[name] = "a link to nothing"
        elif not Path(target).is_relative_to(top):
            problems[name] = "a link that leads out of the folder: not followed"
        elif os.path.isfile(target) and target not in targets:
            targets.add(target)
            # a file without a picture's suffix is known by its link alone
            if os.path.relpath(target, top).replace(os.sep, "/") not in found:
                add(found, problems, name, target)
    if not found:
        looked_for = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{root}: no picture in it (looked for {looked_for}){first(problems)}")
    return [found[name] for name in sorted(found)], problems


def first(problems: Mapping[str, str]) -> str:
    """A line each for the first five."""
    return "".join(f"\n  {name}: {reason}" for name, reason in list(problems.items())[:5])


def add(found: dict[str, Picture], problems: dict[str, str], name: str, path: str) -> None:
    try:
        state = os.stat(path)
    except OSError as error:
        problems[name] = f"cannot be read: {error.strerror or error}"
    else:
        found[name] = Picture(name, state.st_size, state.st_mtime_ns)


def opened_batches(
    root: Path, pictures: Sequence[Picture], batch_size: int
) -> Iterator[list[tuple[Picture, Image | str]]]:
    """Batches of pictures, each opened or with the reason why it cannot be; the next batch is
    decoded while the caller works on this one."""
    waiting: list[tuple[list[Picture], list[Future[Image | str]]]] = []
    with ThreadPoolExecutor(READERS) as readers:
        for batch in chain(sized_batches(root, pictures, batch_size), [[]]):
            waiting.append((batch, [readers.submit(opened, root, p.image) for p in batch]))
            if len(waiting) == 2:
                ready, futures = waiting.pop(0)
                yield list(zip(ready, [future.result() for future in futures], strict=True))


def sized_batches(
    root: Path, pictures: Sequence[Picture], batch_size: int
) -> Iterator[list[Picture]]:
    """Batches of at most `batch_size` pictures that are together no more than PIXELS_AT_ONCE (or
    one picture alone), from the headers."""
    batch: list[Picture] = []
    pixels = 0
    for picture in pictures:
        try:
            width, height = header_size(within(root, picture.image))
        except UserError:  # told when it is opened
            width = height = 0
        if batch and (len(batch) == batch_size or pixels + width * height > PIXELS_AT_ONCE):
            yield batch
            batch, pixels = [], 0
        batch.append(picture)
        pixels += width * height
    if batch:
        yield batch


def opened(root: Path, name: str) -> Image | str:
    """The picture, or why it cannot be read. Never a file outside `root`."""
    try:
        path = within(root, name)
    except UserError:
        return "leads out of the folder: not opened"
    try:
        return open_image(path)
    except ImageError as error:
        return str(error).removeprefix(f"{path}: ")
