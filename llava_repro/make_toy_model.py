"""Trains the toy LLaVA: the checkpoint that `--toy` answers with, committed under git.

Nothing of its own: the two stages of `train.py --toy` run as a user would run them, on the
committed toy CLIP and toy Qwen2; the finished model is saved in the Hub layout (bf16 safetensors
with tokenizer and image processor) and measured on held-out pictures (`toy_figures.py`). The
manifest, written last, records all of it.

    python llava_repro/make_toy_model.py                                 # the committed one
    python llava_repro/make_toy_model.py --output_dir /tmp/try --max_steps 3 --limit 20   # smoke

Reads `data/toy/llava` (drawn when missing), `data/toy_models/{clip,qwen2}`. Writes
`data/toy_models/llava/`.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.options import DATA_ROOT, REPO_ROOT, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Trains the toy LLaVA in both stages.", allow_abbrev=False
    )
    parser.add_argument("--output_dir", type=Path, default=DATA_ROOT / "toy_models" / "llava")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_steps", type=int, default=0, help="of each stage; 0: the recipe's")
    parser.add_argument("--limit", type=int, default=0, help="held-out rows measured; 0: all")
    options = parser.parse_args(arguments)
    try:
        manifest = make_toy_model(
            options.output_dir, seed=options.seed, max_steps=options.max_steps, limit=options.limit
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(manifest["figures"], ensure_ascii=False))
    return 0


def make_toy_model(
    output_dir: Path, seed: int = 0, max_steps: int = 0, limit: int = 0
) -> dict[str, Any]:
    """Trains, saves and measures; returns the manifest. `output_dir` is replaced as a whole.

    Raises UserError when `output_dir` holds something else than a toy model, or a stage fails.
    """
    import torch

    from llava_repro import toy_figures, toy_recipe
    from llava_repro.model import Llava
    from shared.toy_world.build import read_manifest
    from shared.toy_world.conversations import ensure_llava
    from shared.toy_world.models import check_replaceable, write_checkpoint

    check_replaceable(output_dir)
    # before the training: a recipe that is edited meanwhile is not the one that was followed
    recipe_hash, towers = toy_recipe.toy_recipe_hash(), toy_recipe.tower_hashes()
    data = ensure_llava()
    with tempfile.TemporaryDirectory() as runs:
        seconds = {
            stage: run_stage(stage, Path(runs), seed, max_steps) for stage in toy_recipe.TRAINING
        }
        captioner, trained = (Path(runs) / stage / "model" for stage in toy_recipe.TRAINING)

        def write(folder: Path) -> dict[str, Any]:
            model = Llava.from_pretrained(trained, dtype=torch.float32, device="cpu")
            model.save_pretrained(folder, torch.bfloat16)
            for path in trained.iterdir():  # tokenizer and image processor
                if not path.name.startswith(("model", "config", "manifest")):
                    shutil.copy(path, folder)
            rows = {"rows": limit} if limit else {}
            return {
                "architecture": "LlavaForConditionalGeneration with CLIP and Qwen2",
                "parameters": sum(p.numel() for p in model.parameters()),
                "command": f"python llava_repro/make_toy_model.py --seed {seed}",
                "trained_by": "llava_repro/train.py --toy, both stages",
                "seed": seed,
                "max_steps": max_steps,
                "recipe_hash": recipe_hash,
                "data_hash": read_manifest(data)["data_hash"],
                "towers": towers,
                "settings": toy_recipe.TRAINING,
                "figures": {
                    "stage_1": toy_figures.caption_figures(captioner, data, **rows),
                    "stage_2": toy_figures.answer_figures(folder, data, limit),
                },
                "training_seconds": seconds,
            }

        return write_checkpoint(output_dir, write)


def run_stage(stage: str, runs: Path, seed: int, max_steps: int) -> float:
    """One stage as a process of its own; its seconds. Raises UserError when it fails."""
    command = [
        *(sys.executable, str(REPO_ROOT / "llava_repro" / "train.py"), "--toy"),
        *("--stage", stage, "--seed", str(seed), "--output_dir", str(runs / stage)),
        *(("--projector", str(runs / "pretrain")) if stage == "finetune" else ()),
        *(("--max_steps", str(max_steps)) if max_steps else ()),
    ]
    start = time.perf_counter()
    if subprocess.run(command, cwd=REPO_ROOT).returncode:
        raise UserError(f"stage {stage} failed: {' '.join(command)}")
    return round(time.perf_counter() - start, 1)


if __name__ == "__main__":
    sys.exit(main())
