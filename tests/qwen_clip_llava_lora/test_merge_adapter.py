"""merge_adapter.py: each family's adapter goes into its base, and what cannot go is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_clip_llava_lora import adapter_merging, merge_adapter
from qwen_clip_llava_lora.merge_settings import MergeAdapterOptions, toy_adapter_defaults
from shared.loading import fingerprint
from shared.options import MissingError, UserError, parse_options
from tests.tiny_models import KINDS, tiny_folder

TARGETS = r".*language_model.*\.(q_proj|v_proj|down_proj)"
PROJECTOR = {
    "llava": "model.multi_modal_projector.linear_2.weight",
    "qwen2_vl": "model.visual.merger.mlp.2.weight",
    "qwen2_5_vl": "model.visual.merger.mlp.2.weight",
    "qwen3_vl": "model.visual.merger.linear_fc2.weight",
    "minicpmv4_6": "model.merger.",
}


def run(*argv: Any) -> None:
    merge_adapter.main(
        parse_options(
            MergeAdapterOptions,
            description="",
            argv=[str(word) for word in argv],
            toy_defaults=toy_adapter_defaults(),
        )
    )


def load(folder: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    model, found = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    return model.eval()


def write_adapter(base: Path, folder: Path, *, projector: bool = True, **settings: Any) -> Path:
    """What train.py leaves: LoRA with weights that matter by peft itself, projector, manifest."""
    from peft import LoraConfig, get_peft_model

    model = load(base)
    folder.mkdir(parents=True)
    kind = model.config.model_type
    if projector:
        (name,) = [n for n in model.state_dict() if n.startswith(PROJECTOR[kind])
                   and n.endswith("weight") and model.state_dict()[n].dim() == 2][-1:]  # fmt: skip
        trained = model.state_dict()[name].clone() + 0.1 * torch.randn(
            model.state_dict()[name].shape, generator=torch.Generator().manual_seed(1)
        )
        save_file({name: trained}, folder / "projector.safetensors")
    if settings.get("r") != 0:
        values = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS} | settings
        torch.manual_seed(3)
        view = get_peft_model(model, LoraConfig(**values))
        for name, weight in view.named_parameters():
            if ".lora_B." in name:
                weight.data.normal_(std=0.3)
            elif "magnitude" in name:
                weight.data *= 1 + 0.2 * torch.rand_like(weight)
        view.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
    manifest = {
        "base_model": str(base), "base_fingerprint": fingerprint(base), "family": kind,
        "parts": {"model": str(base)}, "preset": "course", "train_type": "lora",
        "synthetic": True, "seed": 0, "image_aspect_ratio": "square" if kind == "llava" else None,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny folder of a kind, written once."""
    root = tmp_path_factory.mktemp("bases")

    def write(kind: str = "llava") -> Path:
        if not (root / kind).exists():
            tiny_folder(kind, root / kind)
        return root / kind

    return write


def asked(folder: Path, pictures: list[Any], adapter: Path | None = None) -> tuple[Any, list[str]]:
    """Logits of the first token and whole answers."""
    from shared.vision_language import load_vision_language

    model = load_vision_language(
        str(folder), adapter=None if adapter is None else str(adapter), max_new_tokens=6
    )
    features = model.encode_images(pictures[:2])
    prompts = ["What is it?", "What is it?", "And now?"]
    logits = model.start(features, [0, 1, None], prompts).logits
    answers = model.answer(features, [0, 1, None], prompts)
    return logits, [answer.raw_output for answer in answers]


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_answers_as_with_its_adapter(kind, base, pictures, tmp_path, capsys):
    adapter = write_adapter(base(kind), tmp_path / "run" / "adapter")
    run("--adapter", tmp_path / "run", "--output_dir", tmp_path / "merged")
    out = capsys.readouterr().out
    assert "largest logit difference" in out
    assert "first tokens the same" in out
    before, answers = asked(base(kind), pictures, adapter)
    after, merged_answers = asked(tmp_path / "merged", pictures)
    plain, _ = asked(base(kind), pictures)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    assert merged_answers == answers
    assert (before - plain).abs().max() > 0.01 * before.abs().max()  # it did change something


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_that_peft_merges(kind, base, tmp_path):
    """Plain transformers loads the folder; vision tower and all that was not trained are the
    base's to the bit; the rest is peft's merge."""
    from peft import PeftModel

    adapter = write_adapter(base(kind), tmp_path / "adapter")
    run("--adapter", adapter, "--output_dir", tmp_path / "merged", "--no_check")
    merged, before = load(tmp_path / "merged").state_dict(), load(base(kind)).state_dict()
    trained = load_file(adapter / "projector.safetensors")
    model = load(base(kind))
    model.load_state_dict(model.state_dict() | trained)
    wanted = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    changed = {name for name in before if not torch.equal(merged[name], before[name])}
    layers = {name for name in changed if "language_model" in name}
    assert changed - layers == set(trained)
    assert {name.split(".")[-2] for name in layers} == {"q_proj", "v_proj", "down_proj"}
    for name in before:
        torch.testing.assert_close(merged[name], wanted[name], rtol=1e-5, atol=1e-6)
    assert set(load_file(tmp_path / "merged" / "model.safetensors")) == set(
        load_file(base(kind) / "model.safetensors")
    )


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"use_dora": True},
                                      {"rank_pattern": {"q_proj": 2}}])  # fmt: skip
def test_other_kinds_of_lora_are_merged_as_peft_does(settings, base, tmp_path):
    from peft import PeftModel

    adapter = write_adapter(base(), tmp_path / "adapter", projector=False, **settings)
    run("--adapter", adapter, "--output_dir", tmp_path / "merged")
    wanted = PeftModel.from_pretrained(load(base()), adapter).merge_and_unload().state_dict()
    for name, tensor in load(tmp_path / "merged").state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-4, atol=1e-5)


def test_a_projector_alone_is_an_adapter_too(base, pictures, tmp_path):
    adapter = write_adapter(base(), tmp_path / "adapter", r=0)
    assert not (adapter / "adapter_config.json").exists()
    run("--adapter", adapter, "--output_dir", tmp_path / "merged")
    before, after = (load_file(f / "model.safetensors") for f in (base(), tmp_path / "merged"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["multi_modal_projector.linear_2.weight"]


def test_the_folder_says_where_it_comes_from(base, tmp_path):
    adapter = write_adapter(base(), tmp_path / "adapter")
    run("--adapter", adapter, "--output_dir", tmp_path / "merged", "--shard_gb", 1e-4)
    manifest = json.loads((tmp_path / "merged" / "manifest.json").read_text())
    assert manifest["base_fingerprint"] == fingerprint(base())
    assert manifest["parts"] == {"model": str(base()), "adapter": str(adapter)}
    assert set(manifest["adapter_hashes"]) == {"adapter_model.safetensors", "projector.safetensors"}
    assert manifest["synthetic"] is True
    assert manifest["preset"] == "course"
    assert 0 <= manifest["largest_logit_difference"] < 1e-2
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["image_aspect_ratio"] == "square"
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 3
    names = {file.name for file in (tmp_path / "merged").iterdir()}
    assert {"tokenizer.json", "processor_config.json", "generation_config.json"} <= names
    assert "adapter_config.json" not in names


def bfloat16_base(folder: Path) -> Path:
    from shutil import copytree

    copytree(tiny_folder("llava", folder / "fp32"), folder / "bf16")
    tensors = load_file(folder / "bf16" / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()},
              folder / "bf16" / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    return folder / "bf16"


def test_rounding_is_told_and_bounded(tmp_path, capsys):
    """Merged bfloat16 weights are rounded once more: beyond the bound of float32, within its own.
    Stored in float32 they are not."""
    adapter = write_adapter(bfloat16_base(tmp_path), tmp_path / "adapter")
    run("--adapter", adapter, "--output_dir", tmp_path / "rounded")
    assert "allowed: 0.05" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"differ by .*nothing was written.*--dtype float32"):
        run("--adapter", adapter, "--output_dir", tmp_path / "refused", "--max_difference", 1e-4)
    assert not (tmp_path / "refused").exists()
    assert not list(tmp_path.glob(".unfinished*"))
    run("--adapter", adapter, "--output_dir", tmp_path / "exact", "--dtype", "float32",
        "--max_difference", 1e-4)  # fmt: skip
    stored = load_file(tmp_path / "exact" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert json.loads((tmp_path / "exact" / "config.json").read_text())["dtype"] == "float32"


def test_a_wrong_merge_is_found(base, tmp_path, monkeypatch):
    """With the scale of rsLoRA where the adapter has the plain one, nothing is written."""
    adapter = write_adapter(base(), tmp_path / "adapter")
    read = adapter_merging.read_lora
    monkeypatch.setattr(
        adapter_merging,
        "read_lora",
        lambda folder, config: read(folder, {**config, "use_rslora": True}),
    )
    with pytest.raises(UserError, match="base with adapter and merged model differ by"):
        run("--adapter", adapter, "--output_dir", tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


# What is refused


def changed_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(("values", "message"), [
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\].*merge_and_unload"),
    ({"bias": "lora_only"}, "bias is 'lora_only'"),
    ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern is"),
    ({"use_dora": True}, "lora_magnitude_vector is missing"),
])  # fmt: skip
def test_adapters_of_other_kinds_are_refused(values, message, base, tmp_path):
    adapter = write_adapter(base(), tmp_path / "adapter")
    changed_json(adapter / "adapter_config.json", **values)
    with pytest.raises(UserError, match=message):
        run("--adapter", adapter, "--output_dir", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_base_is_refused(base, tmp_path):
    adapter = write_adapter(base(), tmp_path / "adapter")
    other = tiny_folder("llava", tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=r"was trained on .*fingerprint"):
        run("--adapter", adapter, "--model", other, "--output_dir", tmp_path / "merged")


def test_a_quantised_base_is_refused(base, tmp_path):
    adapter = write_adapter(base(), tmp_path / "adapter")
    quantised = tiny_folder("llava", tmp_path / "quantised")
    changed_json(quantised / "config.json", quantization_config={"load_in_4bit": True})
    with pytest.raises(UserError, match="its weights are quantised"):
        run("--adapter", adapter, "--model", quantised, "--output_dir", tmp_path / "merged")


def test_without_a_manifest_shapes_decide(base, tmp_path, capsys):
    adapter = write_adapter(base(), tmp_path / "adapter", projector=False)
    (adapter / "manifest.json").unlink()
    with pytest.raises(UserError, match="give --model"):
        run("--adapter", adapter, "--output_dir", tmp_path / "merged")
    run("--adapter", adapter, "--model", base(), "--output_dir", tmp_path / "merged", "--dry_run")
    assert "only shapes are checked" in capsys.readouterr().out
    wide = write_adapter(base("qwen2_vl"), tmp_path / "qwen", projector=False)
    (wide / "manifest.json").unlink()
    tensors = load_file(wide / "adapter_model.safetensors")
    tensors[next(name for name in tensors if "lora_A" in name)] = torch.zeros(4, 32)
    save_file(tensors, wide / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"was \(.*\) in training, here"):
        run("--adapter", wide, "--model", base("qwen2_vl"), "--output_dir", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(("file", "content", "message"), [
    ("adapter_model.safetensors", {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight":
     (4, 64), "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": (64, 4)},
     r"has no layer model.layers.0.self_attn.q_proj \(an adapter of llava_repro"),
    ("adapter_model.safetensors", {"base_model.model.lm_head.weight": (320, 64)},
     "no matrix of a linear layer"),
    ("adapter_model.safetensors", {"base_model.model.a.lora_A.weight": (4, 64)},
     "of layer a lora_B is missing"),
    ("projector.safetensors", {"model.nothing.weight": (2, 2)}, "is no parameter of"),
    ("projector.safetensors", {"model.multi_modal_projector.linear_1.weight": (2, 2)},
     r"where it is \(64, 32\)"),
])  # fmt: skip
def test_weights_that_have_no_place_are_refused(file, content, message, base, tmp_path):
    adapter = write_adapter(base(), tmp_path / "adapter")
    save_file({name: torch.zeros(shape) for name, shape in content.items()}, adapter / file)
    with pytest.raises(UserError, match=message):
        run("--adapter", adapter, "--output_dir", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_folders_that_are_none(base, tmp_path):
    with pytest.raises(UserError, match="give --adapter"):
        run("--output_dir", tmp_path / "merged")
    with pytest.raises(MissingError, match=r"train\.py makes one"):
        run("--adapter", tmp_path / "none", "--output_dir", tmp_path / "merged")
    with pytest.raises(UserError, match="not an adapter folder"):
        run("--adapter", base(), "--output_dir", tmp_path / "merged")
    adapter = write_adapter(base(), tmp_path / "adapter")
    with pytest.raises(UserError, match="exists and is not empty"):
        run("--adapter", adapter, "--output_dir", adapter)
    with pytest.raises(UserError, match="give --output_dir"):
        run("--adapter", adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="broken or incomplete"):
        run("--adapter", adapter, "--output_dir", tmp_path / "merged")
