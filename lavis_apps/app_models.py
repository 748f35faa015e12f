"""The page's models: loaded when first asked for, one of each kind in memory, a lock for each.

Whoever asks for another model of a kind than the loaded one takes its place; whoever comes while it
loads or answers waits. So twenty visitors never hold two copies, and no one's model is taken away
in the middle of an answer. Models are all that stays between two requests.

    shelf = Shelf({"caption": ["Salesforce/blip-image-captioning-base"], ...})
    with shelf.use("caption") as captioner:
        captioner.caption([picture])

Reads model folders; writes nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from shared.loading import GIB, model_folder, weight_files
from shared.options import UserError, manifest_value, portable_path

if TYPE_CHECKING:
    import torch

# (share from 0 to 1, name of the model); of reading its weights, then of putting it together
Progress = Callable[[float, str], object]
READ_BYTES = 1 << 24


@dataclass(frozen=True)
class Loaded:
    """A model in memory: Captioner, Answerer or features.Family, and the bytes of its weights."""

    name: str
    tool: Any
    n_bytes: int


@dataclass
class Shelf:
    """kind (caption, vqa, matching, clip) -> the models that may be asked for, the first one where
    none is named. Nothing else can be: a request that names a path gets an error."""

    models: Mapping[str, Sequence[str]]
    device: str = "auto"
    dtype: str = "auto"
    loaded: dict[str, Loaded] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._locks = {kind: Lock() for kind in self.models}

    @contextmanager
    def use(self, kind: str, name: str | None = None, progress: Progress | None = None) -> Iterator:
        """The model, for as long as the block lasts.

        Raises UserError for a model that was not named at the start, MissingError for one that is
        not on this machine.
        """
        known = self.models.get(kind, ())
        name = name or next(iter(known), None)
        if name not in known:
            raise UserError(f"no model {str(name)[:80]!r} for {kind}: choose one of the list")
        with self._locks[kind]:
            there = self.loaded.get(kind)
            if there is None or there.name != name:
                there = None
                self.loaded.pop(kind, None)  # its memory is free before the next one needs it
                gc.collect()
                folder = model_folder(model_and_adapter(name)[0])
                read_weights(folder, short_name(name), progress)
                tool = open_tool(kind, name, self.device, self.dtype)
                there = self.loaded[kind] = Loaded(name, tool, weights_bytes(tool))
            yield there.tool

    def torch_device(self) -> torch.device:
        from shared.loading import pick_device

        return pick_device(self.device)

    def synthetic(self) -> bool:
        """Whether any of the models is a toy."""
        return any(is_synthetic(name) for names in self.models.values() for name in names)


def open_tool(kind: str, name: str, device: str, dtype: str) -> Any:
    from lavis_apps.captioning import Captioner
    from lavis_apps.features import open_family
    from lavis_apps.vqa import Answerer

    model, adapter = model_and_adapter(name)
    open_ = {"caption": Captioner.open, "vqa": Answerer.open}.get(kind, open_family)
    return open_(model, device=device, dtype=dtype, adapter=adapter)


def model_and_adapter(name: str) -> tuple[str, str | None]:
    """ "MODEL+ADAPTER" in two; a folder whose name has a "+" is one model."""
    model, _, adapter = name.partition("+")
    return (name, None) if not adapter or Path(name).is_dir() else (model, adapter)


def read_weights(folder: Path, name: str, progress: Progress | None) -> None:
    """Reads the weights' files through once. The library that loads them tells nothing on the way;
    reading is the slow part, and the second time they come from the system's memory."""
    if progress is None:
        return
    files = weight_files(folder)
    total, done = sum(file.stat().st_size for file in files), 0
    for file in files:
        with file.open("rb") as content:
            while block := content.read(READ_BYTES):
                done += len(block)
                progress(0.9 * done / total, name)
    progress(0.9, name)


def weights_bytes(tool: Any) -> int:
    """Bytes of the module behind a task's object."""
    module = tool.model
    while not hasattr(module, "parameters"):  # a Blip, or a VisionLanguage and its family
        module = module.family if hasattr(module, "family") else module.model
    return sum(p.numel() * p.element_size() for p in module.parameters())


def is_synthetic(name: str) -> bool:
    """By the manifests of model and adapter; what is not on this machine is no toy."""
    folders = [folder for folder in model_and_adapter(name) if folder and Path(folder).is_dir()]
    return any(bool(manifest_value(folder, "synthetic")) for folder in folders)


def short_name(name: str) -> str:
    """The model as the page names it: a folder by its last two parts, a Hub id as it is."""
    model, adapter = model_and_adapter(name)
    if adapter is not None:
        return f"{short_name(model)} + {short_name(adapter)}"
    return "/".join(Path(portable_path(name)).parts[-2:]) if Path(name).is_dir() else name


def size_text(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.2f} GiB" if n_bytes >= GIB / 10 else f"{n_bytes / 2**20:.1f} MiB"
