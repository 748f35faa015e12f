"""convert.py as a user calls it: any layout in, a folder that plain transformers uses out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from llava_repro import convert
from llava_repro.conversion import TOLERANCE, compare
from llava_repro.model import Llava
from llava_repro.templates import TEMPLATES, render
from shared.images import pad_to_square
from shared.options import REPO_ROOT, UserError, parse_options

NAMES = {
    "vision_tower.": "model.vision_tower.vision_tower.vision_model.",
    "multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "multi_modal_projector.linear_2.": "model.mm_projector.2.",
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": "model.",
}
VOCABULARY = 259  # the tiny Llama's tokens before <image>


@pytest.fixture(scope="module")
def original(tmp_path_factory, tiny_llava_folder, llava_parts) -> Path:
    """An original full folder: no row and no id for `<image>`, the tower inside, `.bin`."""
    source = tiny_llava_folder("clip", "llama")
    config = json.loads((source / "config.json").read_text())
    folder = tmp_path_factory.mktemp("original")
    state = {}
    for key, tensor in load_file(source / "model.safetensors").items():
        start = next(start for start in NAMES if key.startswith(start))
        cut = tensor[:VOCABULARY] if "embed_tokens" in key or "lm_head" in key else tensor
        state[NAMES[start] + key.removeprefix(start)] = cut.clone()
    torch.save(state, folder / "pytorch_model.bin")
    text = config["text_config"] | {"model_type": "llava_llama", "vocab_size": VOCABULARY}
    tower = {
        "mm_vision_tower": "a/name", "mm_hidden_size": 32, "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2, "image_aspect_ratio": "pad",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(text | tower))
    tokenizer = llava_parts["tokenizer"]("llama")
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] != "<image>"]
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("added_tokens_decoder", None)
    settings.pop("extra_special_tokens", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "<image>" not in AutoTokenizer.from_pretrained(folder).get_vocab()
    return folder


@pytest.fixture(scope="module")
def tower(tmp_path_factory, tiny_llava_folder, llava_parts) -> Path:
    """Only what says how the tower is built and how it is shown pictures."""
    folder = tmp_path_factory.mktemp("tower")
    llava_parts["vision_config"]("clip").save_pretrained(folder)
    llava_parts["image_processor"]("clip").save_pretrained(folder)
    return folder


def run(*flags: Any) -> None:
    argv = [str(flag) for flag in flags]
    convert.main(parse_options(convert.ConvertOptions, description="", argv=argv))


def test_an_original_folder_becomes_one_that_transformers_uses(
    original, tower, tmp_path, capsys, tiny_llava_folder
):
    output = tmp_path / "hub"
    run("--model", original, "--vision_tower", tower, "--template", "vicuna_v1",
        "--output_dir", output)  # fmt: skip
    printed = capsys.readouterr().out
    assert "layout:     full" in printed
    assert "259 rows grow to 320" in printed
    assert "same logits on random input" in printed
    model, found = LlavaForConditionalGeneration.from_pretrained(output, output_loading_info=True)
    assert not found["missing_keys"] | found["unexpected_keys"]
    processor = LlavaProcessor.from_pretrained(output)
    turns = [("human", "<image>\nHi"), ("gpt", None)]
    text = render(TEMPLATES["vicuna_v1"], turns[:1], add_generation_prompt=True)
    from PIL import Image

    inputs = processor(images=Image.new("RGB", (40, 30), "red"), text=text, return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 16
    ours = Llava.from_pretrained(output, dtype="float32", device="cpu")
    tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert torch.equal(ours.generate(**inputs, max_new_tokens=5, do_sample=False), tokens)
    messages = [{"role": "user", "content": "<image>\nHi"}]
    own = processor.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert own == text
    # the same weights as the Hub folder that the original was cut from
    before = load_file(tiny_llava_folder("clip", "llama") / "model.safetensors")
    after = load_file(output / "model.safetensors")
    assert before.keys() == after.keys()
    head = "language_model.lm_head.weight"
    assert torch.equal(after[head][:VOCABULARY], before[head][:VOCABULARY])
    torch.testing.assert_close(after[head][VOCABULARY], before[head][:VOCABULARY].mean(dim=0))
    assert torch.equal(after["multi_modal_projector.linear_2.bias"],
                       before["multi_modal_projector.linear_2.bias"])  # fmt: skip
    assert json.loads((output / "config.json").read_text())["image_aspect_ratio"] == "pad"


@pytest.mark.parametrize("text", ["llama", "qwen2"])
@pytest.mark.parametrize("vision", ["clip", "siglip", "chinese_clip"])
def test_a_hub_folder_stays_what_it_is(tiny_llava_folder, tmp_path, vision, text):
    source = tiny_llava_folder(vision, text)
    run("--model", source, "--output_dir", tmp_path / "new")
    before, after = (load_file(f / "model.safetensors") for f in (source, tmp_path / "new"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    templates = [AutoTokenizer.from_pretrained(f).chat_template for f in (source, tmp_path / "new")]
    assert templates[0] == templates[1]


def test_small_shards_hold_everything_once(tiny_llava_folder, tmp_path):
    source = tiny_llava_folder()
    run("--model", source, "--output_dir", tmp_path / "new", "--shard_gb", 1e-4)
    shards = sorted((tmp_path / "new").glob("model-*.safetensors"))
    assert len(shards) > 3
    assert shards[-1].name == f"model-{len(shards):05}-of-{len(shards):05}.safetensors"
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    stored = {key: shard.name for shard in shards for key in load_file(shard)}
    assert index["weight_map"] == stored
    before = load_file(source / "model.safetensors")
    assert stored.keys() == before.keys()
    model = Llava.from_pretrained(tmp_path / "new", dtype="float32", device="cpu")
    assert torch.equal(model.language_model.lm_head.weight, before["language_model.lm_head.weight"])


def test_weights_are_read_one_by_one(tiny_llava_folder, tmp_path, monkeypatch):
    """Between two shards nothing of the earlier one is asked for again."""
    from shared import weight_files

    order = []
    read, save = weight_files.read_tensor, weight_files.save_file
    monkeypatch.setattr(
        weight_files, "read_tensor", lambda file, key: (order.append(key), read(file, key))[1]
    )
    monkeypatch.setattr(
        weight_files, "save_file",
        lambda tensors, file, metadata: (order.append(set(tensors)), save(tensors, file, metadata)),
    )  # fmt: skip
    run("--model", tiny_llava_folder(), "--output_dir", tmp_path / "new", "--shard_gb", 1e-4,
        "--no_check")  # fmt: skip
    shards = [entry for entry in order if isinstance(entry, set)]
    assert len(shards) > 3
    first = order.index(shards[0])
    assert len(order[:first]) < len(order) // 2  # it wrote before it had read half


def test_dtype_is_of_the_written_weights(tiny_llava_folder, tmp_path, capsys):
    run("--model", tiny_llava_folder(), "--output_dir", tmp_path / "new", "--dtype", "bfloat16")
    assert {t.dtype for t in load_file(tmp_path / "new" / "model.safetensors").values()} == {
        torch.bfloat16
    }
    assert json.loads((tmp_path / "new" / "config.json").read_text())["dtype"] == "bfloat16"
    assert "same logits" in capsys.readouterr().out


def test_dry_run_reads_names_and_writes_nothing(tiny_llava_folder, tmp_path, capsys, monkeypatch):
    from shared import weight_files

    monkeypatch.setattr(weight_files, "read_tensor", lambda *_: pytest.fail("a weight was read"))
    output = tmp_path / "hub"
    run("--model", tiny_llava_folder(), "--template", "llava_v1", "--output_dir", output,
        "--dry_run")  # fmt: skip
    printed = capsys.readouterr().out
    assert "16 image tokens, <image> is id 259, layer -2" in printed
    assert "clip_vision_model, mlp2x_gelu, llama" in printed
    assert not output.exists()


@pytest.fixture
def spoilt(tiny_llava_folder, tmp_path) -> Callable[[], Path]:
    """A converted folder in which one weight is changed afterwards."""
    run("--model", tiny_llava_folder(), "--output_dir", tmp_path / "new", "--no_check")
    model = Llava.from_pretrained(tmp_path / "new", dtype="float32", device="cpu")
    model.language_model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1.0
    model.save_pretrained(tmp_path / "new")
    return tmp_path / "new"


def test_the_check_finds_one_changed_weight(tiny_llava_folder, spoilt):
    source = {"folder": tiny_llava_folder()}
    with pytest.raises(UserError, match=r"the logits of .* differ by"):
        compare(source, spoilt, torch.device("cpu"))
    assert compare({"folder": spoilt}, spoilt, torch.device("cpu")) <= TOLERANCE[torch.float32]


def test_a_failed_check_leaves_no_folder(tiny_llava_folder, tmp_path, monkeypatch):
    from llava_repro import conversion

    monkeypatch.setattr(conversion, "TOLERANCE", {torch.float32: -1.0})
    with pytest.raises(UserError, match="nothing was written"):
        run("--model", tiny_llava_folder(), "--output_dir", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_errors_name_what_to_do(original, tower, tiny_llava_folder, tmp_path):
    given = ("--model", original, "--vision_tower", tower, "--output_dir", tmp_path / "new")
    with pytest.raises(UserError, match=r"no chat template.*--template.*vicuna_v1"):
        run(*given)
    with pytest.raises(UserError, match=r"--template vicuna: not one of .*vicuna_v1"):
        run(*given, "--template", "vicuna")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="exists and is not empty"):
        run(*given, "--template", "vicuna_v1")
    with pytest.raises(UserError, match="--shard_gb"):
        run(*given, "--shard_gb", 0)


def test_a_projector_that_transformers_lacks_is_said(tiny_llava_folder, tmp_path, capsys):
    model = Llava.from_pretrained(tiny_llava_folder(), dtype="float32", device="cpu")
    deep = Llava(model.config, model.vision_tower, model.language_model, projector="mlp3x_gelu")
    source = tmp_path / "deep"
    deep.save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json",
                 "chat_template.jinja"):  # fmt: skip
        (source / name).write_bytes((tiny_llava_folder() / name).read_bytes())
    run("--model", source, "--output_dir", tmp_path / "new")
    printed = capsys.readouterr().out
    assert "transformers has no place for a mlp3x_gelu projector" in printed
    assert "same logits" in printed


def test_help_of_no_check_says_what_the_flag_does(capsys):
    with pytest.raises(SystemExit):
        parse_options(convert.ConvertOptions, description="", argv=["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "do not load both and compare their logits on random input (default: False)" in said
    assert "--check " not in said
    argv = ["--model", "a", "--output_dir", "b"]
    assert parse_options(
        convert.ConvertOptions, description="", argv=[*argv, "--no_check"]
    ).no_check
    assert not parse_options(convert.ConvertOptions, description="", argv=argv).no_check


@pytest.mark.slow
def test_the_command_line(tiny_llava_folder, tmp_path):
    def call(*flags: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "llava_repro/convert.py", *map(str, flags)],
            cwd=REPO_ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = call("--model", tiny_llava_folder(), "--output_dir", tmp_path / "new", "--no_check")
    assert done.returncode == 0, done.stderr
    assert "written to" in done.stdout
    failed = call("--model", tmp_path, "--output_dir", tmp_path / "other")
    assert failed.returncode == 2
    assert "no config.json in it" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("size", [(5, 8), (8, 5), (7, 4), (4, 7), (6, 6), (1, 9)])
def test_padding_to_square_is_llavas_to_the_pixel(size):
    """The rule computed by hand: the longer side, the mean colour, rests below and to the right."""
    import numpy as np
    from PIL import Image

    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mean = (0.48145466, 0.4578275, 0.40821073)  # CLIP
    color = tuple(int(255 * value) for value in mean)
    assert color == (122, 116, 104)
    side = max(size)
    expected = np.empty((side, side, 3), dtype=np.uint8)
    expected[:] = color
    top, left = (side - height) // 2, (side - width) // 2
    expected[top : top + height, left : left + width] = pixels
    found = np.asarray(pad_to_square(Image.fromarray(pixels), color))
    assert (found == expected).all()
