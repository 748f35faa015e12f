"""The folders that the page searches: indexes found or built at the start, and their pictures.

A visitor names an index by its name in the page's list, never by a path; which picture of it is
opened, the index says, and only inside its folder. Used by app.py and the search tab.

Reads indexes and pictures; writes indexes of --images to outputs/lavis_apps/app_index/.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavis_apps.app_models import Shelf, model_and_adapter
from lavis_apps.index import Index, check_model, model_identity, read_index
from lavis_apps.settings import RUNS
from shared.options import UserError, manifest_value

INDEXES = RUNS / "app_index"


@dataclass(frozen=True)
class Searched:
    """An index and which model of the shelf made it."""

    index: Index
    kind: str
    model: str

    def searcher(self, family: Any) -> Any:
        """A Searcher over the loaded model; a BLIP also re-ranks."""
        from lavis_apps.features import Embedder
        from lavis_apps.search import Searcher

        embedder = Embedder(family, self.model, self.index.manifest["model"]["fingerprint"])
        reranker = family if family.fuses else None
        return Searcher(self.index, embedder, self.index.root, reranker)


def open_folders(
    images: Sequence[str], indexes: Sequence[str], shelf: Shelf
) -> dict[str, Searched]:
    """name -> index, those of `images` built or renewed first.

    Raises UserError where a folder has no picture, an index is damaged, or none of the page's
    models made it; MissingError where an index or the model of a new one is not there.
    """
    found: dict[str, Searched] = {}
    built = [(given, build_index(Path(given), shelf)) for given in images]
    for given, folder in [*built, *((given, Path(given)) for given in indexes)]:
        name, index = Path(given).resolve().name, read_index(folder)
        while name in found:
            name += "'"
        found[name] = Searched(index, *maker(index, shelf))
    return found


def build_index(images: Path, shelf: Shelf) -> Path:
    """The folder of the index of `images` by the page's first model for matching."""
    from lavis_apps.features import open_embedder
    from lavis_apps.index_building import build

    model, adapter = model_and_adapter(shelf.models["matching"][0])
    identity = model_identity(model, adapter)
    where: dict[str, Any] = {"device": shelf.device, "dtype": shelf.dtype, "adapter": adapter}
    key = json.dumps([str(images.resolve()), identity], sort_keys=True)
    folder = INDEXES / f"{images.resolve().name}_{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    drawn = any(manifest_value(root, "synthetic") for root in (images, images.parent))
    built = build(images, folder, identity, lambda: open_embedder(model, **where), synthetic=drawn)
    print(f"{images}: {built.count:,} pictures searched, {len(built.unreadable):,} not readable")
    return folder


def maker(index: Index, shelf: Shelf) -> tuple[str, str]:
    """Kind and name of the page's model that made an index. Raises UserError where none did."""
    made_by = index.manifest["model"]
    for kind in ("matching", "clip"):
        for model in shelf.models.get(kind, ()):
            try:
                check_model(index.folder, made_by, model_identity(*model_and_adapter(model)))
            except UserError:
                continue
            return kind, model
    kind = "clip" if "clip" in str(made_by["name"]).lower() else "matching"
    raise UserError(
        f"{index.folder}: an index of {made_by['name']}, which is none of the page's models: add "
        f"--models {kind}={made_by['name']}"
    )
