"""Trains the toy towers that several experiments share, committed in `data/toy_models/`.

`clip.py` and `qwen2.py` beside this file say how; here they are run, saved in the Hub layout (bf16
safetensors with processor or tokenizer) and described by a manifest, which is written last.

    python -m shared.toy_world.models clip                      # data/toy_models/clip
    python -m shared.toy_world.models qwen2                     # data/toy_models/qwen2
    python -m shared.toy_world.models clip --output_dir /tmp/try --steps_scale 0.01   # a smoke test

Needs no data set: pictures and texts are made as they are needed.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.options import DATA_ROOT, UserError
from shared.toy_world import clip, qwen2
from shared.toy_world.build import read_manifest
from shared.toy_world.recipe import file_sha256
from shared.toy_world.shapes import HELD_BACK_SHAPES

MODELS = ("clip", "qwen2")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m shared.toy_world.models",
        description="Trains a toy CLIP or Qwen2 from nothing.",
        allow_abbrev=False,
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--output_dir", type=Path, help="default: data/toy_models/MODEL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps_scale",
        type=float,
        default=1.0,
        help="multiplies steps and examples; 0.01 is a smoke test",
    )
    options = parser.parse_args(arguments)
    try:
        manifest = make_toy_model(
            options.model,
            options.output_dir or DATA_ROOT / "toy_models" / options.model,
            options.seed,
            options.steps_scale,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(manifest["figures"]))
    return 0


def make_toy_model(
    name: str, output_dir: Path, seed: int = 0, steps_scale: float = 1.0
) -> dict[str, Any]:
    """Trains one of MODELS and puts it in place of `output_dir`; returns its manifest.

    Raises UserError when `output_dir` holds something else than a toy model.
    """
    import torch

    recipe = {"clip": clip, "qwen2": qwen2}[name]
    check_replaceable(output_dir)
    # before the training: a recipe that is edited meanwhile is not the one that was followed
    recipe_hash = clip.clip_recipe_hash() if name == "clip" else qwen2.qwen2_recipe_hash()
    start = time.perf_counter()
    model, processor, figures = recipe.train(seed, steps_scale)
    seconds = time.perf_counter() - start

    def write(folder: Path) -> dict[str, Any]:
        model.to(torch.bfloat16).save_pretrained(folder)
        processor.save_pretrained(folder)
        return {
            "architecture": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "command": f"python -m shared.toy_world.models {name} --seed {seed}"
            f" --steps_scale {steps_scale:g}",
            "seed": seed,
            "steps_scale": steps_scale,
            "recipe_hash": recipe_hash,
            # the recipe alone decides its data: they are drawn from the seed
            "data_hash": recipe_hash,
            "figures": figures,
            "training_seconds": round(seconds),
        }

    return write_checkpoint(output_dir, write)


def check_replaceable(output_dir: Path) -> None:
    """Raises UserError when a folder holds something that is not a toy model."""
    if (
        output_dir.exists()
        and any(output_dir.iterdir())
        and not read_manifest(output_dir).get("synthetic")
    ):
        raise UserError(f"{output_dir} holds something that is no toy model; give another folder")


def write_checkpoint(
    output_dir: Path, write: Callable[[Path], Mapping[str, Any]]
) -> dict[str, Any]:
    """A checkpoint folder with manifest.json, whole or not at all; returns the manifest.

    `write` fills an empty folder and returns what the manifest says of it.
    """
    import torch
    import transformers

    check_replaceable(output_dir)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}-", dir=output_dir.parent))
    try:
        content = write(folder)
        manifest = {
            "synthetic": True,
            **content,
            "held_back_shapes": list(HELD_BACK_SHAPES),
            "torch_threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "sha256": {p.name: file_sha256(p) for p in sorted(folder.iterdir())},
        }
        text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
        (folder / "manifest.json").write_text(text, "utf-8")
        folder.chmod(0o755)
        shutil.rmtree(output_dir, ignore_errors=True)
        folder.rename(output_dir)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return manifest


if __name__ == "__main__":
    sys.exit(main())
