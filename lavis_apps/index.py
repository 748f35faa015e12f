"""An index of one's own pictures: their features, a manifest, and exact search over them.

    INDEX/manifest.json     model (name, fingerprint, processor), the pictures' folder, `count`,
                            `images` (relative paths in row order), `sizes` and `mtimes_ns` beside
                            them, `unreadable` (path, reason), and the name and hash of
    INDEX/vectors-HASH.npy  (count, P) float32, each row of length one; memory-mapped here

The vectors' file is whole before the manifest names it, so that the two always agree.
build_index.py writes an index (index_building.py does the work), search.py asks it.

    index = read_index(Path("INDEX"))
    rows, cosines = nearest(index.vectors, queries, n=24)   # queries (Q, P), of length one

Reads an index; writes nothing. No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from shared.loading import adapter_fingerprint, fingerprint, model_folder
from shared.options import (
    REPO_ROOT,
    MissingError,
    UserError,
    differences,
    manifest_value,
    portable_path,
    read_json,
)

FORMAT, VERSION = "image_index", 1
MANIFEST = "manifest.json"
BLOCK = 1 << 17  # rows in one matrix product: 128 MiB of vectors at P = 256
IDENTITY = {"name", "fingerprint", "adapter", "adapter_fingerprint", "processor"}
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Index:
    """A finished index. `vectors[i]` belongs to `images[i]`, a path relative to `root`."""

    folder: Path
    manifest: dict[str, Any]
    vectors: np.ndarray  # (n, P) float32, memory-mapped

    @property
    def images(self) -> list[str]:
        return self.manifest["images"]

    @property
    def root(self) -> Path:
        """Where the pictures were when the index was built."""
        return REPO_ROOT / self.manifest["root"]

    @property
    def model(self) -> str:
        """The model's folder or Hub id."""
        return here(self.manifest["model"]["name"])

    @property
    def adapter(self) -> str | None:
        """The adapter's folder, None without one."""
        adapter = self.manifest["model"]["adapter"]
        return None if adapter is None else here(adapter)

    @property
    def synthetic(self) -> bool:
        return bool(self.manifest.get("synthetic"))


def here(name: str) -> str:
    """A folder that was recorded relative to the repository; a Hub id as it is."""
    return str(REPO_ROOT / name) if (REPO_ROOT / name).is_dir() else name


def recorded(name: str) -> str:
    """The reverse of `here`."""
    return portable_path(Path(name).resolve()) if Path(name).is_dir() else name


def read_index(folder: Path, *, check_hash: bool = False) -> Index:
    """The index in a folder; `check_hash` also reads all vectors and compares their hash.

    Raises MissingError where there is none, UserError for one that is damaged or of another
    version, or whose paths lead out of the pictures' folder.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise MissingError(
            f"{folder}: no index in it. Build one:\n"
            f"  python lavis_apps/build_index.py --images FOLDER --output {folder}"
        )
    try:
        manifest = read_json(path)
    except UserError as error:
        raise _damaged(path, str(error).removeprefix(f"{path}: ")) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path}: not the manifest of an index of pictures")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path}: an index of version {manifest.get('version')}, this program reads {VERSION}; "
            "build it again in another --output"
        )
    problem = damage(manifest)
    if problem:
        raise _damaged(path, problem)
    file = folder / manifest["vectors"]
    try:
        vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        if read_json(path) != manifest:  # renewed just now, by a build beside us
            return read_index(folder, check_hash=check_hash)
        raise _damaged(file, "it is missing") from error
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(file, str(error)) from error
    if vectors.shape != (manifest["count"], manifest["size"]) or vectors.dtype != np.float32:
        raise _damaged(
            file,
            f"{vectors.dtype} {vectors.shape}, the manifest tells of float32 "
            f"({manifest['count']}, {manifest['size']})",
        )
    if check_hash:
        with file.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != manifest["sha256"]:
                raise _damaged(file, "its content has another hash than the manifest says")
    return Index(folder, manifest, vectors)


def damage(manifest: Mapping[str, Any]) -> str | None:
    """What is wrong with a manifest's fields, or None."""
    count, images = manifest.get("count"), manifest.get("images")
    if not isinstance(images, list) or not all(isinstance(name, str) for name in images):
        return "images is no list of paths"
    if len(images) != count or len(set(images)) != count:
        return f"count is {count}, images are {len(images)} ({len(set(images))} different)"
    for key in ("sizes", "mtimes_ns"):
        values = manifest.get(key)
        whole = isinstance(values, list) and all(isinstance(value, int) for value in values)
        if not whole or len(values) != count:
            return f"{key} are not {count} whole numbers"
    for key, kind in (("root", str), ("vectors", str), ("sha256", str), ("size", int)):
        if not isinstance(manifest.get(key), kind):
            return f"{key} is missing or no {kind.__name__}"
    model = manifest.get("model")
    if not isinstance(model, dict) or not model.keys() >= IDENTITY:
        return f"model is without one of {', '.join(sorted(IDENTITY))}"
    if not isinstance(manifest.get("unreadable"), list):
        return "unreadable is no list"
    if PurePosixPath(manifest["vectors"]).name != manifest["vectors"]:
        return f"the vectors' file {manifest['vectors']!r} is not in the index"
    for name in images:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            return f"the picture {name!r} is not inside the pictures' folder"
    return None


def _damaged(file: Path, problem: str) -> UserError:
    return UserError(
        f"{file}: the index is damaged ({problem}). Delete {file.parent} and build it again with "
        "build_index.py"
    )


def model_identity(model: str, adapter: str | None = None) -> dict[str, Any]:
    """What an index keeps of a model, and by which another one is refused: fingerprints of config
    and weights and of the adapter's, and the picture processor's settings. Loads no weights.

    Raises MissingError when the model is not on this machine, UserError for no adapter's folder.
    """
    folder = model_folder(model)
    processor: dict[str, Any] = {}
    for name in PROCESSOR_FILES:
        if (folder / name).is_file():
            content = read_json(folder / name)
            settings = content.get("image_processor", content) if isinstance(content, dict) else {}
            processor = {k: v for k, v in settings.items() if not k.endswith(("_type", "class"))}
            break
    return {
        "name": recorded(model),
        "fingerprint": fingerprint(folder),
        "adapter": None if adapter is None else recorded(adapter),
        "adapter_fingerprint": adapter_fingerprint(adapter),
        "processor": processor,
        "synthetic": bool(manifest_value(folder, "synthetic")),
    }


def check_model(folder: Path, there: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raises UserError when the index in `folder` was made by another model than `identity`'s:
    cosines between the features of two models mean nothing."""

    def told(model: Mapping[str, Any]) -> str:
        adapter = f" with {model['adapter']}" if model["adapter"] else ""
        prints = ", ".join(filter(None, (model["fingerprint"], model["adapter_fingerprint"])))
        return f"{model['name']}{adapter} (fingerprint {prints})"

    if any(there[key] != identity[key] for key in ("fingerprint", "adapter_fingerprint")):
        raise UserError(
            f"{folder}: an index of {told(there)}, not of {told(identity)}. Give that --model "
            "(and --adapter), or build an index for this one in another --output"
        )
    differing = differences(there["processor"], identity["processor"])
    if differing:
        raise UserError(
            f"{folder}: its model prepared pictures otherwise ({'; '.join(differing)}); build an "
            "index in another --output"
        )


def nearest(
    vectors: np.ndarray, queries: np.ndarray, n: int, *, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The `n` rows of the highest cosine for each query, best first: rows (Q, n), cosines (Q, n).

    `vectors` (N, P) and `queries` (Q, P) are float32 of length one; fewer than `n` come back when
    N is smaller. Exact: the float32 product finds the candidates, everything within its rounding
    error of the n-th, and their products in float64 decide. So a row's score depends neither on
    the block it is in nor on the other queries, and of equal rows the earlier comes first.
    """
    count, width = vectors.shape
    n = min(n, count)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    # two float32 products of unit vectors are each off by P * eps / 2 at most
    slack = width * np.finfo(np.float32).eps
    best = [(np.empty(0, np.int64), np.empty(0, np.float64)) for _ in queries]
    for start in range(0, count, block):
        part = vectors[start : start + block]  # (b, P)
        products = part @ queries.T  # (b, Q)
        kept = min(n, len(part))
        for i, query in enumerate(queries.astype(np.float64)):
            column = np.ascontiguousarray(products[:, i])
            limit = np.partition(column, len(column) - kept)[len(column) - kept] - slack
            rows = np.flatnonzero(column >= limit)
            cosines = (part[rows].astype(np.float64) * query).sum(axis=1)
            rows = np.concatenate([best[i][0], rows + start])
            cosines = np.concatenate([best[i][1], cosines])
            order = np.lexsort((rows, -cosines))[:n]
            best[i] = rows[order], cosines[order]
    return (
        np.stack([rows for rows, _ in best]) if best else np.empty((0, n), np.int64),
        np.stack([cosines for _, cosines in best]) if best else np.empty((0, n)),
    )


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """JSON, a line a field. In ASCII, so that names of files that are no UTF-8 come back whole."""
    fields = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in manifest.items()]
    return "{\n" + ",\n".join(fields) + "\n}\n"
