"""A folder's features as one file, .npz or Parquet, for all families alike.

    extractor = FeatureExtractor.open("Salesforce/blip-itm-base-coco")
    write_features(extractor, sorted(Path("photos").glob("*.jpg")), Path("photos.npz"))
    np.load("photos.npz")["image_features"]     # (B, P), row i is the picture ["image"][i]

Reads pictures batch by batch; one that is broken is left out and listed. Writes the one file, whole
or not at all.

    python lavis_apps/predict.py --task features --image photos/ --output photos.npz [--toy]
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_apps.features import BATCH_SIZE, FeatureExtractor, Features
from lavis_apps.pictures import opened
from shared.images import ImageError
from shared.options import UserError

if TYPE_CHECKING:
    import numpy as np

NPZ_BYTES = 4 * 1024**3  # an .npz is put together in memory


@dataclass(frozen=True)
class Written:
    """What `write_features` did; `unreadable`: file -> reason."""

    count: int
    unreadable: dict[str, str]


def write_features(
    extractor: FeatureExtractor,
    pictures: Sequence[Path],
    output: Path,
    *,
    root: Path | None = None,
    text: str | None = None,
    tokens: bool = False,
    batch_size: int = BATCH_SIZE,
    progress: bool = True,
) -> Written:
    """One row a readable picture into `output`, a new .npz or .parquet, whole or not at all.

    Columns: `image` (its path, relative to `root`), `image_features`; with a `text`
    `multimodal_features` of it with each picture; with `tokens` the `embeds` and `embeds_proj` of
    every token too. The text's own `text_features`, `model`, `fingerprint`, `synthetic` and
    `unreadable` are arrays of the .npz. Parquet has them as JSON in the file's metadata
    (`pq.read_metadata(path).metadata[b"vlm"]`), where `shapes` says how to reshape a row's list. An
    .npz is put together in memory, Parquet is not. Raises UserError for another suffix, an empty
    text, no readable picture, an .npz over 4 GiB, or a file that cannot be written.
    """
    from tqdm import tqdm

    kinds = {".npz": NpzFile, ".parquet": ParquetFile}
    if output.suffix not in kinds:
        raise UserError(f"{output}: features are written to a name that ends in .npz or .parquet")
    about: dict[str, Any] = {
        "model": extractor.name,
        "fingerprint": extractor.fingerprint,
        "synthetic": extractor.family.synthetic,
    }
    if text is not None:
        about["text"] = text
        about["text_features"] = extractor.extract(texts=[text]).text_features[0].tolist()
    unreadable: dict[str, str] = {}
    count = 0
    try:
        with kinds[output.suffix](output, len(pictures)) as file:
            for start in tqdm(
                range(0, len(pictures), batch_size), desc="features", disable=not progress
            ):
                names, images = [], []
                for path, picture in opened(pictures[start : start + batch_size]):
                    name = path.relative_to(root).as_posix() if root else str(path)
                    if isinstance(picture, ImageError):
                        unreadable[name] = str(picture).removeprefix(f"{path}: ")
                    else:
                        names.append(name)
                        images.append(picture)
                if images:
                    texts = None if text is None else [text] * len(images)
                    rows = columns(extractor.extract(images, texts, batch_size=batch_size), tokens)
                    file.add(names, rows)
                    count += len(names)
            if not count:
                first = next((f"{n}: {why}" for n, why in unreadable.items()), "none was given")
                raise UserError(f"no picture could be read ({first})")
            file.finish({**about, "unreadable": unreadable})
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from error
    return Written(count, unreadable)


def columns(features: Features, tokens: bool) -> dict[str, np.ndarray]:
    """The features of pictures and pairs by name, (B, ...) float32."""
    names = ["image_features", "multimodal_features"]
    if tokens:
        names += ["image_embeds", "image_embeds_proj", "multimodal_embeds"]
    found = {name: getattr(features, name) for name in names}
    return {name: tensor.numpy() for name, tensor in found.items() if tensor is not None}


class NpzFile:
    """Rows gathered in memory, then written at once."""

    def __init__(self, path: Path, n_rows: int) -> None:
        self.path, self.n_rows = path, n_rows
        self.names: list[str] = []
        self.parts: dict[str, list[np.ndarray]] = {}

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.path.with_name(f".{self.path.name}.new").unlink(missing_ok=True)

    def add(self, names: Sequence[str], rows: dict[str, np.ndarray]) -> None:
        if not self.parts:
            size = sum(array[0].nbytes for array in rows.values()) * self.n_rows
            if size > NPZ_BYTES:
                raise UserError(
                    f"{self.path}: {size / 1024**3:.0f} GiB would be put together in memory; "
                    "write to a name that ends in .parquet, or without tokens"
                )
        self.names += names
        for name, array in rows.items():
            self.parts.setdefault(name, []).append(array)

    def finish(self, about: dict[str, Any]) -> None:
        import numpy as np

        arrays = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        about = {**about, "unreadable": json.dumps(about["unreadable"])}
        if "text_features" in about:
            about["text_features"] = np.asarray(about["text_features"], np.float32)
        written = self.path.with_name(f".{self.path.name}.new")
        written.parent.mkdir(parents=True, exist_ok=True)
        with written.open("wb") as file:
            np.savez(file, image=np.asarray(self.names), **arrays, **about)
        os.replace(written, self.path)


class ParquetFile:
    """A row group a batch."""

    def __init__(self, path: Path, n_rows: int) -> None:
        self.path = path
        self.written = path.with_name(f".{path.name}.new")
        self.writer: Any = None
        self.shapes: dict[str, list[int]] = {}

    def __enter__(self) -> ParquetFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()
        self.written.unlink(missing_ok=True)

    def add(self, names: Sequence[str], rows: dict[str, np.ndarray]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        # Parquet's texts are UTF-8, names of files may be anything
        texts = [name.encode("utf-8", "backslashreplace").decode() for name in names]
        arrays = {"image": pa.array(texts, pa.string())}
        for name, array in rows.items():
            self.shapes[name] = list(array.shape[1:])
            flat = pa.array(array.reshape(-1))
            arrays[name] = pa.FixedSizeListArray.from_arrays(flat, array[0].size)
        table = pa.table(arrays)
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.written, table.schema)
        self.writer.write_table(table)

    def finish(self, about: dict[str, Any]) -> None:
        self.writer.add_key_value_metadata({"vlm": json.dumps({**about, "shapes": self.shapes})})
        self.writer.close()
        self.writer = None
        os.replace(self.written, self.path)
