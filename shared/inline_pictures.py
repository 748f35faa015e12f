"""Pictures that a row holds itself: `data:image/png;base64,...`, as OpenAI's messages have them.

The text is checked when the row is read and decoded when the picture is opened. An `InlinePicture`
goes where a picture's path goes (`shared.images.open_image`, `header_size`): Pillow reads it like a
file. Used by `conversation_files.py`; reads and writes nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

MAX_MIB = 32  # of base64 text; a 12-megapixel photo as JPEG has 4 to 8
HEAD = re.compile(r"data:image/([a-z0-9.+-]+)(?:;[a-z0-9=._-]+)*;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class InlinePicture:
    """A picture by its data URL; equal where the URLs are."""

    url: str

    @cached_property
    def name(self) -> str:
        """A short name for messages and records, of its content: "inline-0a1b2c3d4e5f.png"."""
        found = HEAD.match(self.url)
        digest = hashlib.sha256(self.url.encode()).hexdigest()
        return f"inline-{digest[:12]}.{found[1].lower() if found else 'unknown'}"

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__

    def read(self) -> bytes:
        """The file's bytes. Raises ValueError for broken base64."""
        return base64.b64decode(self.url.partition(",")[2], validate=True)


def data_url_problem(url: str) -> str | None:
    """Why this text that begins with `data:` is no picture that is read, or None."""
    if not HEAD.match(url):
        return f"{url[:40]!r}...: of data: addresses only data:image/...;base64,... is read"
    if len(url) > MAX_MIB << 20:
        return (
            f"a picture of {len(url) / 2**20:.0f} MiB inside the row, at most {MAX_MIB} are read; "
            "write it as a file and give its path"
        )
    return None
