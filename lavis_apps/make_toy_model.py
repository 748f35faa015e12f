"""Trains the three toy BLIPs: the checkpoints that `--toy` opens, committed under git.

A BLIP for captions, one for questions and one for matching, from the vision tower of the toy BLIP-2
(`toy_recipe.py`). Each is saved in the Hub layout (bf16 safetensors with processor) and measured on
held-out pictures (`toy_figures.py`); its manifest, written last, says how it was made.

    python lavis_apps/make_toy_model.py                        # all three, minutes
    python lavis_apps/make_toy_model.py --only matching
    python lavis_apps/make_toy_model.py --output_dir /tmp/try --steps_scale 0.01 --limit 20  # smoke

Reads `data/toy_models/blip2_opt`, `data/toy/vqav2` (drawn when missing; val split, for the
figures). Writes `data/toy_models/{blip_caption,blip_vqa,blip_itm}/`.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_apps.toy_recipe import KINDS
from shared.options import DATA_ROOT, UserError

if TYPE_CHECKING:
    import torch

    from shared.toy_world.shapes import Scene

HELD_OUT = 600  # pictures of the matching model's figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Trains the toy BLIPs for captions, questions and matching.",
        allow_abbrev=False,
    )
    parser.add_argument("--only", choices=KINDS, help="one of the three; default: all")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=DATA_ROOT / "toy_models",
        help="the models' folders are made in it",
    )
    parser.add_argument("--data_root", type=Path, default=DATA_ROOT / "toy" / "vqav2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps_scale",
        type=float,
        default=1.0,
        help="multiplies all steps and the number of drawn pictures; 0.01 is a smoke test",
    )
    parser.add_argument("--limit", type=int, default=0, help="of what is measured on; 0: all")
    options = parser.parse_args(arguments)
    try:
        manifests = make_toy_models(
            options.output_dir,
            options.data_root,
            kinds=(options.only,) if options.only else KINDS,
            seed=options.seed,
            steps_scale=options.steps_scale,
            limit=options.limit,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for kind, manifest in manifests.items():
        print(json.dumps({kind: manifest["figures"]}))
    return 0


def make_toy_models(
    output_dir: Path,
    data_root: Path,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    steps_scale: float = 1.0,
    limit: int = 0,
) -> dict[str, dict[str, Any]]:
    """Trains, saves and measures; returns the manifests by kind. Each folder is replaced whole.

    Raises UserError when one of the folders holds something else than a toy model.
    """
    from lavis_apps import toy_recipe
    from lavis_apps.settings import TOY_MODELS
    from shared.toy_world.build import ensure_vqav2, read_manifest
    from shared.toy_world.clip import draw_pictures
    from shared.toy_world.models import check_replaceable
    from shared.toy_world.recipe import file_sha256

    folders = {kind: output_dir / TOY_MODELS[kind].name for kind in kinds}
    for folder in folders.values():
        check_replaceable(folder)
    ensure_vqav2(data_root)
    made_by = {
        "seed": seed,
        "steps_scale": steps_scale,
        # before the training: a recipe that is edited meanwhile is not the one that was followed
        "recipe_hash": toy_recipe.toy_recipe_hash(),
        "data_hash": read_manifest(data_root)["data_hash"],
        "towers": {toy_recipe.TOWER.name: file_sha256(toy_recipe.TOWER / "model.safetensors")},
    }
    count = max(100, round(toy_recipe.PICTURES * steps_scale))
    drawn = draw_pictures(f"{seed}/blip_training", count)
    return {
        kind: make_toy_model(kind, folder, *drawn, made_by, data_root, limit)
        for kind, folder in folders.items()
    }


def make_toy_model(
    kind: str,
    folder: Path,
    scenes: Sequence["Scene"],
    pixels: "torch.Tensor",
    made_by: Mapping[str, Any],
    data_root: Path,
    limit: int,
) -> dict[str, Any]:
    """One of the three, with `made_by` in its manifest, which is returned."""
    import torch

    from lavis_apps import toy_recipe
    from shared.toy_world.models import write_checkpoint

    seed, steps_scale = made_by["seed"], made_by["steps_scale"]
    start = time.perf_counter()
    processor = toy_recipe.build_processor()
    model = toy_recipe.build_model(kind, processor.tokenizer, seed)
    losses = toy_recipe.train(model, kind, processor.tokenizer, scenes, pixels, seed, steps_scale)
    seconds = round(time.perf_counter() - start)

    def write(folder: Path) -> dict[str, Any]:
        model.to(torch.bfloat16).save_pretrained(folder)
        processor.save_pretrained(folder)
        options = f"--only {kind} --seed {seed} --steps_scale {steps_scale:g}"
        return {
            "architecture": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "command": f"python lavis_apps/make_toy_model.py {options}",
            **made_by,
            "figures": {"last_losses": losses, **measure(kind, folder, data_root, seed, limit)},
            "training_seconds": seconds,
        }

    return write_checkpoint(folder, write)


def measure(kind: str, folder: Path, data_root: Path, seed: int, limit: int) -> dict[str, Any]:
    """The figures of a saved checkpoint; `limit` rows or pictures, 0: all."""
    from lavis_apps import toy_figures
    from shared.toy_world.clip import draw_pictures

    if kind == "matching":
        held_out = draw_pictures(f"{seed}/blip_held_out", limit or HELD_OUT)
        return toy_figures.matching_figures(folder, *held_out)
    of_split = {"caption": toy_figures.caption_figures, "vqa": toy_figures.vqa_figures}[kind]
    return of_split(folder, data_root, limit)


if __name__ == "__main__":
    sys.exit(main())
