"""Which pictures a command is asked about, and pictures that must lie inside a folder.

Used by predict.py, search and the app. Reads folders; writes nothing.

    python -m pytest tests/lavis_apps/test_pictures.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shared.images import ImageError, list_images, open_image, to_rgb
from shared.options import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


def chosen_pictures(given: Path) -> list[Path]:
    """The picture itself, or those of a folder and its subfolders, by name.

    Raises UserError when nothing is there, or no picture in the folder.
    """
    if given.is_dir():
        return list_images(given)
    if not given.exists():
        raise UserError(f"{given}: no such file or folder")
    return [given]


def opened(paths: Iterable[Path]) -> Iterator[tuple[Path, Image | ImageError]]:
    """Each path with its RGB picture, or with the error that says why there is none."""
    for path in paths:
        try:
            yield path, open_image(path)
        except ImageError as error:
            yield path, error


def as_rgb(picture: Image | Path | str) -> Image:
    """A picture of any mode, or of a file, as RGB. Raises ImageError for an unusable file."""
    return open_image(picture) if isinstance(picture, str | Path) else to_rgb(picture)


def each_as_rgb(pictures: Sequence[Image | Path | str]) -> list[Image]:
    """`as_rgb` of each. One given several times (object or path) is opened once, and one object."""
    keys = [str(one) if isinstance(one, str | Path) else id(one) for one in pictures]
    different = {key: as_rgb(one) for key, one in dict(zip(keys, pictures, strict=True)).items()}
    return [different[key] for key in keys]


def within(root: Path, name: str) -> Path:
    """The file `name` (relative) in `root`, with links followed. Raises UserError for a name that
    leads out of the folder: absolute, by "..", or by a link."""
    resolved_root = root.resolve()
    if "\0" in name:
        raise UserError(f"{name!r}: no file name")
    path = (resolved_root / name).resolve()
    if not path.is_relative_to(resolved_root) or path == resolved_root:
        raise UserError(f"{name}: not inside {root}")
    return path
