"""What the toy data sets of LLaVA have in common: whole or not at all, no picture twice.

A set is written into a temporary folder, its manifest last, and then renamed, so that a reader
never sees half of one and two processes may draw at once. `Pictures` refuses a picture whose
content has been written before and keeps the checksums from which the data hash is made.

Used by `conversations.py` and `benchmarks.py`; reads and writes only the folders it is given.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from shared.options import UserError
from shared.toy_world.build import SEED, STALE_AFTER, read_manifest
from shared.toy_world.shapes import HELD_BACK_SHAPES


class Pictures:
    """Writes the pictures of one set below `root`; each content appears once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: set[str] = set()

    def add(self, name: str, jpeg: bytes) -> str:
        """Writes `root/name` and returns `name`. Raises ValueError for a repeated picture."""
        digest = hashlib.sha256(jpeg).hexdigest()
        if digest in self._seen:
            raise ValueError(f"{name} has the same content as another picture")
        self._seen.add(digest)
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
        return name

    def __len__(self) -> int:
        return len(self._seen)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, "utf-8")


def ensure_set(
    root: Path,
    dataset: str,
    recipe_hash: str,
    write: Callable[[Path], Mapping[str, Any]],
    redraw: bool = False,
) -> Path:
    """`root`, drawn when it is missing or its recipe has changed.

    `write` fills an empty folder and returns what its manifest says besides the common fields.
    Raises UserError when the folder can't be written, or holds something that is not a toy set.
    """
    if not redraw and read_manifest(root).get("recipe_hash") == recipe_hash:
        return root
    if root.exists() and any(root.iterdir()) and not read_manifest(root).get("synthetic"):
        raise UserError(
            f"{root} is not a toy set (no manifest.json with synthetic: true), so it is left as "
            "it is. Move it away, or give another folder."
        )
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        for stale in root.parent.glob(f".{root.name}-*"):
            if time.time() - stale.stat().st_mtime > STALE_AFTER:
                shutil.rmtree(stale, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    except OSError as error:
        raise UserError(f"{root.parent}: can't be written ({error}). Free it.") from error
    try:
        start = time.perf_counter()
        content = write(folder)
        manifest = {
            "synthetic": True,
            "dataset": dataset,
            "seed": SEED,
            "recipe_hash": recipe_hash,
            "data_hash": _data_hash(folder),
            "held_back_shapes": list(HELD_BACK_SHAPES),
            **content,
            "seconds": round(time.perf_counter() - start, 1),
        }
        text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
        (folder / "manifest.json").write_text(text, "utf-8")
        _put_in_place(folder, root, recipe_hash)
    except OSError as error:
        raise UserError(f"{root}: drawing the toy set failed ({error}).") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return root


def _data_hash(folder: Path) -> str:
    """Of all files' names and contents, 16 hex digits."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:16]


def _put_in_place(folder: Path, root: Path, recipe_hash: str) -> None:
    """Renames a finished folder to `root`, unless another process has just put the same there."""
    folder.chmod(0o755)  # mkdtemp makes it readable by its owner only
    old = folder.with_name(folder.name + "-old")
    for _ in range(10):
        try:
            if root.exists():
                os.rename(root, old)
                shutil.rmtree(old, ignore_errors=True)
            os.rename(folder, root)
            return
        except OSError:
            if read_manifest(root).get("recipe_hash") == recipe_hash:
                return
            time.sleep(0.1)
    os.rename(folder, root)
