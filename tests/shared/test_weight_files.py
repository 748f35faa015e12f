"""Weights are read when asked, written shard by shard, and what is broken is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.options import UserError
from shared.weight_files import ShardWriter, Weight, grown, read_file, read_folder


def test_no_more_than_one_shard_waits_in_memory(tmp_path):
    writer = ShardWriter(tmp_path, limit=1000)
    waiting = []

    def tensors():
        for number in range(10):
            waiting.append(sum(tensor.nbytes for tensor in writer.waiting.values()))
            yield f"weight {number}", torch.full((100,), float(number))  # 400 bytes

    writer.add(tensors())
    writer.finish()
    assert max(waiting) <= 1000
    assert len(list(tmp_path.glob("model-*.safetensors"))) == 5
    assert {name: float(weight.read()[0]) for name, weight in read_folder(tmp_path).items()} == {
        f"weight {number}": number for number in range(10)
    }


def test_a_tensor_beyond_the_limit_is_a_shard_of_its_own(tmp_path):
    writer = ShardWriter(tmp_path, limit=100)
    writer.add([("small", torch.zeros(4)), ("large", torch.zeros(400)), ("last", torch.zeros(4))])
    writer.finish()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"].values()) == [
        f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    ]
    assert index["metadata"]["total_size"] == 4 * 408


def test_one_shard_is_one_file_without_an_index(tmp_path):
    writer = ShardWriter(tmp_path)
    writer.add([("a", torch.ones(2, 3).T)])  # not contiguous
    writer.finish()
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors")["a"].shape == (3, 2)


def test_grown_embeddings_keep_their_rows(tmp_path):
    old = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.bfloat16)
    weight = grown(Weight((2, 2), lambda: old), 5)
    assert weight.shape == (5, 2)
    assert weight.read().tolist() == [[1, 2], [3, 6], [2, 4], [2, 4], [2, 4]]
    assert weight.read().dtype == torch.bfloat16


def test_safetensors_are_read_before_bin(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert read_folder(tmp_path)["a"].read().tolist() == [0, 0]
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert read_folder(tmp_path)["a"].read().tolist() == [1, 1]


def test_broken_folders_are_named(tmp_path):
    with pytest.raises(UserError, match="no weights in it"):
        read_folder(tmp_path)
    assert read_folder(tmp_path, required=False) == {}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    with pytest.raises(UserError, match=r"incomplete, model-00001-of-00001\.safetensors missing"):
        read_folder(tmp_path)
    index.write_text("[]")
    with pytest.raises(UserError, match="not an index of weights"):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_cut_file_is_named(name, tmp_path):
    file = tmp_path / name
    if name.endswith("bin"):
        torch.save({"a": torch.zeros(1000)}, file)
    else:
        save_file({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(UserError, match="broken or incomplete"):
        read_file(file)


def test_a_bin_file_with_code_in_it_is_refused(tmp_path):
    torch.save({"a": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="more than tensors"):
        read_file(tmp_path / "pytorch_model.bin")
    torch.save(["a"], tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="not a table of tensors"):
        read_file(tmp_path / "pytorch_model.bin")


def test_a_full_disk_is_said(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        writer = ShardWriter(tmp_path)
        writer.add([("a", torch.zeros(1000))])
        with pytest.raises(UserError, match=r"shard-0.safetensors: cannot be written"):
            writer.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
