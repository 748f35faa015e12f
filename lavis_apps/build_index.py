"""An index of the pictures in a folder, for search by words and by pictures.

    python lavis_apps/build_index.py --images photos/ --output photos_index/
    python lavis_apps/build_index.py --images data/coco2014/val2014     # COCO is a folder too
    python lavis_apps/build_index.py --toy
    python lavis_apps/predict.py --task search --index photos_index/ --query "a red bus"

Each picture of the folder and its subfolders becomes one vector: the ITC feature of a BLIP, or a
CLIP's. The same command goes on where a stopped build ended, and brings a finished index up to
date: new and changed pictures (another size or time of change) are encoded, removed ones leave.
Pictures that cannot be read are told and listed. Reads the folder and nothing outside it; writes
INDEX/manifest.json and INDEX/vectors-*.npy (index.py says what is in them).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lavis_apps.settings import RUNS, TOY_IMAGES, TOY_INDEX, default_model
from shared.options import ToyOptions, UserError, guarded, manifest_value, parse_options

if TYPE_CHECKING:
    from lavis_apps.features import Embedder

TOLD = 10  # unreadable pictures named on the screen


@dataclass
class IndexOptions(ToyOptions):
    """Pictures, index, model"""

    images: str | None = field(default=None, metadata={"help": "folder of pictures"})
    output: str | None = field(
        default=None,
        metadata={"help": "folder of the index (default: outputs/lavis_apps/index_FOLDER)"},
    )
    model: str = field(
        default=default_model("search"),
        metadata={"help": "BLIP for matching, BLIP-2 or CLIP: folder, or downloaded Hub id"},
    )
    adapter: str | None = field(default=None, metadata={"help": "adapter folder of train.py"})
    batch_size: int = field(default=32, metadata={"help": "pictures in one forward pass"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, cuda:1"})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "of the model; an index is always float32"}
    )

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"--batch_size {self.batch_size}: at least one picture at a time")


def prepare_toy() -> None:
    """Draw the toy pictures (about ten seconds, once)."""
    from shared.toy_world.build import ensure_vqav2

    ensure_vqav2(TOY_IMAGES.parent)


def drawn(root: Path) -> bool:
    """Whether the manifest of the pictures' folder, or of the set it is part of, says so."""
    try:
        return any(manifest_value(folder, "synthetic") for folder in (root, root.parent))
    except UserError:  # somebody's own manifest.json, about something else
        return False


def main(options: IndexOptions) -> None:
    from lavis_apps.index import model_identity
    from lavis_apps.index_building import build, make_plan

    # Data
    if options.images is None:
        raise UserError("give the folder of pictures with --images (or --toy)")
    root = Path(options.images)
    own = TOY_INDEX if root == TOY_IMAGES else RUNS / f"index_{root.resolve().name}"
    output = Path(options.output) if options.output else own
    identity = model_identity(options.model, options.adapter)
    if options.dry_run:
        plan = make_plan(root, output, identity)
        print(f"pictures: {len(plan.pictures)} in {root}, {len(plan.todo)} to encode")
        print(f"index:    {output}, {len(plan.kept)} kept, {len(plan.resumed)} of a stopped build")
        print(f"model:    {identity['name']} (fingerprint {identity['fingerprint']})")
        return

    # Model: opened by `build` where there is something to encode
    def open_model() -> Embedder:
        from lavis_apps.features import open_embedder

        return open_embedder(
            options.model, device=options.device, dtype=options.dtype, adapter=options.adapter
        )

    # Save
    built = build(
        root, output, identity, open_model, batch_size=options.batch_size, synthetic=drawn(root)
    )
    for name, reason in sorted(built.unreadable.items())[:TOLD]:
        print(f"not in the index: {name}: {reason}", file=sys.stderr)
    if len(built.unreadable) > TOLD:
        more = len(built.unreadable) - TOLD
        print(f"... and {more} more, listed in {output / 'manifest.json'}", file=sys.stderr)
    going_on = f", {built.n_resumed} of them by a stopped build" if built.n_resumed else ""
    print(
        f"{output}: {built.count} pictures ({built.n_added} new, {built.n_changed} changed"
        f"{going_on}; {built.n_kept} kept, {built.n_removed} removed), "
        f"{len(built.unreadable)} unreadable"
    )


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                IndexOptions,
                description=__doc__.split("\n")[0],
                toy_defaults={
                    "model": default_model("search", toy=True),
                    "images": str(TOY_IMAGES),
                },
                prepare_toy=prepare_toy,
            )
        )
    )
