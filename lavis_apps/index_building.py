"""Builds and renews an index: which pictures, their features batch by batch, the finished files.

A picture is known by its path in the folder, size and time of change. What the index (or an
unfinished build) has of it stays; only new and changed pictures are opened and encoded. Each batch
is appended to INDEX/unfinished.* and flushed, so a killed build loses one batch. At the end the
vectors go into a file of their own, then the manifest is renamed into place: until then the old
index stands.

Reads the pictures' folder; writes the index's. Used by build_index.py and the app.

    identity = model_identity(model)
    built = build(Path("photos"), Path("INDEX"), identity, lambda: open_embedder(model))
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from lavis_apps.index import (
    FORMAT,
    MANIFEST,
    VERSION,
    Index,
    check_model,
    manifest_text,
    read_index,
)
from lavis_apps.index_pictures import Picture, first, opened_batches, scan
from shared.answering import is_out_of_memory, repair_records
from shared.options import LOCK_FILE, UserError, portable_path, take_lock

if TYPE_CHECKING:
    from PIL.Image import Image

    from lavis_apps.features import Embedder

ROWS_FILE, VECTORS_FILE = "unfinished.jsonl", "unfinished.f32"
LOCK_WAIT_S = 2
COPIED_ROWS = 8192


@dataclass(frozen=True)
class Unfinished:
    """What an unfinished build has: the model's identity, pictures, and their rows in the file."""

    model: Mapping[str, Any]
    size: int
    pictures: list[Picture]


@dataclass(frozen=True)
class Plan:
    """What a build has to do. `kept` and `resumed`: picture -> row of the old index, or of the
    unfinished build; `todo` is to be opened and encoded."""

    pictures: list[Picture]
    problems: dict[str, str]  # links and folders that are not followed: path -> reason
    index: Index | None
    unfinished: Unfinished | None
    kept: dict[str, int]
    resumed: dict[str, int]
    todo: list[Picture]


@dataclass(frozen=True)
class Built:
    """A finished index: its pictures, and those that cannot be read (path -> reason). Added and
    changed ones are `n_resumed` of an unfinished build and those encoded now."""

    count: int
    n_added: int
    n_changed: int
    n_removed: int
    n_kept: int
    n_resumed: int
    unreadable: dict[str, str]


def check_place(folder: Path) -> None:
    """Raises UserError when `folder` holds something that is no index."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file; --output is the folder of the index")
    with writing(folder):
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names - {LOCK_FILE} and not names & {MANIFEST, ROWS_FILE, VECTORS_FILE}:
        raise UserError(f"{folder}: not empty, and no index in it; give another --output")


def make_plan(root: Path, folder: Path, model: Mapping[str, Any]) -> Plan:
    """What building an index of `root` in `folder` has to do; changes nothing.

    Raises UserError for a folder without pictures, an index that is damaged, another model's or of
    another folder's pictures, and a `folder` that holds something else.
    """
    check_place(folder)
    pictures, problems = scan(root, folder)
    index = read_index(folder, check_hash=True) if (folder / MANIFEST).exists() else None
    unfinished = read_unfinished(folder)
    if index is not None:
        check_model(folder, index.manifest["model"], model)
    if unfinished is not None:
        check_model(folder, unfinished.model, model)
    old: dict[Picture, int] = {}
    if index is not None:
        fields = (index.manifest[key] for key in ("images", "sizes", "mtimes_ns"))
        old = {Picture(*values): row for row, values in enumerate(zip(*fields, strict=True))}
    made = {p: row for row, p in enumerate(unfinished.pictures)} if unfinished else {}
    kept = {p.image: old[p] for p in pictures if p in old}
    resumed = {p.image: made[p] for p in pictures if p in made and p not in old}
    if index is not None and not kept and index.root.resolve() != root.resolve():
        raise UserError(
            f"{folder}: an index of {index.root}; none of its pictures is in {root}. Give another "
            "--output, or delete that folder"
        )
    todo = [p for p in pictures if p.image not in kept and p.image not in resumed]
    return Plan(pictures, problems, index, unfinished, kept, resumed, todo)


def build(
    root: Path,
    folder: Path,
    model: Mapping[str, Any],
    open_embedder: Callable[[], Embedder],
    *,
    batch_size: int = 32,
    synthetic: bool = False,
    progress: bool = True,
) -> Built:
    """Bring the index in `folder` to what is in `root`, or make it; `model` is its identity.

    The model is opened only where there is something to encode. `synthetic` marks drawn pictures.
    Raises UserError as `make_plan` does, when another process builds here, the disk is full, no
    picture can be read, or the model gives features that are no numbers.
    """
    from tqdm import tqdm

    check_place(folder)
    if not folder.exists():
        scan(root, folder)  # no new folder for an index that cannot be
    lock = take_lock(folder / LOCK_FILE, folder, LOCK_WAIT_S)
    try:
        plan = make_plan(root, folder, model)
        unreadable = dict(plan.problems)
        if plan.todo:
            embedder: Embedder | None = None  # not needed where only broken pictures are left
            bar = tqdm(
                total=len(plan.pictures), initial=len(plan.pictures) - len(plan.todo),
                desc="indexing", unit="picture", disable=not progress,
            )  # fmt: skip
            with bar, Journal(folder, model, plan.unfinished) as journal:
                for batch in opened_batches(root, plan.todo, batch_size):
                    read = [(p, opened) for p, opened in batch if not isinstance(opened, str)]
                    unreadable |= {p.image: why for p, why in batch if isinstance(why, str)}
                    if read:
                        pictures, images = zip(*read, strict=True)
                        embedder = embedder or open_embedder()
                        journal.append(pictures, embed(embedder, images, pictures))
                    bar.update(len(batch))
        return finish(root, folder, model, plan, unreadable, synthetic)
    finally:
        if lock is not None:
            lock.release()


def embed(embedder: Embedder, images: Sequence[Image], pictures: Sequence[Picture]) -> np.ndarray:
    """(B, P) float32 features of length one. A GPU out of memory halves the batch and goes on.

    Raises UserError when one picture is too much, or features are not finite.
    """
    try:
        features = embedder.image_features(images)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(images) == 1:
            raise UserError(
                f"the GPU's memory is full with one picture ({pictures[0].image}): free it, or "
                f"give --device cpu ({str(error).splitlines()[0]})"
            ) from error
        features = None
    if features is None:  # out of the except clause: the error would keep the tensors alive
        half = len(images) // 2
        parts = [slice(half), slice(half, None)]
        return np.concatenate([embed(embedder, images[part], pictures[part]) for part in parts])
    vectors = features.detach().float().cpu().numpy()
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    wrong = np.flatnonzero(~np.isfinite(lengths[:, 0]) | (lengths[:, 0] == 0))
    if wrong.size:
        raise UserError(
            f"{pictures[wrong[0]].image}: the model's features of it are no finite numbers; "
            "--dtype float32 may help"
        )
    return (vectors / lengths).astype(np.float32)  # bfloat16 leaves lengths of 1 +- 0.004


class Journal:
    """INDEX/unfinished.*: features of finished batches, appended and flushed.

    The vectors are written before the rows that tell of them, so a row whose line is there has its
    vector; whatever else a crash left is cut off when the journal is opened.
    """

    def __init__(
        self, folder: Path, model: Mapping[str, Any], unfinished: Unfinished | None
    ) -> None:
        self.folder, self.model = folder, model
        with writing(folder):
            if unfinished is None:
                for name in (ROWS_FILE, VECTORS_FILE):
                    (folder / name).unlink(missing_ok=True)
            else:
                n = len(unfinished.pictures)
                repair_records(folder / ROWS_FILE)
                lines = (folder / ROWS_FILE).read_bytes().split(b"\n")[: n + 1]
                os.truncate(folder / ROWS_FILE, sum(len(line) + 1 for line in lines))
                os.truncate(folder / VECTORS_FILE, n * unfinished.size * 4)
            self._rows = (folder / ROWS_FILE).open("ab")
            self._vectors = (folder / VECTORS_FILE).open("ab")

    def append(self, pictures: Sequence[Picture], vectors: np.ndarray) -> None:
        """Vectors (B, P) of pictures, on the disk when this returns."""
        lines = [[p.image, p.size, p.mtime_ns] for p in pictures]
        if self._rows.tell() == 0:
            lines.insert(0, {"model": self.model, "size": vectors.shape[1]})
        with writing(self.folder):
            flush(self._vectors, vectors.tobytes())
            flush(self._rows, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        for file in (self._rows, self._vectors):
            try:
                file.close()
            except OSError:  # a full disk refuses what is still buffered; append() has said so
                if exc[0] is None:
                    raise


def read_unfinished(folder: Path) -> Unfinished | None:
    """What an unfinished build left, whole rows only; None when there is nothing of use."""
    rows, vectors = folder / ROWS_FILE, folder / VECTORS_FILE
    if not rows.is_file() or not vectors.is_file():
        return None
    pictures: list[Picture] = []
    try:
        header, *lines = rows.read_bytes().split(b"\n")[:-1]  # behind the last "\n": cut or empty
        head = json.loads(header)
        model, size = dict(head["model"]), int(head["size"])
        n = vectors.stat().st_size // (4 * size)
        for line in lines[:n]:
            pictures.append(Picture(*json.loads(line)))
    except (ArithmeticError, ValueError, KeyError, TypeError):
        if not pictures:
            return None
    return Unfinished(model, size, pictures)


def finish(
    root: Path,
    folder: Path,
    model: Mapping[str, Any],
    plan: Plan,
    unreadable: dict[str, str],
    synthetic: bool,
) -> Built:
    """Write the vectors of all readable pictures, then the manifest, then drop what is unused."""
    from shared.checkpoints import sync_folder

    pictures = [p for p in plan.pictures if p.image not in unreadable]
    if not pictures:
        raise UserError(
            f"{root}: none of its {len(plan.pictures)} pictures can be read{first(unreadable)}"
        )
    unfinished = read_unfinished(folder)
    made = {p: row for row, p in enumerate(unfinished.pictures)} if unfinished else {}
    before = set(plan.index.images) if plan.index is not None else set()
    with writing(folder):
        sources = [] if plan.index is None else [np.asarray(plan.index.vectors)]
        if unfinished is not None and made:
            shape = (len(unfinished.pictures), unfinished.size)
            sources.append(np.asarray(np.memmap(folder / VECTORS_FILE, "<f4", "r", shape=shape)))
        rows = [
            (0, plan.kept[p.image]) if p.image in plan.kept else (len(sources) - 1, made[p])
            for p in pictures
        ]
        if plan.index is not None and rows == [(0, row) for row in range(len(before))]:
            name, digest = plan.index.manifest["vectors"], plan.index.manifest["sha256"]
        else:
            name, digest = write_vectors(folder, sources, rows)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "count": len(pictures),
            "size": sources[0].shape[1],
            "dtype": "float32",
            "model": dict(model),
            "root": portable_path(root.resolve()),
            "synthetic": synthetic or bool(model.get("synthetic")),
            "vectors": name,
            "sha256": digest,
            "images": [p.image for p in pictures],
            "sizes": [p.size for p in pictures],
            "mtimes_ns": [p.mtime_ns for p in pictures],
            "unreadable": [{"path": k, "reason": unreadable[k]} for k in sorted(unreadable)],
        }
        temporary = folder / f"{MANIFEST}.tmp"
        with temporary.open("wb") as file:
            flush(file, manifest_text(manifest).encode())
        temporary.replace(folder / MANIFEST)
        sync_folder(folder)
        for file in (*folder.glob("vectors-*"), folder / ROWS_FILE, folder / VECTORS_FILE):
            if file.name != name:
                file.unlink(missing_ok=True)
    after = {p.image for p in pictures}
    return Built(
        count=len(after),
        n_added=len(after - before),
        n_changed=len(after & before - plan.kept.keys()),
        n_removed=len(before - after),
        n_kept=len(plan.kept),
        n_resumed=len(plan.resumed),
        unreadable=unreadable,
    )


def write_vectors(
    folder: Path, sources: Sequence[np.ndarray], rows: Sequence[tuple[int, int]]
) -> tuple[str, str]:
    """A .npy with the given (source, row)s, whole before it has its name; the name and SHA-256.

    Written, not memory-mapped: a full disk is then an error and no crash.
    """
    header = io.BytesIO()
    layout = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), sources[0].shape[1])}
    np.lib.format.write_array_header_1_0(header, layout)
    digest = hashlib.sha256(header.getvalue())
    temporary = folder / "vectors-new.tmp"
    with temporary.open("wb") as file:
        file.write(header.getvalue())
        for start in range(0, len(rows), COPIED_ROWS):
            part = np.stack([sources[s][row] for s, row in rows[start : start + COPIED_ROWS]])
            digest.update(part.tobytes())
            file.write(part.tobytes())
        flush(file)
    name = f"vectors-{digest.hexdigest()[:16]}.npy"
    temporary.replace(folder / name)
    return name, digest.hexdigest()


def flush(file: IO[bytes], more: bytes = b"") -> None:
    """Write `more`; everything written is on the disk when this returns."""
    file.write(more)
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the disk refuses, as a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror or error}. What is finished stays, the "
            "same command goes on"
        ) from error
