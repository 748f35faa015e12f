"""A picture that a page's visitor uploaded, and no other file of this machine.

Gradio hands over the path in a request as it came. It refuses paths outside its upload folder, but
(6.31) only where the request's file has `meta` beside its `path`: a forged one without it named any
picture on the server's disk, and was told what it shows. Each demo asks here before it opens one.

    python -m pytest tests/shared/test_uploads.py
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.images import ImageError, open_image
from shared.options import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


def is_upload(path: Any) -> bool:
    """Whether a file lies where Gradio puts uploads and examples, links followed."""
    from gradio.utils import get_upload_folder

    if not isinstance(path, str) or "\0" in path:
        return False
    return Path(path).resolve().is_relative_to(Path(get_upload_folder()).resolve())


def open_upload(given: Any, bad_picture: str) -> Image:
    """The RGB picture of an upload, which is a path, or a request's `{"path", "orig_name"}`.

    Raises UserError: `bad_picture` with the upload's own `{name}`, not that of the temporary file,
    and `{cause}`; and where it is no upload.
    """
    upload = given if isinstance(given, Mapping) else {"path": given}
    if not is_upload(upload.get("path")):
        raise UserError("only an uploaded picture is opened")
    try:
        return open_image(upload["path"])
    except ImageError as error:
        name = upload.get("orig_name") or Path(upload["path"]).name
        cause = str(error).removeprefix(f"{upload['path']}: ")
        raise UserError(bad_picture.format(name=name, cause=cause)) from error
