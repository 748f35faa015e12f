"""Fetching one file so that a broken line costs nothing, and unpacking an archive safely.

A file grows as `NAME.part`; `NAME.part.json` keeps what identifies the server's copy (ETag or date,
size). The next start asks for the rest with `Range` and `If-Range` (RFC 9110, section 13.1.5), so
that a server whose file has changed sends it whole again and no two versions are mixed. A file gets
its name only after size, checksum and content were checked. An archive is unpacked into a hidden
folder beside its place and moved from there, so that a file is there whole or not at all.

Used by `shared/download.py`; knows nothing about data sets.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from shared.options import UserError

if TYPE_CHECKING:
    import requests

CHUNK = 1 << 20
ATTEMPTS = 5  # in a row without one new byte
BACKOFF_S = 1.0
TIMEOUT_S = (15, 60)  # to connect, and between two pieces of the body
SPARE_BYTES = 200_000_000  # left free on the disk beside what is fetched


class FetchError(UserError):
    """A server answered, but this file did not arrive as it should."""


class UnreachableError(UserError):
    """No server answered at all: no network here, or a proxy or firewall in the way."""


class BrokenFileError(UserError):
    """A file that is here is not what it should be: wrong size or checksum, damaged archive."""


def open_session() -> requests.Session:
    """A session that repeats refused connections and 429/5xx answers with growing pauses."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    retry = Retry(
        total=4,
        connect=2,
        read=1,
        backoff_factor=BACKOFF_S,
        status_forcelist=(429, 500, 502, 503, 504),
        allowed_methods=("GET",),
        raise_on_status=False,
    )
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=16))
    return session


def fetch(
    session: requests.Session,
    urls: Sequence[str],
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    check: Callable[[Path], object] | None = None,
    show: bool = True,
) -> None:
    """Bring a file to `target`, continuing what an earlier start left in `target.part`.

    `size` is the exact number of bytes if known; `check` gets the finished part and raises
    UserError when its content is wrong. Further `urls` are other addresses of the same file.

    Raises UnreachableError when no address answers, FetchError for any other answer than the file,
    BrokenFileError when what arrived is wrong (it is deleted then), UserError for a full disk.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    problems: list[UserError] = []
    for url in urls:
        try:
            _fetch_body(session, url, part, size, show)
            break
        except (FetchError, UnreachableError) as error:
            problems.append(error)
    else:
        answered = [p for p in problems if isinstance(p, FetchError)]
        raise (answered or problems)[0]
    try:
        check_file(part, size=size, sha256=sha256, name=target.name, show=show)
        if check is not None:
            check(part)
    except UserError as error:
        part.unlink(missing_ok=True)
        _note_file(part).unlink(missing_ok=True)
        raise BrokenFileError(
            f"{error}\n  It was deleted: give the same command again. If it comes out the same, "
            f"{urls[0]} is another file now, or a proxy on the way changes it."
        ) from error
    part.replace(target)
    _note_file(part).unlink(missing_ok=True)


def _fetch_body(
    session: requests.Session, url: str, part: Path, size: int | None, show: bool
) -> None:
    """Append to `part` until it is whole; a body that breaks off is continued, with pauses."""
    import requests

    most = _length(part)
    received, stalled = False, 0
    while not (size is not None and _length(part) == size):
        try:
            if _request_once(session, url, part, size, show):
                return
        except requests.RequestException as error:
            if _length(part) > most:
                most, received, stalled = _length(part), True, 0
            else:
                stalled += 1
            no_answer = isinstance(error, requests.ConnectionError | requests.Timeout)
            if no_answer and not received:  # the session has repeated it already
                raise UnreachableError(f"no answer from {url}: {_reason(error)}") from error
            if stalled >= ATTEMPTS:
                raise FetchError(
                    f"{url} breaks off again and again ({_reason(error)}); "
                    f"{human_size(_length(part))} are kept, the same command goes on from there"
                ) from error
            time.sleep(BACKOFF_S * 2**stalled)
        except OSError as error:
            raise disk_error(error, part) from error


def _request_once(
    session: requests.Session, url: str, part: Path, size: int | None, show: bool
) -> bool:
    """One request; True when `part` is whole, False when it was thrown away to start over."""
    from requests.exceptions import ChunkedEncodingError
    from tqdm import tqdm

    have, note = _length(part), _read_note(part)
    headers = {"Accept-Encoding": "identity"}
    if have and note:
        headers["Range"] = f"bytes={have}-"
        if note["validator"]:
            headers["If-Range"] = note["validator"]
    else:
        have = 0
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        start, total = _content_range(response)
        if (
            response.status_code == 416 and have
        ):  # nothing after `have`: it is whole, or of another version
            if total == have and note is not None and total == note["total"]:
                return True
            part.unlink()
            return False
        _check_answer(response, url)
        now = {"validator": _validator(response), "total": total}
        if response.status_code == 206 and have:
            same = total == note["total"] and now["validator"] in (None, note["validator"])
            if start != have or not same:  # a server that does not honour If-Range
                part.unlink()
                return False
            now = note
        else:
            have = 0
        if size is not None and total is not None and total != size:
            raise FetchError(
                f"{url} offers {total:,} bytes, the published file has {size:,}: "
                "a newer version, a partial mirror, or a proxy's page"
            )
        _note_file(part).write_text(json.dumps(now), encoding="utf-8")
        bar = tqdm(
            total=total,
            initial=have,
            desc=part.name.removesuffix(".part"),
            unit="B",
            unit_scale=True,
            disable=not show,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )
        with bar, part.open("ab" if have else "wb") as file:
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _length(part) < total:
        raise ChunkedEncodingError(f"ended after {_length(part):,} of {total:,} bytes")
    return True


def _check_answer(response: requests.Response, url: str) -> None:
    if response.status_code >= 400:
        raise FetchError(f"{url}: the server answers {response.status_code} {response.reason}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise FetchError(f"{url}: a web page came instead of the file (a login page or a proxy?)")


def _validator(response: requests.Response) -> str | None:
    """What If-Range may carry: a strong ETag, else the date (a weak ETag is not allowed there)."""
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified")


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """(first byte, whole size) of the answer; None where the server does not say."""
    match = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "")
    )
    if match:
        start, total = match.groups()
        return (int(start) if start else None), (None if total == "*" else int(total))
    length = response.headers.get("Content-Length")
    return None, int(length) if length and response.status_code == 200 else None


def _note_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_note(part: Path) -> dict[str, Any] | None:
    try:
        note = json.loads(_note_file(part).read_text(encoding="utf-8"))
        return {"validator": note["validator"], "total": note["total"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # without it the part can't be trusted: start over


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: BaseException) -> str:
    """The innermost cause of a requests error, without urllib3's wrapping."""
    while True:
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            return str(error).split(">: ")[-1] or type(error).__name__
        error = inner


def check_file(
    path: Path, *, size: int | None, sha256: str | None, name: str, show: bool = True
) -> None:
    """Raise BrokenFileError unless `path` has the size and the checksum, where they are known."""
    from tqdm import tqdm

    have = _length(path)
    if size is not None and have != size:
        raise BrokenFileError(f"{name}: {have:,} bytes, the published file has {size:,}")
    if sha256 is None:
        return
    digest = hashlib.sha256()
    bar = tqdm(
        total=have,
        desc=f"check {name}",
        unit="B",
        unit_scale=True,
        disable=not show or have < 100 * CHUNK,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )
    with bar, path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != sha256:
        raise BrokenFileError(
            f"{name}: wrong checksum (sha256 {digest.hexdigest()}, published {sha256})"
        )


def unpack(
    archive: Path, root: Path, *, expected: Iterable[str], tested: bool, show: bool = True
) -> None:
    """Unpack a zip into `root`, each file whole or not at all.

    `expected` are files, or folders ending in "/", that the archive must hold. `tested`: a checksum
    already vouches for the bytes; else every member is read once before anything is written.

    Raises BrokenFileError for a damaged or dangerous archive, or one with other content; UserError
    when the disk is full.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if not m.filename.startswith("__MACOSX/")]
            _check_members(archive.name, members, expected)
            if not tested:
                damaged = opened.testzip()
                if damaged:
                    raise BrokenFileError(f"{archive.name}: {damaged} in it is damaged")
            check_free_space(root, sum(m.file_size for m in members), f"unpacking {archive.name}")
            _extract(opened, members, root, archive.name, show)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise BrokenFileError(f"{archive.name}: not a whole zip file ({error})") from error
    except OSError as error:
        raise disk_error(error, root) from error


def _check_members(name: str, members: Sequence[zipfile.ZipInfo], expected: Iterable[str]) -> None:
    names = set()
    for member in members:
        path = PurePosixPath(member.filename.replace("\\", "/"))
        link = (member.external_attr >> 16) & 0o170000 == 0o120000
        if path.is_absolute() or ".." in path.parts or ":" in member.filename or link:
            raise BrokenFileError(
                f"{name}: {member.filename!r} in it points outside the folder; nothing was unpacked"
            )
        names.add(path.as_posix())
    missing = [e for e in expected if e not in names and not any(n.startswith(e) for n in names)]
    if missing:
        raise BrokenFileError(f"{name}: {', '.join(missing)} is not in it; another archive?")


def _extract(
    opened: zipfile.ZipFile,
    members: Sequence[zipfile.ZipInfo],
    root: Path,
    name: str,
    show: bool,
) -> None:
    from tqdm import tqdm

    hidden = root / f".unpacking-{name}"
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        bar = tqdm(
            members,
            desc=f"unpack {name}",
            unit="file",
            disable=not show,
            mininterval=0.5 if sys.stderr.isatty() else 30,
        )
        for member in bar:
            opened.extract(member, hidden)
        move_into(hidden, root)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def move_into(source: Path, target: Path) -> None:
    """Move what is in `source` into `target` (same disk), replacing files of the same name."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        destination = target / entry.name
        if entry.is_dir() and destination.is_dir():
            move_into(entry, destination)
        else:
            entry.replace(destination)


def check_free_space(folder: Path, needed: int, what: str) -> None:
    """Raise UserError when `what` would not fit on the disk that `folder` is (to be) on."""
    free = free_bytes(folder)
    if needed + SPARE_BYTES > free:
        raise UserError(
            f"{what} needs {human_size(needed)}, {folder} has {human_size(free)} free. "
            "Make room, or use a bigger disk: --data_root FOLDER for a data set; for models, make "
            "data/models a link to a folder there."
        )


def free_bytes(folder: Path) -> int:
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def disk_error(error: OSError, path: Path) -> UserError:
    """The message for a write that failed; what is already there stays for the next start."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return UserError(f"the disk of {path} is full; make room, then give the same command again")
    return UserError(f"{error.filename or path}: cannot be written: {error.strerror or error}")


def link_or_copy(source: Path, target: Path) -> None:
    """Put `source` at `target` whole: a hard link where the disk allows it, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".part")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source.resolve(), temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(error, target) from error


def human_size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
