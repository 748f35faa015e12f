"""train.py in two processes on the CPU (gloo): they learn what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwen_clip_llava_lora.train import main, parse
from shared.options import REPO_ROOT
from shared.training import read_curve
from tests.qwen_clip_llava_lora.test_train import STEPS, flags, write_data
from tests.tiny_models import tiny_folder


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """DDP on the CPU, rows of text alone among them: the weights of one process with the same
    batches, but for the order in which sums are rounded."""
    base, rows = tiny_folder("llava", tmp_path / "base"), write_data(tmp_path / "rows")
    more = ("--validation_answers", "0", "--learning_rate", "1e-3")
    main(*parse(flags(base, rows, tmp_path / "one", *more)))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend",
        "c10d", "--rdzv_endpoint", "localhost:0",
        str(REPO_ROOT / "qwen_clip_llava_lora" / "train.py"),
        *flags(base, rows, tmp_path / "two", *more, "--batch_size", "2"),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(REPO_ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [
        [row["loss"] for row in read_curve(tmp_path / run / "metrics.jsonl") if "loss" in row]
        for run in ("one", "two")
    ]
    assert len(losses[0]) == STEPS
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for name in ("adapter_model.safetensors", "projector.safetensors"):
        one, two = (load_file(tmp_path / run / "adapter" / name) for run in ("one", "two"))
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=0, atol=2e-4, msg=key)
