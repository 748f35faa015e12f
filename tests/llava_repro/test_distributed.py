"""Two processes on the CPU (gloo), DDP and FSDP2: they learn what one process does.

accelerate shards on GPUs only; for FSDP2 it is told that these processes have some (AS_ON_GPUS).
All else is as it is: its launcher with llava_repro/configs/fsdp2.yaml, torch's `fully_shard`,
train.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_repro.train import main, parse
from shared.options import REPO_ROOT
from shared.training import read_curve

SCRIPT = REPO_ROOT / "llava_repro" / "train.py"
# any free port
DDP = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
       "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", str(SCRIPT)]  # fmt: skip
FSDP2 = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
         str(REPO_ROOT / "llava_repro" / "configs" / "fsdp2.yaml"), "--num_processes", "2",
         "--main_process_port", "0"]  # fmt: skip

pytestmark = pytest.mark.slow


def flags(parts: tuple[Path, Path, Path], data: Path, folder: Path, *more: str) -> list[str]:
    """Eight steps of four rows; later flags win."""
    return [
        "--vision_tower", str(parts[0]), "--language_model", str(parts[1]), "--data", str(data),
        "--image_root", str(data.parent / "images"), "--output_dir", str(folder),
        "--stage", "finetune", "--projector", str(parts[2]),
        "--device", "cpu", "--max_steps", "8", "--global_batch_size", "4", "--batch_size", "2",
        "--learning_rate", "1e-2", "--warmup_steps", "0", "--validation_samples", "6",
        "--eval_steps", "8", "--save_steps", "4", "--logging_steps", "1",
        "--dataloader_num_workers", "0", "--disable_tqdm", "true", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def parts(tiny_parts, tmp_path_factory) -> tuple[Path, Path, Path]:
    """A tower, a language model, and a projector of theirs."""
    torch.manual_seed(0)
    layers = {"0": torch.nn.Linear(32, 64), "2": torch.nn.Linear(64, 64)}
    weights = {
        f"model.mm_projector.{i}.{name}": parameter.detach()
        for i, layer in layers.items()
        for name, parameter in layer.named_parameters()
    }
    projector = tmp_path_factory.mktemp("projector") / "projector.safetensors"
    save_file(weights, projector)
    return *tiny_parts("clip", "qwen2"), projector


def steps_of(data: Path) -> list[list[dict]]:
    """The rows of the first eight steps; the second process has the last two of each."""
    from shared.conversation_data import ConversationSampler, choose_rows
    from shared.conversations import open_conversations

    rows, _ = choose_rows(open_conversations(data), limit=0, n_validation=6, seed=0)
    order = list(ConversationSampler(len(rows), batch_size=2, n_batches=2, seed=0))
    return [[rows[i] for i in order[k : k + 4]] for k in range(0, 32, 4)]


@pytest.fixture(scope="module")
def spoiled(shared_conversations, tmp_path_factory) -> Path:
    """Conversations whose second process has in one step no usable sample, and in another step
    nobody has one: pictures with a whole header whose rest is missing."""
    data = tmp_path_factory.mktemp("spoiled") / "data"
    shutil.copytree(shared_conversations.parent, data)
    path = data / shared_conversations.name
    steps = steps_of(path)
    whole = [k for k, rows in enumerate(steps) if all(row.get("image") for row in rows)]
    half = [k for k, rows in enumerate(steps) if all(row.get("image") for row in rows[2:])]
    nobody = whole[0]
    alone = next(k for k in half if k != nobody)
    for row in [*steps[nobody], *steps[alone][2:]]:
        first = row["image"] if isinstance(row["image"], str) else row["image"][0]
        picture = data / "images" / first
        picture.write_bytes(picture.read_bytes()[:60])
    # and in some step one process has text alone and the other a picture
    have = [[bool(row.get("image")) for row in rows] for rows in steps]
    assert any(any(pictures[:2]) != any(pictures[2:]) for pictures in have)
    return path


@pytest.fixture(scope="module")
def one(parts, spoiled, tmp_path_factory) -> Path:
    """The run folder of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    main(*parse(flags(parts, spoiled, folder, "--batch_size", "4")))
    return folder


AS_ON_GPUS = '''
"""train.py; each process writes down what it holds of each parameter after the first batch."""
import json, sys
from accelerate import state
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from llava_repro.train import main, parse
from shared.training import VlmTrainer

start = state.AcceleratorState.__init__
step = VlmTrainer.training_step

def as_on_gpus(self, *args, fsdp_plugin=None, **settings):
    start(self, *args, fsdp_plugin=fsdp_plugin, **settings)
    if fsdp_plugin is not None:
        self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
        state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

def say_shards(self, model, inputs, n=None):
    loss = step(self, model, inputs, n)
    parts = {
        name: [isinstance(p, DTensor), list(p.shape), list(p.to_local().shape)]
        for name, p in model.named_parameters()
    }
    (self.folder / f"parts_{self.args.process_index}.json").write_text(json.dumps(parts))
    VlmTrainer.training_step = step
    return loss

state.AcceleratorState.__init__ = as_on_gpus
VlmTrainer.training_step = say_shards
main(*parse(sys.argv[1:]))
'''


@pytest.fixture(scope="module")
def sharded(parts, spoiled, tmp_path_factory) -> Callable[..., str]:
    """Run train.py into a folder, sharded over two processes; what was printed."""
    script = tmp_path_factory.mktemp("script") / "sharded.py"
    script.write_text(AS_ON_GPUS, encoding="utf-8")

    def run(folder: Path, *more: str) -> str:
        return launch([*FSDP2, str(script), *flags(parts, spoiled, folder, *more)])

    return run


@pytest.fixture(scope="module")
def two_sharded(sharded, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two_sharded") / "run"
    sharded(folder)
    return folder


def launch(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO_ROOT,
                          env=os.environ | {"PYTHONPATH": str(REPO_ROOT)})  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if line.startswith("[rank")]
    assert done.returncode == 0, "\n".join(ours[-40:]) or done.stderr[-4000:]
    return done.stdout


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_curve(folder / "metrics.jsonl") if "loss" in row]


def assert_same_weights(path: Path, other: Path, atol: float) -> None:
    ours, theirs = load_file(path), load_file(other)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert weight.shape == theirs[name].shape
        assert (weight.float() - theirs[name].float()).abs().max() <= atol, name


def assert_same_training(one: Path, two: Path) -> None:
    """Losses, validation, weights, and the samples that were left out of all processes."""
    assert len(losses(one)) == 8
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
    assert losses(one).count(0.0) == 1  # the step without a usable sample
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    assert metrics[1]["last"]["loss"] == pytest.approx(metrics[0]["last"]["loss"], rel=1e-3)
    assert metrics[0]["skipped_in_training"] == metrics[1]["skipped_in_training"] == 6
    assert_same_weights(one / "model" / "model.safetensors", two / "model" / "model.safetensors",
                        5e-3)  # fmt: skip


def test_two_processes_learn_what_one_does(one, parts, spoiled, tmp_path):
    """In random order: in some steps one process has a picture and the other text alone, whose
    projector then has no part in the loss; one has bad samples only; both have."""
    launch([*DDP, *flags(parts, spoiled, tmp_path / "two")])
    assert_same_training(one, tmp_path / "two")


def test_sharded_over_two_processes_it_learns_what_one_does(one, two_sharded):
    """Every parameter is a DTensor of which each process holds half; checkpoint and result are
    those of one process."""
    folder = two_sharded
    for rank in (0, 1):
        parameters = json.loads((folder / f"parts_{rank}.json").read_text())
        assert all(is_sharded for is_sharded, *_ in parameters.values())
        layer = parameters["model.language_model.model.layers.0.mlp.up_proj.weight"]
        assert layer == [True, [128, 64], [64, 64]]
        assert parameters["model.projector.0.weight"] == [True, [64, 32], [32, 32]]
    assert_same_training(one, folder)
    whole, gathered = (f / "checkpoint-8" / "trainable.safetensors" for f in (one, folder))
    assert_same_weights(whole, gathered, 5e-3)
    assert {path.name for path in (folder / "checkpoint-8").glob("optimizer*")} == {
        "optimizer_0.pt", "optimizer_1.pt",
    }  # fmt: skip
    from transformers import LlavaForConditionalGeneration

    _, keys = LlavaForConditionalGeneration.from_pretrained(
        folder / "model", output_loading_info=True
    )
    assert [sorted(keys[k]) for k in ("missing_keys", "unexpected_keys")] == [[], []]


def test_a_sharded_training_continues_bit_for_bit(two_sharded, sharded, tmp_path):
    """From its checkpoint after step 4, each process with its part of the optimizer's state."""
    folder = two_sharded
    again = tmp_path / "run"
    shutil.copytree(folder, again)
    for name in ("checkpoint-8", "model"):
        shutil.rmtree(again / name)
    (again / "metrics.json").unlink()
    assert "continuing from checkpoint-4" in sharded(again)
    for name in ("checkpoint-8/trainable.safetensors", "model/model.safetensors"):
        assert_same_weights(folder / name, again / name, 0)
    assert losses(again) == losses(folder)


def test_sharded_lora_is_merged_and_saved_whole(parts, spoiled, sharded, tmp_path):
    """LoRA in fp32 on a bf16 model, batches accumulated, activations recomputed: the losses of one
    process but for rounding; adapter and merged model hold the weights of the last checkpoint."""
    more = ("--train_type", "lora", "--dtype", "bfloat16", "--lora_rank", "4", "--lora_alpha", "8",
            "--save_model", "--activation_checkpointing")  # fmt: skip
    main(*parse(flags(parts, spoiled, tmp_path / "one", *more, "--batch_size", "4")))
    folder = tmp_path / "two"
    sharded(folder, *more, "--batch_size", "1")
    assert losses(folder) == pytest.approx(losses(tmp_path / "one"), rel=0.03)
    trained = load_file(folder / "checkpoint-8" / "trainable.safetensors")
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    projector = load_file(folder / "adapter" / "projector.safetensors")
    assert len(trained) == len(adapter) + len(projector) == 2 * 2 * 7 + 4
    for name, weight in adapter.items():
        name = name.removeprefix("base_model.model.").removesuffix("weight") + "default.weight"
        assert torch.equal(weight, trained[f"model.language_model.{name}"])
    for name, weight in projector.items():
        assert torch.equal(weight, trained[name.replace("mm_projector", "projector")])
    layer = "model.layers.1.mlp.up_proj"
    base = load_file(parts[1] / "model.safetensors")[f"{layer}.weight"]
    a, b = (adapter[f"base_model.model.{layer}.lora_{m}.weight"] for m in "AB")
    merged = load_file(folder / "model" / "model.safetensors")
    change = merged[f"language_model.{layer}.weight"].float() - base
    assert change.abs().max() > 0.02
    torch.testing.assert_close(change, 8 / 4 * b @ a, atol=4e-3, rtol=0)
