"""From a name to a model: what is refused, what is quantised, and which adapter fits which base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip2_qlora.blip2 import (
    COMPONENTS,
    LORA_TARGETS,
    Blip2Answerer,
    Decoding,
    load_blip2,
    read_config,
)
from blip2_qlora.planning import count_parameters, estimate_memory, quantizable_parameters
from shared import loading
from shared.loading import (
    GIB,
    MemoryEstimate,
    adapter_fingerprint,
    fingerprint,
    model_folder,
    pick_device,
    pick_dtype,
    quantization_config,
    trainable_report,
    weight_bytes,
)
from shared.options import MissingError, ModelOptions, UserError, write_json

WEIGHTS = "model.safetensors"
ADAPTER = "adapter_model.safetensors"


def load(folder: Path, adapter: Path | None = None, **options: Any):
    return load_blip2(
        ModelOptions(model=str(folder), device="cpu", **options), adapter and str(adapter)
    )


def copy_of(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


def answers(model, processor, pictures) -> list[str]:
    answerer = Blip2Answerer(model, processor, Decoding(num_beams=1))
    prompts = ["Question: what color is the circle? Answer:", "Question: how many? Answer:"]
    features = answerer.encode_images(pictures)
    found = answerer.answer(features, [0, 1, 2, 0, 1, 2], [p for p in prompts for _ in range(3)])
    return [answer.raw_output for answer in found]


# Where a model is


def test_a_missing_model_names_both_commands():
    with pytest.raises(MissingError) as missing:
        model_folder("Salesforce/blip2-of-nobody")
    what, real, toy = str(missing.value).splitlines()
    assert what == "the model Salesforce/blip2-of-nobody is not on this machine."
    assert "python -m shared.download Salesforce/blip2-of-nobody" in real
    assert "--toy" in toy


@pytest.mark.parametrize("name", ["/no/such", "./no/such", "../such", "outputs/some/run/model"])
def test_a_missing_folder_is_none_to_download(name):
    with pytest.raises(MissingError, match="no such folder") as missing:
        model_folder(name)
    assert name in str(missing.value)
    assert "download" not in str(missing.value)


def test_a_file_is_no_model_and_none_to_download(tmp_path):
    """Its weight file, usually: the advice to download it would be wrong."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(
        UserError, match=r"model.safetensors: a file; --model takes the folder"
    ) as e:
        model_folder(str(file))
    assert not isinstance(e.value, MissingError)


def test_a_folder_without_config_is_named(tmp_path):
    """Usually the folder above the right one, or a run folder."""
    with pytest.raises(UserError, match=r"no config.json in it, so it is not a model folder"):
        model_folder(str(tmp_path))


def test_a_downloaded_hub_id_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "DATA_ROOT", tmp_path)
    folder = tmp_path / "models" / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert model_folder("org/name") == folder
    assert model_folder(str(folder)) == folder


def test_a_path_that_is_no_hub_id_is_not_looked_up():
    """`../x` and absolute paths would be refused by the Hub's own check with another error."""
    for name in ("../somewhere", "/nowhere/at/all", "a/b/c", "nothing"):
        with pytest.raises(MissingError):
            model_folder(name)


def test_another_kind_of_model_is_named(tiny_blip2_opt, tmp_path):
    folder = copy_of(tiny_blip2_opt, tmp_path / "m")
    edit_json(folder / "config.json", model_type="blip")
    with pytest.raises(UserError, match="a blip model; this experiment needs a BLIP-2"):
        load(folder)


# Device and dtype


class FakeCuda:
    """A machine with `count` GPUs that compute in bfloat16 or don't."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: bf16)


def test_auto_takes_the_gpu_when_there_is_one(monkeypatch):
    FakeCuda(monkeypatch, 0)
    assert pick_device("auto") == torch.device("cpu")
    FakeCuda(monkeypatch, 2)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("cuda:1") == torch.device("cuda:1")


def test_absent_devices_are_named(monkeypatch):
    FakeCuda(monkeypatch, 0)
    with pytest.raises(UserError, match=r"--device cuda: this torch sees no GPU; .*shared.doctor"):
        pick_device("cuda")
    FakeCuda(monkeypatch, 1)
    with pytest.raises(UserError, match=r"--device cuda:1: this machine has 1 GPU"):
        pick_device("cuda:1")
    with pytest.raises(UserError, match=r"--device gpu: not a device name \(auto, cpu, cuda"):
        pick_device("gpu")


@pytest.mark.parametrize(
    ("requested", "device", "bf16", "expected"),
    [
        ("auto", "cpu", True, torch.float32),
        ("auto", "cuda", True, torch.bfloat16),
        ("auto", "cuda", False, torch.float16),
        ("bfloat16", "cpu", False, torch.bfloat16),
        ("float32", "cuda", True, torch.float32),
        ("float16", "cuda", True, torch.float16),
    ],
)
def test_dtype_rules(monkeypatch, requested, device, bf16, expected):
    FakeCuda(monkeypatch, 1, bf16)
    assert pick_dtype(requested, torch.device(device)) == expected


# Weights


def test_a_truncated_weight_file_is_named(tiny_blip2_opt, tmp_path):
    """A download that stopped used to end in a SafetensorError with a traceback."""
    folder = copy_of(tiny_blip2_opt, tmp_path / "m")
    content = (folder / WEIGHTS).read_bytes()
    for kept in (len(content) // 2, 20, 0):
        (folder / WEIGHTS).write_bytes(content[:kept])
        with pytest.raises(UserError, match=r"broken or incomplete .*download the model again"):
            load(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match="the model cannot be loaded"):
        load(folder)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_weight_that_is_not_in_the_files_is_an_error(tiny_blip2_opt, tmp_path, quantization):
    """transformers fills it with random numbers and warns; the figures would be garbage."""
    folder = copy_of(tiny_blip2_opt, tmp_path / "m")
    name = "language_model.model.decoder.layers.1.fc1.weight"
    edit_weights(folder / WEIGHTS, lambda weights: weights.pop(name))
    with pytest.raises(UserError, match=rf"1 weights are not in its files \({name}.*random"):
        load(folder, quantization=quantization)


def test_a_weight_of_another_shape_is_an_error(tiny_blip2_opt, tmp_path):
    folder = copy_of(tiny_blip2_opt, tmp_path / "m")
    name = "language_model.model.decoder.layers.1.fc1.weight"
    edit_weights(
        folder / WEIGHTS, lambda weights: weights.update({name: weights[name][:5].contiguous()})
    )
    with pytest.raises(UserError, match="the model cannot be loaded"):
        load(folder)


class Payload:
    """What a pickle must not be able to do: call a function while it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def with_bin_weights(folder: Path, to: Path) -> Path:
    """The same model as its authors would have saved it before safetensors."""
    copy_of(folder, to)
    torch.save(load_file(to / WEIGHTS), to / "pytorch_model.bin")
    (to / WEIGHTS).unlink()
    return to


def test_bin_weights_are_read_where_there_are_no_safetensors(tiny_blip2_opt, tmp_path):
    pickled = with_bin_weights(tiny_blip2_opt, tmp_path / "bin")
    found, expected = (load(f)[0].state_dict() for f in (pickled, tiny_blip2_opt))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_safetensors_are_read_and_not_the_bin_file_beside_them(tiny_blip2_opt, tmp_path):
    folder = copy_of(tiny_blip2_opt, tmp_path / "both")
    torch.save({"x": Payload(tmp_path / "ran")}, folder / "pytorch_model.bin")
    load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_bin_file_that_would_run_code_is_refused(tiny_blip2_opt, tmp_path):
    folder = with_bin_weights(tiny_blip2_opt, tmp_path / "bin")
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(weights | {"x": Payload(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="could run code: refused"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_large_bin_weights_are_no_small_model_and_differ_in_their_fingerprint(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for i, folder in enumerate(folders):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        torch.save({"w": torch.full((8,), i)}, folder / "pytorch_model.bin")
    assert fingerprint(folders[0]) != fingerprint(folders[1])
    assert [f.name for f in loading.weight_files(folders[0])] == ["pytorch_model.bin"]
    save_file({"w": torch.zeros(8)}, folders[0] / WEIGHTS)
    assert [f.name for f in loading.weight_files(folders[0])] == [WEIGHTS]


def test_a_model_s_own_code_is_not_run(tiny_blip2_opt, tmp_path):
    folder = copy_of(tiny_blip2_opt, tmp_path / "m")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    edit_json(folder / "config.json", auto_map={"AutoConfig": "own.C", "AutoModel": "own.M"})
    load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_processor_that_is_missing_is_named(tiny_blip2_opt, tmp_path):
    folder = copy_of(tiny_blip2_opt, tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="the processor cannot be loaded"):
        load(folder)


# 4 and 8 bit


def quantised_layers(model: torch.nn.Module) -> set[str]:
    import bitsandbytes

    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return {name for name, module in model.named_modules() if isinstance(module, kinds)}


def exact_count(layer: torch.nn.Module) -> int:
    return layer.in_features * layer.out_features


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_models_answer_on_a_cpu(tiny_blip2, pictures, quantization, caplog):
    """And only the language model's linear layers are quantised, its head and the rest are not.

    transformers leaves T5's `wo` as it is (modeling_t5.py, _keep_in_fp32_modules).
    """
    model, processor = load(tiny_blip2, quantization=quantization)
    found = answers(model, processor, pictures)
    assert caplog.text == ""  # 8-bit layers used to write a line at every call
    assert len(found) == 6
    assert all(found)
    assert len(set(found)) > 2  # the pictures matter still
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and "language_model." in name
        and not name.endswith(("lm_head", ".wo"))
    }
    assert quantised_layers(model) == linear
    assert len(linear) >= 12
    assert sum(exact_count(model.get_submodule(name)) for name in linear) == (
        quantizable_parameters(model.config)  # what --dry_run reckons with
    )
    for name, parameter in model.named_parameters():
        if not any(name.startswith(layer) for layer in linear):
            assert parameter.dtype == torch.float32, name


def test_nf4_is_double_quantised_and_near_its_original(tiny_blip2_opt):
    """QLoRA, section 3: 4-bit NormalFloat, its constants quantised once more."""
    import bitsandbytes

    exact, _ = load(tiny_blip2_opt)
    model, _ = load(tiny_blip2_opt, quantization="nf4")
    name = "language_model.model.decoder.layers.0.fc1"
    weight = model.get_submodule(name).weight
    assert weight.quant_state.quant_type == "nf4"
    assert weight.quant_state.nested
    back = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    original = exact.get_submodule(name).weight
    assert 0 < float(((back - original).norm() / original.norm()).detach()) < 0.15


def test_no_layer_repacks_itself_in_an_evaluation(tiny_blip2_opt, monkeypatch):
    """bitsandbytes 0.50 does on CPUs with AVX512-BF16 (here every CPU says that it has it), and
    then has no gradients any more."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model, _ = load(tiny_blip2_opt, quantization="nf4")
    layers = [model.get_submodule(name) for name in quantised_layers(model)]
    assert [layer.support_avx512bf16_for_cpu for layer in layers] == [False] * 12


def test_missing_bitsandbytes_says_what_to_use(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"pip install bitsandbytes, or use --quantization none"):
        quantization_config("nf4", torch.float32, ())
    assert quantization_config("none", torch.float32, ()) is None


# What fits


def test_weight_bytes_by_hand():
    counts = {"language model": 1000, "vision tower": 10}
    sizes = {q: weight_bytes(counts, ("language model",), q, 2) for q in ("none", "int8", "nf4")}
    # 2 bytes each; 1 byte and 2 bytes; 4.127 bits and 2 bytes
    assert sizes == {"none": 2020, "int8": 1020, "nf4": pytest.approx(515.875 + 20)}


def test_what_fits_by_hand():
    """A card of 8 GB is taken for 7.6 GiB usable: 95 %."""
    fits = MemoryEstimate(weights=4.0, trainable=1.5, activations=1.0)
    assert fits.total == 7.5
    assert "about 7.5 GiB (weights 4.0, training state 1.5, activations 1.0, overhead 1.0)" in str(
        fits
    )
    assert str(fits).endswith("8 GB: fits, 16 GB: fits, 24 GB: fits")
    tight = MemoryEstimate(weights=4.0, trainable=1.5, activations=1.2)
    assert str(tight).endswith("8 GB: does not fit, 16 GB: fits, 24 GB: fits")
    large = MemoryEstimate(weights=30, trainable=0, activations=0)
    assert str(large).count("does not fit") == 3


def test_the_estimate_of_the_real_model_by_hand():
    """blip2-opt-2.7b, 3.745 B weights. OPT has 32 layers of width 2560 with 12 x 2560² in linear
    layers: 2.517 B in NF4 at 4.127 bits; the rest, embeddings and all, in bfloat16."""
    config = read_config("Salesforce/blip2-opt-2.7b")
    common = {"quantization": "nf4", "dtype": torch.bfloat16, "prompt_tokens": 12,
              "answer_tokens": 4}  # fmt: skip
    answering = estimate_memory(config, pictures=0, questions=10, num_beams=5, **common)
    packed = 32 * 12 * 2560**2
    rest = 3.745e9 - packed
    assert answering.weights == pytest.approx((packed * 4.127 / 8 + rest * 2) / GIB, rel=1e-3)
    assert answering.trainable == 0
    # key-value cache: 10 questions x 48 tokens x 5 beams x 2 x 2560 x 2 bytes x 32 layers
    assert answering.activations == pytest.approx(10 * 48 * 5 * 2 * 2560 * 2 * 32 / GIB)
    training = estimate_memory(config, pictures=0, questions=10, n_trainable=10**8, **common)
    assert training.trainable == pytest.approx(16e8 / GIB)  # fp32 weight, gradient, two moments
    # 34 bytes a width and layer, and LoRA's 18 values in fp32
    assert training.activations == pytest.approx(10 * 48 * (34 + 18 * 4) * 2560 * 32 / GIB)


def test_recomputing_activations_is_in_the_estimate():
    """--activation_checkpointing: each layer keeps its input, one at a time is whole. The plan used
    to ask for the same memory with and without."""
    config = read_config("Salesforce/blip2-opt-2.7b")
    common = {"quantization": "nf4", "dtype": torch.bfloat16, "pictures": 0, "questions": 10,
              "prompt_tokens": 12, "answer_tokens": 4, "n_trainable": 10**8}  # fmt: skip
    whole = 34 + 18 * 4
    every, second = (
        estimate_memory(config, recompute_every=n, **common).activations for n in (1, 2)
    )
    assert every == pytest.approx(480 * 2560 * (32 * 2 + whole) / GIB)
    assert second == pytest.approx(480 * 2560 * (16 * 2 + 17 * whole) / GIB)


def test_the_estimate_of_t5_by_hand():
    """Flan-T5 XL: 24 + 24 layers of width 2048. The decoder sees the four tokens of an answer, and
    keeps keys and values of the 44 that the encoder read; it used to be charged for all 48."""
    config = read_config("Salesforce/blip2-flan-t5-xl")
    common = {"quantization": "nf4", "dtype": torch.bfloat16, "pictures": 0, "questions": 10,
              "prompt_tokens": 12, "answer_tokens": 4}  # fmt: skip
    read, written = 10 * 44, 10 * 4
    answering = estimate_memory(config, num_beams=5, **common)
    assert answering.activations == pytest.approx(
        (read + written) * 24 * 5 * 2 * 2048 * 2 / GIB  # cross and self, beams, K and V, bytes
    )
    training = estimate_memory(config, n_trainable=1, **common)
    whole, keys_and_values = 34 + 18 * 4, 2 * 2 + 2 * 2 * 4
    assert training.activations == pytest.approx(
        2048 * 24 * ((read + written) * whole + read * keys_and_values) / GIB
    )


def test_parameters_are_counted_per_component_also_in_4_bit(tiny_blip2_opt):
    """4-bit weights are stored two to a byte; they used to be counted as half."""
    exact, _ = load(tiny_blip2_opt)
    packed, _ = load(tiny_blip2_opt, quantization="nf4")
    for model in (exact, packed):
        model.requires_grad_(False)
        model.query_tokens.requires_grad_(True)
    counted = trainable_report(exact, COMPONENTS)
    assert counted == trainable_report(packed, COMPONENTS)
    assert {name: c["parameters"] for name, c in counted.items()} == count_parameters(exact.config)
    assert {name for name, c in counted.items() if c["trainable"]} == {"query tokens"}
    assert counted["query tokens"] == {"parameters": 4 * 64, "trainable": 4 * 64}


# Fingerprints


def test_a_copy_has_the_same_fingerprint(tiny_blip2_opt, tmp_path):
    folder = copy_of(tiny_blip2_opt, tmp_path / "m")
    edit_json(folder / "config.json", transformers_version="4.0", dtype="bfloat16")
    (folder / "README.md").write_text("a model card")
    assert fingerprint(folder) == fingerprint(tiny_blip2_opt)


def test_another_base_has_another_fingerprint(tiny_blip2_opt, tmp_path):
    folder = copy_of(tiny_blip2_opt, tmp_path / "m")

    def nudge(weights: dict[str, torch.Tensor]) -> None:
        weights["vision_model.post_layernorm.bias"][-1] += 1e-3

    edit_weights(folder / WEIGHTS, nudge)
    assert fingerprint(folder) != fingerprint(tiny_blip2_opt)
    other = copy_of(tiny_blip2_opt, tmp_path / "config_differs")
    edit_json(other / "config.json", num_query_tokens=5)
    assert fingerprint(other) != fingerprint(tiny_blip2_opt)


def test_a_large_base_that_differs_late_has_another_fingerprint(tmp_path):
    """A base with a merged adapter starts with the same embeddings; the first mebibyte was read."""
    folders = []
    for name, late in (("base", 0.0), ("merged", 1.0)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        tensors = {
            "a_embedding": torch.zeros(6 * 1024**2, dtype=torch.int8),
            "b_layers": torch.full((3 * 1024**2,), late),
        }
        save_file(tensors, folder / WEIGHTS)
        folders.append(folder)
    assert fingerprint(folders[0]) != fingerprint(folders[1])


# Adapters


@pytest.fixture(scope="module")
def plain_adapter(tiny_blip2_opt, tmp_path_factory) -> Path:
    """A PEFT folder as other programs write it: no manifest, no processor."""
    from peft import LoraConfig, get_peft_model

    model, _ = load(tiny_blip2_opt)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=LORA_TARGETS["opt"]))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def test_a_plain_peft_folder_loads_with_a_warning(tiny_blip2_opt, plain_adapter, pictures):
    base = answers(*load(tiny_blip2_opt), pictures)
    with pytest.warns(UserWarning, match="has no manifest of this project"):
        tuned = load(tiny_blip2_opt, plain_adapter)
    assert answers(*tuned, pictures) != base


def test_an_adapter_of_this_base_loads_silently(tiny_blip2_opt, plain_adapter, tmp_path, recwarn):
    folder = copy_of(plain_adapter, tmp_path / "a")
    manifest = {"base_model": "x", "base_fingerprint": fingerprint(tiny_blip2_opt)}
    write_json(folder / "manifest.json", manifest)
    model, _ = load(tiny_blip2_opt, folder)
    assert not [w for w in recwarn if "manifest" in str(w.message)]
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_of_another_base_is_refused(tiny_blip2_opt, plain_adapter, tmp_path):
    """Same architecture, other weights: it would load, and answer nonsense."""
    folder = copy_of(plain_adapter, tmp_path / "a")
    manifest = {"base_model": "Salesforce/blip2-opt-2.7b-coco", "base_fingerprint": "0123abcd"}
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(UserError, match=r"trained on Salesforce/blip2-opt-2.7b-coco .*0123abcd"):
        load(tiny_blip2_opt, folder)


def bad_adapter(tmp_path: Path, plain: Path, edit: Callable[[Path], Any]) -> Path:
    folder = copy_of(plain, tmp_path / "a")
    edit(folder)
    return folder


def widen(weights: dict[str, torch.Tensor]) -> None:
    name = next(key for key in weights if key.endswith("fc1.lora_A.weight"))
    weights[name] = torch.zeros(4, 96)


def rename(weights: dict[str, torch.Tensor]) -> None:
    for name in [key for key in weights if "layers.1." in key]:
        weights[name.replace("layers.1.", "layers.31.")] = weights.pop(name)


def lose(weights: dict[str, torch.Tensor]) -> None:
    weights.pop(next(key for key in weights if key.endswith("fc1.lora_B.weight")))


def full_head(weights: dict[str, torch.Tensor]) -> None:
    weights["base_model.model.language_model.lm_head.weight"] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda a: edit_weights(a / ADAPTER, widen), "fc1 was trained for width 96, this base has"),
        (lambda a: edit_weights(a / ADAPTER, rename), r"no layer .* fits its .*layers.31"),
        (lambda a: edit_weights(a / ADAPTER, lose), r"1 matrices are not in its file \(.*lora_B"),
        (lambda a: edit_weights(a / ADAPTER, full_head), "no layer .* fits its .*lm_head.weight"),
        (lambda a: (a / ADAPTER).write_bytes(b"cut"), f"{ADAPTER}: cannot be read"),
        (lambda a: (a / ADAPTER).unlink(), f"no {ADAPTER} in it: its weights are missing"),
        (lambda a: (a / "adapter_config.json").unlink(), "no adapter_config.json in it"),
        (lambda a: (a / "adapter_config.json").write_text("{"), "adapter_config.json: not valid"),
        (lambda a: (a / "adapter_config.json").write_text("[]"), "config.json: expected a JSON ob"),
        (lambda a: (a / "manifest.json").write_text('["x"]'), r"manifest.json: .* found a list"),
        (lambda a: (a / "manifest.json").write_text('null'), r"manifest.json: .* found a NoneType"),
        (lambda a: (a / "manifest.json").write_text("no JSON"), "manifest.json: not valid JSON"),
        (lambda a: edit_json(a / "adapter_config.json", r=8), "peft cannot load it"),
        (lambda a: edit_json(a / "adapter_config.json", peft_type="?"), "peft cannot load it"),
    ],
    ids=[
        "another width", "layers that don't exist", "half a pair", "a full weight", "cut",
        "no weights", "no config", "broken config", "config a list", "manifest a list",
        "manifest null", "manifest broken", "another rank", "another method",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*has no manifest")
def test_adapters_that_do_not_fit_are_refused(
    tiny_blip2_opt, plain_adapter, tmp_path, edit, message
):
    """Each used to be a traceback from inside peft, or (half a pair) to load without a word."""
    with pytest.raises(UserError, match=message):
        load(tiny_blip2_opt, bad_adapter(tmp_path, plain_adapter, edit))


def test_an_adapter_that_is_not_there_is_named(tiny_blip2_opt, tmp_path):
    with pytest.raises(UserError, match=r"absent: no adapter_config.json in it"):
        load(tiny_blip2_opt, tmp_path / "absent")
    with pytest.raises(UserError, match=r"absent: no adapter_config.json in it"):
        adapter_fingerprint(str(tmp_path / "absent"))


def test_a_run_folder_given_as_adapter_names_the_folder_that_was_meant(
    tiny_blip2_opt, plain_adapter, tmp_path
):
    """train.py prints RUN/adapter; people give RUN."""
    copy_of(plain_adapter, tmp_path / "run" / "adapter")
    meant = rf"you mean --adapter {tmp_path / 'run' / 'adapter'}$"
    with pytest.raises(UserError, match=meant):
        load(tiny_blip2_opt, tmp_path / "run")
    with pytest.raises(UserError, match=meant):
        adapter_fingerprint(str(tmp_path / "run"))


def test_adapters_are_told_apart_by_their_weights(plain_adapter, tmp_path):
    folder = copy_of(plain_adapter, tmp_path / "a")
    assert adapter_fingerprint(str(folder)) == adapter_fingerprint(str(plain_adapter))
    assert adapter_fingerprint(None) is None

    def nudge(weights: dict[str, torch.Tensor]) -> None:
        weights[max(weights)][-1, -1] += 1e-3

    edit_weights(folder / ADAPTER, nudge)
    assert adapter_fingerprint(str(folder)) != adapter_fingerprint(str(plain_adapter))
