"""Two processes on the CPU (gloo): DDP learns what one process does, FSDP2 really shards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from shared.options import REPO_ROOT
from shared.training import read_curve

SCRIPT = REPO_ROOT / "llava_repro" / "train.py"
# any free port
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
          "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]  # fmt: skip

pytestmark = pytest.mark.slow


def flags(parts: tuple[Path, Path], data: Path, folder: Path, batch_size: int) -> list[str]:
    return [
        "--vision_tower", str(parts[0]), "--language_model", str(parts[1]), "--data", str(data),
        "--image_root", str(data.parent / "images"), "--output_dir", str(folder),
        "--stage", "finetune", "--projector", str(folder.parent / "projector.safetensors"),
        "--device", "cpu", "--max_steps", "8", "--per_device_train_batch_size", str(batch_size),
        "--learning_rate", "1e-2", "--warmup_steps", "0", "--validation_samples", "6",
        "--eval_steps", "8", "--save_steps", "8", "--logging_steps", "1",
        "--dataloader_num_workers", "0", "--disable_tqdm", "true",
    ]  # fmt: skip


@pytest.fixture
def parts(tiny_parts, tmp_path) -> tuple[Path, Path]:
    """A tower and a language model, and a projector of theirs in `tmp_path`."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    layers = {"0": torch.nn.Linear(32, 64), "2": torch.nn.Linear(64, 64)}
    save_file(
        {f"model.mm_projector.{i}.{n}": p.detach() for i, layer in layers.items()
         for n, p in layer.named_parameters()},
        tmp_path / "projector.safetensors",
    )  # fmt: skip
    return tiny_parts("clip", "qwen2")


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_curve(folder / "metrics.jsonl") if "loss" in row]


def test_two_processes_learn_what_one_does(parts, shared_conversations, tmp_path):
    """Rows in random order, two a process: in some steps one process has a picture and the other
    text alone, whose projector then has no part in the loss. The same losses and weights as four
    rows in one process."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone = [sys.executable, str(SCRIPT), *flags(parts, shared_conversations, one, 4)]
    both = [*LAUNCH, str(SCRIPT), *flags(parts, shared_conversations, two, 2)]
    for command in (alone, both):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert len(losses(one)) == 8
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
    evaluated = [read_curve(f / "metrics.jsonl")[-2]["eval_loss"] for f in (one, two)]
    assert evaluated[1] == pytest.approx(evaluated[0], rel=1e-3)
    ours, theirs = (load_file(f / "model" / "model.safetensors") for f in (one, two))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert (weight - theirs[name]).abs().max() < 5e-3, name
    assert mixed_steps(shared_conversations) > 0


def mixed_steps(data: Path) -> int:
    """Steps in which one process has text alone and the other a picture."""
    from llava_repro.training_data import ConversationSampler, choose_rows
    from shared.conversations import open_conversations

    rows, _ = choose_rows(open_conversations(data), limit=0, n_validation=6, seed=0)
    order = list(ConversationSampler(len(rows), batch_size=2, n_batches=2, seed=0))
    steps = [[bool(rows[i].get("image")) for i in order[k : k + 4]] for k in range(0, 32, 4)]
    return sum(any(step[:2]) != any(step[2:]) for step in steps)


SHARDING = '''
"""One step of LlavaForTraining, whole or sharded by torch's fully_shard; prints what it found."""
import json, os, sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from llava_repro import assembling
from llava_repro.train import parse
from llava_repro.trainable import LlavaForTraining
from llava_repro.training_data import ConversationCollator
from llava_repro.model import n_image_tokens
from pathlib import Path
from shared.conversations import open_conversations

options, training = parse(sys.argv[1:])
dist.init_process_group("gloo") if not dist.is_initialized() else None
rank = dist.get_rank()
assembled, _ = assembling.load_for_training(options, training, None)
model = LlavaForTraining(assembled.model, torch.float32)
collate = ConversationCollator(
    assembled.tokenizer, assembled.image_processor, None, max_length=2048,
    n_image_tokens=n_image_tokens(assembled.model.config), image_root=Path(options.image_root),
)
rows = open_conversations(options.data)
mine = [[rows[0], rows[1]], [rows[4], rows[9]]]  # pictures here, text alone there
batches = [{k: v for k, v in collate(b).items() if torch.is_tensor(v)} for b in mine]
n_items = sum(int((b["labels"][:, 1:] != -100).sum()) for b in batches)

def learn(model, own):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    found = []
    for _ in range(3):
        optimizer.zero_grad()
        # the processes' gradients are averaged: each counts as two
        scale = n_items / (2 if len(own) == 1 else 1)
        total = sum(model(**b, num_items_in_batch=scale)["loss"] for b in own)
        total.backward()
        optimizer.step()
        value = total.detach().clone()
        if len(own) == 1:
            dist.all_reduce(value)
            value = value / 2
        found.append(float(value))
    return found

import copy
whole = learn(copy.deepcopy(model), batches)
mesh = init_device_mesh("cpu", (2,))
for layer in model.model.language_model.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
weight = model.model.language_model.model.layers[0].mlp.up_proj.weight
projector = model.model.projector[0].weight
sharded = learn(model, [batches[rank]])
if rank == 0:
    print(json.dumps({
        "whole": whole, "sharded": sharded,
        "dtensors": [isinstance(p, DTensor) for p in model.parameters()],
        "layer": [list(weight.shape), list(weight.to_local().shape)],
        "projector": [list(projector.shape), list(projector.to_local().shape)],
    }))
dist.destroy_process_group()
'''


def test_fully_sharded_it_learns_the_same(parts, shared_conversations, tmp_path):
    """torch's FSDP2 on two processes: every parameter is a DTensor of which each process holds
    half, and three steps give the losses of one process, one batch being text alone."""
    script = tmp_path / "sharding.py"
    script.write_text(SHARDING, encoding="utf-8")
    command = [*LAUNCH, str(script), *flags(parts, shared_conversations, tmp_path / "run", 2)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO_ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith('{"whole"'))
    found = json.loads(line)
    assert all(found["dtensors"])
    assert found["layer"] == [[128, 64], [64, 64]]
    assert found["projector"] == [[64, 32], [32, 32]]
    assert found["sharded"] == pytest.approx(found["whole"], rel=1e-4)
    assert found["whole"][2] < found["whole"][0]
