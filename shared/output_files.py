"""The file that predict.py writes its answers to: never one that is read, else a new one.

Used by the experiments' predict.py; reads nothing, and replaces only a .jsonl file.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from shared.answering import RecordWriter
from shared.options import UserError


def check_output(
    output: str | None, questions: Iterable[Path | str | None], pictures: Iterable[object]
) -> None:
    """Raises UserError where --output is no file to replace: of another kind, or read here, under
    this name or another (a link, a relative path). Pictures that are no files are passed over."""
    if output is None:
        return
    path = Path(output)
    if path.exists() and (not path.is_file() or path.suffix != ".jsonl"):
        raise UserError(f"{path} exists and is no .jsonl file: give another --output")
    target = path.resolve()
    if target in {Path(name).resolve() for name in questions if name}:
        raise UserError(f"--output {path} is the file of the questions: give another")
    if any(isinstance(p, str | Path) and Path(p).resolve() == target for p in pictures):
        raise UserError(f"--output {path} is a picture that is asked about: give another")


def new_file(name: str | None) -> AbstractContextManager[RecordWriter | None]:
    """The writer of --output, in the place of an earlier file of that name; None without one."""
    if name is None:
        return nullcontext()
    path = Path(name)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    return RecordWriter(path)
