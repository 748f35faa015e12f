"""merge_model.py: every pair of parts into a LLaVA that transformers loads, and every refusal.

The parts are tiny and random, in the layouts in which their authors publish them; 32 pixels with
patches of 8 are 16 patches.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_clip_llava_lora import merge_model, merging
from qwen_clip_llava_lora.merge_settings import MergeOptions, toy_defaults
from shared.options import REPO_ROOT, MissingError, UserError, parse_options

TOWERS = ("clip", "siglip", "chinese_clip")
LANGUAGE_MODELS = ("qwen2", "qwen3", "llama")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)


def run(*argv: Any) -> None:
    merge_model.main(
        parse_options(
            MergeOptions,
            description="",
            argv=[str(word) for word in argv],
            toy_defaults=toy_defaults(),
        )
    )


def own_tokenizer(text: str, **changed: Any) -> Any:
    """Qwen's or Llama's way of doing it, without `<image>`: as it is published."""
    from transformers import PreTrainedTokenizerFast

    from tests.conftest import byte_tokenizer, tiny_tokenizer

    tokenizer = tiny_tokenizer(text)
    specials = (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        if text.startswith("qwen")
        else ["<unk>", "<s>", "</s>"]
    )
    values = {
        name: getattr(tokenizer, name)
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
    } | changed
    made = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(specials), **{k: v for k, v in values.items() if v}
    )
    made.chat_template = CHATML if text.startswith("qwen") else tokenizer.chat_template
    return made


def write_language_model(folder: Path, text: str, *, tied: bool = False, rows: int = 320) -> Path:
    """Large weights, so that each word and picture changes the answer."""
    from transformers import AutoModelForCausalLM

    from tests.conftest import tiny_text_config

    config = tiny_text_config(text, tied)
    config.vocab_size = rows
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(std=0.2)
    model.save_pretrained(folder)
    own_tokenizer(text).save_pretrained(folder)
    return folder


def write_tower(folder: Path, vision: str, *, whole: bool = False) -> Path:
    """The vision part by itself, or as CLIP's authors publish it, with its text tower."""
    import transformers

    from tests.conftest import tiny_image_processor, tiny_vision_config

    torch.manual_seed(2)
    own = tiny_vision_config(vision)
    if whole:
        text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                "num_attention_heads": 2, "vocab_size": 50}  # fmt: skip
        config_class = {"clip": transformers.CLIPConfig, "siglip": transformers.SiglipConfig,
                        "chinese_clip": transformers.ChineseCLIPConfig}[vision]  # fmt: skip
        own = config_class(vision_config=own.to_dict(), text_config=text)
    model = transformers.AutoModel.from_config(own).eval()
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.data.normal_(std=0.3)
        elif name.endswith("bias"):
            weight.data.normal_(std=0.1)
    model.save_pretrained(folder)
    tiny_image_processor(vision).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Path]]:
    """Language model and tower of these names; towers whole but for Chinese-CLIP's. Read only."""
    root = tmp_path_factory.mktemp("parts")

    def write(text: str, vision: str) -> tuple[Path, Path]:
        if not (root / text).exists():
            write_language_model(root / text, text, tied=text == "qwen3")
        if not (root / vision).exists():
            write_tower(root / vision, vision, whole=vision != "chinese_clip")
        return root / text, root / vision

    return write


@pytest.fixture(scope="module")
def merge(
    parts: Callable[[str, str], tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The merged folder of two names."""
    made: dict[tuple[Any, ...], Path] = {}

    def merged(text: str = "qwen2", vision: str = "clip", *argv: Any) -> Path:
        key = (text, vision, *argv)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("merged") / "llava"
            language_model, tower = parts(text, vision)
            run("--language_model", language_model, "--vision_tower", tower,
                "--output_dir", made[key], *argv)  # fmt: skip
        return made[key]

    return merged


def load(folder: Path) -> Any:
    """By plain transformers, which must miss nothing and find nothing unknown."""
    from transformers import LlavaForConditionalGeneration

    model, found = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    return model.eval()


def processed(folder: Path, picture: Any) -> Any:
    from transformers import LlavaProcessor

    processor = LlavaProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return processor(images=picture, text=prompt, return_tensors="pt")


@pytest.mark.parametrize("vision", TOWERS)
@pytest.mark.parametrize("text", LANGUAGE_MODELS)
def test_every_pair_gives_the_logits_of_its_parts(text, vision, parts, merge, pictures, tmp_path):
    """The self-check passed, and a model put together by hand says the same to the bit."""
    from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

    folder = merge(text, vision)
    merged = load(folder)
    language_model, tower = parts(text, vision)
    by_hand = LlavaForConditionalGeneration(merged.config).eval()
    source = AutoModelForCausalLM.from_pretrained(language_model)
    by_hand.model.language_model.load_state_dict(source.model.state_dict())
    by_hand.lm_head.load_state_dict(source.lm_head.state_dict())
    stored = {k.removeprefix("vision_model."): t
              for k, t in load_file(tower / "model.safetensors").items()}  # fmt: skip
    own = by_hand.model.vision_tower.state_dict()
    by_hand.model.vision_tower.load_state_dict({name: stored[name] for name in own})
    by_hand.model.multi_modal_projector.load_state_dict(
        merged.model.multi_modal_projector.state_dict()
    )
    logits = []
    for picture in pictures[:2]:
        inputs = processed(folder, picture)
        assert (inputs["input_ids"] == merged.config.image_token_id).sum() == 16
        with torch.no_grad():
            logits.append(merged(**inputs).logits)
            assert torch.equal(logits[-1], by_hand(**inputs).logits)
    assert not torch.equal(logits[0][0, -1], logits[1][0, -1])
    # transformers saves it under the same names
    merged.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(
        load_file(folder / "model.safetensors")
    )


@pytest.mark.parametrize(("vision", "strategy", "extra"), [
    ("clip", "default", 1), ("chinese_clip", "default", 1), ("siglip", "full", 0),
])  # fmt: skip
def test_configuration_and_processor_agree(vision, strategy, extra, merge):
    folder = merge("qwen2", vision)
    config = json.loads((folder / "config.json").read_text())
    processor = json.loads((folder / "processor_config.json").read_text())
    assert config["vision_feature_select_strategy"] == strategy
    assert processor["vision_feature_select_strategy"] == strategy
    assert processor["num_additional_image_tokens"] == extra
    assert processor["patch_size"] == 8
    assert config["image_seq_length"] == 16
    assert config["text_config"]["architectures"] == ["Qwen2ForCausalLM"]  # vLLM looks there


def test_siglip_keeps_its_first_patch(merge, pictures):
    model = load(merge("qwen2", "siglip"))
    pixels = processed(merge("qwen2", "siglip"), pictures[0])["pixel_values"]
    with torch.no_grad():
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        wanted = model.model.multi_modal_projector(states[-2])  # (1, 16, D), from the first on
        assert torch.equal(model.get_image_features(pixels).pooler_output[0], wanted[0])
        pixels[..., :8, :8] += 1  # the first patch alone
        changed = model.get_image_features(pixels).pooler_output[0]
    assert not torch.equal(changed[0], wanted[0, 0])


def test_the_feature_layer_is_the_one_asked_for(merge, pictures):
    folder = merge("qwen2", "clip", "--vision_feature_layer", -1)
    model = load(folder)
    pixels = processed(folder, pictures[0])["pixel_values"]
    with torch.no_grad():
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        wanted = model.model.multi_modal_projector(states[-1][:, 1:])
        assert torch.equal(model.get_image_features(pixels).pooler_output[0], wanted[0])


def test_names_in_the_file_are_those_that_vllm_maps(merge):
    names = set(load_file(merge() / "model.safetensors"))
    beginnings = {".".join(name.split(".")[:2]) for name in names}
    assert beginnings == {
        "language_model.model", "language_model.lm_head", "vision_tower.vision_model",
        "multi_modal_projector.linear_1", "multi_modal_projector.linear_2",
    }  # fmt: skip


# Tokenizer and embeddings


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_grow_to_the_multiple_and_stay_tied(tied, parts, tmp_path):
    """259 rows are all taken by 259 tokens; `<image>` needs one more."""
    language_model = write_language_model(tmp_path / "text", "qwen2", tied=tied, rows=259)
    run("--language_model", language_model, "--vision_tower", parts("qwen2", "clip")[1],
        "--output_dir", tmp_path / "llava", "--pad_to_multiple_of", 48)  # fmt: skip
    old = load_file(language_model / "model.safetensors")
    new = load_file(tmp_path / "llava" / "model.safetensors")
    pairs = [("model.embed_tokens.weight", merging.EMBEDDING), ("lm_head.weight", merging.HEAD)]
    assert (merging.HEAD in new) == (not tied)
    for before, after in pairs[: 1 if tied else 2]:
        assert new[after].shape == (288, 64)
        assert torch.equal(new[after][:259], old[before])
        torch.testing.assert_close(new[after][259:], old[before].mean(0).expand(29, -1))
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert config["text_config"]["vocab_size"] == 288
    assert config["image_token_index"] == 259
    model = load(tmp_path / "llava")
    same = model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert same == tied


def test_enough_rows_are_left_alone(merge):
    assert load_file(merge() / "model.safetensors")[merging.EMBEDDING].shape == (320, 64)


@pytest.mark.parametrize(("text", "changed", "padding", "said"), [
    ("qwen2", {}, "<|endoftext|>", None),
    ("qwen2", {"pad_token": "<|im_end|>"}, "<pad>", "its padding was the end token"),
    ("qwen2", {"pad_token": None}, "<pad>", "no padding token"),
    ("llama", {"pad_token": None}, "<unk>", "no padding token"),
    ("llama", {"pad_token": None, "unk_token": None}, "<pad>", "no padding token"),
])  # fmt: skip
def test_padding_is_never_the_end(text, changed, padding, said, tmp_path):
    own_tokenizer(text, **changed).save_pretrained(tmp_path)
    tokenizer, done = merging.ready_tokenizer(tmp_path, None)
    assert tokenizer.pad_token == padding
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert [line for line in done if "padding" in line] == ([] if said is None else done[1:2])
    assert said is None or said in done[1]
    assert tokenizer.bos_token == ("<s>" if text == "llama" else None)  # Qwen: none is invented


def test_no_bos_is_written_for_qwen(merge, pictures):
    folder = merge("qwen2", "clip")
    ids = processed(folder, pictures[0])["input_ids"][0].tolist()
    assert ids[0] == 1  # <|im_start|>
    saved = json.loads((folder / "tokenizer_config.json").read_text())
    assert saved.get("bos_token") is None
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2
    assert generation["pad_token_id"] == 0


def test_generation_ends_where_the_template_or_the_model_ends(parts, tmp_path):
    """A folder that names only <|endoftext|> gets the template's end too."""
    from transformers import AutoConfig, AutoTokenizer

    folder = parts("qwen2", "clip")[0]
    tokenizer, text = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    for there, ends in ((7, [7, 2]), ([2, 7], [2, 7]), (2, 2)):
        settings = {"eos_token_id": there, "top_p": 0.8}
        (tmp_path / "generation_config.json").write_text(json.dumps(settings))
        found = merging.generation_settings(tmp_path, text, tokenizer)
        assert (found["eos_token_id"], found["top_p"]) == (ends, 0.8)


def test_a_template_of_texts_takes_parts_too(merge):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merge())
    parts = [{"type": "text", "text": "see"}, {"type": "image"}, {"type": "text", "text": "it?"}]
    for content, shown in ((parts, "see<image>\nit?"), ("plain", "plain")):
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": content},
        ]
        assert tokenizer.apply_chat_template(messages, tokenize=False) == (
            f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{shown}<|im_end|>\n"
        )


@pytest.mark.parametrize(("name", "before", "wrapped"), [
    ("LLAMA3_JINJA", "<s><|start_header_id|>system", True),
    ("QWEN3_JINJA", "<|im_start|>user\n<image>\nWhat?", True),
    ("GEMMA_JINJA", "<s><start_of_turn>user\n<image>\nWhat?", True),
    ("PARTS_JINJA", "USER: <image>\nWhat?", False),
])  # fmt: skip
def test_published_templates_show_pictures(name, before, wrapped, tmp_path):
    """In short form; the last takes parts alone, as those of published LLaVA folders do."""
    from tests.shared import test_conversations

    template = getattr(test_conversations, name)
    tokenizer = own_tokenizer("qwen2" if name.startswith("QWEN") else "llama")
    tokenizer.add_tokens(["<|eot_id|>", "<end_of_turn>"], special_tokens=True)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    made, done = merging.ready_tokenizer(tmp_path, None)
    assert (made.chat_template != template) == wrapped == (len(done) > 1)
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    text = made.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    assert text.startswith(before)
    assert text.count("<image>\nWhat?") == 1


def test_what_training_learns_is_the_template_s_answer(merge):
    """The wrapped template still shows where an answer begins and ends."""
    from transformers import AutoTokenizer

    from shared.conversations import encode

    tokenizer = AutoTokenizer.from_pretrained(merge())
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    row = {"id": "1", "image": "a.png", "conversations": said}
    learned = [i for i in encode(row, tokenizer, None, 16)["labels"] if i != -100]
    assert tokenizer.decode(learned) == "red<|im_end|>"


@pytest.mark.parametrize(("template", "message"), [
    (None, "no chat template .a base model.*--chat_template FILE"),
    ("{{ messages[0]['role'] }} says something</s>", "does not show a picture and a question"),
    ("{{ messages[0]['nothing']['at all'] }}", "does not show a picture and a question"),
])  # fmt: skip
def test_a_template_that_cannot_show_pictures_is_refused(template, message, tmp_path):
    tokenizer = own_tokenizer("qwen2")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        merging.ready_tokenizer(tmp_path, None)


def test_a_base_model_gets_the_template_of_a_file(tmp_path):
    tokenizer = own_tokenizer("qwen2")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "own.jinja").write_text(CHATML)
    made, _ = merging.ready_tokenizer(tmp_path, str(tmp_path / "own.jinja"))
    assert made.chat_template.endswith(CHATML)
    with pytest.raises(UserError, match=r"--chat_template .*cannot be read"):
        merging.ready_tokenizer(tmp_path, str(tmp_path / "none.jinja"))


# The projector


def test_the_seed_decides_about_the_projector_alone(merge):
    first = load_file(merge("qwen2", "clip") / "model.safetensors")
    other = load_file(merge("qwen2", "clip", "--seed", 1) / "model.safetensors")
    different = {name for name in first if not torch.equal(first[name], other[name])}
    assert different == {f"multi_modal_projector.linear_{n}.weight" for n in (1, 2)}
    assert first["multi_modal_projector.linear_2.bias"].abs().max() == 0
    assert 0.01 < float(first["multi_modal_projector.linear_2.weight"].std()) < 0.03  # 0.02


@pytest.mark.parametrize(
    "names", ["model.multi_modal_projector.linear_{}", "model.mm_projector.{}"]
)
def test_an_earlier_projector_is_taken_up(names, merge, parts, tmp_path):
    numbers = (1, 2) if "linear" in names else (0, 2)
    trained = {}
    for number, shape in zip(numbers, ((64, 32), (64, 64)), strict=True):
        trained[f"{names.format(number)}.weight"] = torch.randn(shape)
        trained[f"{names.format(number)}.bias"] = torch.randn(64)
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    save_file(trained, tmp_path / "run" / "adapter" / "projector.safetensors")
    language_model, tower = parts("qwen2", "clip")
    run("--language_model", language_model, "--vision_tower", tower, "--output_dir",
        tmp_path / "llava", "--projector", tmp_path / "run")  # fmt: skip
    written = load_file(tmp_path / "llava" / "model.safetensors")
    for place, number in zip((1, 2), numbers, strict=True):
        for kind in ("weight", "bias"):
            assert torch.equal(
                written[f"multi_modal_projector.linear_{place}.{kind}"],
                trained[f"{names.format(number)}.{kind}"],
            )


def test_a_projector_of_other_widths_is_refused(parts, tmp_path):
    save_file({"model.multi_modal_projector.linear_1.weight": torch.zeros(3, 3)},
              tmp_path / "projector.safetensors")  # fmt: skip
    language_model, tower = parts("qwen2", "clip")
    given = ["--language_model", language_model, "--vision_tower", tower, "--output_dir",
             tmp_path / "llava", "--projector"]  # fmt: skip
    with pytest.raises(UserError, match="these parts need"):
        run(*given, tmp_path / "projector.safetensors")
    with pytest.raises(UserError, match=r"no projector.safetensors there"):
        run(*given, tmp_path / "none")
    assert not (tmp_path / "llava").exists()


def test_parts_in_shards_and_bin_files(parts, merge, tmp_path):
    """CLIP-L/14 at 336 pixels is published as pytorch_model.bin, larger models in shards."""
    from shutil import copytree

    from transformers import AutoModelForCausalLM

    language_model, tower = parts("qwen2", "clip")
    copytree(language_model, tmp_path / "text")
    (tmp_path / "text" / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(language_model).save_pretrained(
        tmp_path / "text", max_shard_size="50KB"
    )
    assert len(list((tmp_path / "text").glob("model-*.safetensors"))) > 2
    copytree(tower, tmp_path / "tower")
    torch.save(load_file(tower / "model.safetensors"), tmp_path / "tower" / "pytorch_model.bin")
    (tmp_path / "tower" / "model.safetensors").unlink()
    run("--language_model", tmp_path / "text", "--vision_tower", tmp_path / "tower",
        "--output_dir", tmp_path / "llava")  # fmt: skip
    made, wanted = (load_file(f / "model.safetensors") for f in (tmp_path / "llava", merge()))
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)


# What is refused


def test_parts_that_are_none(parts, tmp_path):
    language_model, tower = parts("qwen2", "clip")
    output = ["--output_dir", tmp_path / "llava"]
    with pytest.raises(MissingError, match=r"shared.download nobody/no-clip"):
        run("--language_model", language_model, "--vision_tower", "nobody/no-clip", *output)
    with pytest.raises(UserError, match=r"--vision_tower .*qwen2: not a vision tower"):
        run("--language_model", language_model, "--vision_tower", language_model, *output)
    with pytest.raises(UserError, match=r"--language_model .*does not know as a language model"):
        run("--language_model", tower, "--vision_tower", tower, *output)
    with pytest.raises(UserError, match=r"no config\.json in it"):
        run("--language_model", tmp_path, "--vision_tower", tower, *output)
    with pytest.raises(UserError, match="give --language_model and --vision_tower"):
        run("--vision_tower", tower, *output)
    with pytest.raises(UserError, match="give --output_dir"):
        run("--language_model", language_model, "--vision_tower", tower)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("damage", "message"), [
    ("cut", "broken or incomplete"),
    ("shard", "model-00002-of-00002.safetensors missing; download it again"),
    ("weight", "1 weights are not in its files .model.norm.weight"),
    ("shape", "its config.json says"),
    ("quantised", "its weights are quantised"),
    ("head", "lm_head.bias, for which a LLaVA has no place"),
])  # fmt: skip
def test_a_damaged_language_model_is_refused(damage, message, parts, tmp_path, monkeypatch):
    folder = write_language_model(tmp_path / "text", "qwen2")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "shard":
        index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00002.safetensors")}
        index["weight_map"]["model.norm.weight"] = "model-00002-of-00002.safetensors"
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        file.rename(folder / "model-00001-of-00002.safetensors")
    elif damage == "weight":
        del tensors["model.norm.weight"]
        save_file(tensors, file, metadata={"format": "pt"})
    elif damage == "shape":
        tensors["model.norm.weight"] = torch.ones(32)
        save_file(tensors, file, metadata={"format": "pt"})
    elif damage == "quantised":
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        (folder / "config.json").write_text(json.dumps(config))
    else:
        from transformers.models.qwen2 import modeling_qwen2

        plain = modeling_qwen2.Qwen2ForCausalLM.__init__

        def with_bias(self: Any, config: Any) -> None:
            plain(self, config)
            self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size)

        monkeypatch.setattr(modeling_qwen2.Qwen2ForCausalLM, "__init__", with_bias)
    with pytest.raises(UserError, match=message):
        run("--language_model", folder, "--vision_tower", parts("qwen2", "clip")[1],
            "--output_dir", tmp_path / "llava")  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


@pytest.mark.parametrize(("flag", "value", "message"), [
    ("--vision_feature_layer", 4, "hidden states -4 to 3"),
    ("--vision_feature_layer", -5, "hidden states -4 to 3"),
    ("--pad_to_multiple_of", 0, "at least 1"),
    ("--shard_gb", 0, "must be above 0"),
    ("--shard_gb", "nan", "must be above 0"),
])  # fmt: skip
def test_numbers_that_cannot_be(flag, value, message, parts, tmp_path):
    language_model, tower = parts("qwen2", "clip")
    with pytest.raises(UserError, match=message):
        run("--language_model", language_model, "--vision_tower", tower, "--output_dir",
            tmp_path / "llava", flag, value)  # fmt: skip


def test_an_image_processor_of_another_size_is_refused(parts, tmp_path):
    tower = write_tower(tmp_path / "tower", "clip")
    file = tower / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    settings["crop_size"] = settings["size"] = {"height": 64, "width": 64}
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match="makes pictures of 64 x 64, the tower takes 32 x 32"):
        run("--language_model", parts("qwen2", "clip")[0], "--vision_tower", tower,
            "--output_dir", tmp_path / "llava")  # fmt: skip


def test_a_language_model_that_caps_its_logits_fails_the_check(parts, tmp_path, monkeypatch):
    """A LLaVA has the head alone; what the model did behind it would be lost."""
    from transformers.models.qwen2 import modeling_qwen2

    plain = modeling_qwen2.Qwen2ForCausalLM.forward

    def capped(self: Any, *arguments: Any, **named: Any) -> Any:
        output = plain(self, *arguments, **named)
        output.logits = 30 * torch.tanh(output.logits / 30)
        return output

    monkeypatch.setattr(modeling_qwen2.Qwen2ForCausalLM, "forward", capped)
    language_model, tower = parts("qwen2", "clip")
    with pytest.raises(UserError, match="answers a text otherwise"):
        run("--language_model", language_model, "--vision_tower", tower, "--output_dir",
            tmp_path / "llava")  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("prefix", "message"), [
    ("vision_tower.", "the tower in the merged folder sees otherwise"),
    ("language_model.model.layers.0", "answers a text otherwise"),
    ("multi_modal_projector.linear_1", "two different pictures give the same logits"),
])  # fmt: skip
def test_a_failing_check_leaves_no_folder(prefix, message, parts, tmp_path, monkeypatch):
    """One matrix of the written file is zeroed before the check reads it."""
    write = merging.write_weights

    def spoiled(folder: Path, *rest: Any) -> None:
        write(folder, *rest)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        for name in tensors:
            if name.startswith(prefix):
                tensors[name].zero_()
        save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setattr(merging, "write_weights", spoiled)
    language_model, tower = parts("qwen2", "clip")
    with pytest.raises(UserError, match=message):
        run("--language_model", language_model, "--vision_tower", tower, "--output_dir",
            tmp_path / "llava")  # fmt: skip
    assert list(tmp_path.iterdir()) == []


# The output folder


def test_the_same_again_is_up_to_date_and_another_is_refused(merge, parts, tmp_path, capsys):
    folder = merge("qwen2", "clip")
    language_model, tower = parts("qwen2", "clip")
    given = ["--language_model", language_model, "--vision_tower", tower, "--output_dir"]
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    run(*given, folder)
    assert "already there and up to date" in capsys.readouterr().out
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    with pytest.raises(UserError, match=r"holds another merge \(seed: 0 there, 7 now"):
        run(*given, folder, "--seed", 7)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is no merged model"):
        run(*given, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_changed_parts_are_another_merge(parts, tmp_path):
    language_model = write_language_model(tmp_path / "text", "qwen2")
    given = ["--language_model", language_model, "--vision_tower", parts("qwen2", "clip")[1],
             "--output_dir", tmp_path / "llava"]  # fmt: skip
    run(*given)
    manifest = json.loads((tmp_path / "llava" / "manifest.json").read_text())
    assert manifest["projector"] == "fresh"
    assert set(manifest["part_fingerprints"]) == {"language_model", "vision_tower"}
    assert manifest["synthetic"] is False
    tensors = load_file(language_model / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, language_model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"part_fingerprints.language_model"):
        run(*given)


def test_many_shards_are_one_model(merge):
    sharded = merge("qwen2", "clip", "--shard_gb", 1e-4)
    files = sorted(sharded.glob("model-*.safetensors"))
    assert len(files) > 3
    assert max(file.stat().st_size for file in files) < 120_000
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    whole = load_file(merge("qwen2", "clip") / "model.safetensors")
    assert set(index["weight_map"]) == set(whole)
    state = load(sharded).state_dict()
    assert all(map(torch.equal, state.values(), load(merge("qwen2", "clip")).state_dict().values()))


def test_dtype_is_of_the_written_weights(merge):
    folder = merge("qwen2", "clip", "--dtype", "bfloat16")
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_rest_of_the_project_loads_it(merge, pictures):
    from shared.vision_language import load_vision_language

    model = load_vision_language(str(merge("qwen3", "siglip")), max_new_tokens=4)
    features = model.encode_images(pictures[:1])
    (answer,) = model.answer(features, [0], ["What is it?"])
    assert answer.n_tokens >= 1


def test_the_toy_s_parts(tmp_path, capsys):
    run("--toy", "--output_dir", tmp_path / "llava")
    out = capsys.readouterr().out
    assert "bit for bit" in out
    assert json.loads((tmp_path / "llava" / "manifest.json").read_text())["synthetic"] is True


# The plan


def test_dry_run_counts_without_weights(tmp_path, capsys, monkeypatch):
    """Qwen2.5-0.5B with CLIP-L/14 at 336 pixels: (1024 + 1) x 896 + (896 + 1) x 896."""
    monkeypatch.setattr(merging, "read_folder", lambda *_: pytest.fail("weights were looked for"))
    run("--language_model", "Qwen/Qwen2.5-0.5B-Instruct", "--output_dir", tmp_path / "llava",
        "--vision_tower", "openai/clip-vit-large-patch14-336", "--dry_run")  # fmt: skip
    out = capsys.readouterr().out
    assert "1,722,112 parameters" in out
    assert "494,032,768 parameters" in out  # the published count of Qwen2.5-0.5B
    assert "576 tokens" in out
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_chinese_clip_says_what_vllm_lacks(parts, capsys):
    language_model, tower = parts("qwen2", "chinese_clip")
    run("--language_model", language_model, "--vision_tower", tower, "--dry_run")
    assert "vLLM has no Chinese-CLIP" in capsys.readouterr().out


# Memory

MEASURED = """
import gc, sys, threading, time
from qwen_clip_llava_lora import merge_model
from qwen_clip_llava_lora.merge_settings import MergeOptions
from shared.options import parse_options

def run(*more):
    argv = [*sys.argv[1:], *more]
    merge_model.main(parse_options(MergeOptions, description="", argv=argv))

def resident():  # bytes; what is mapped from a file counts too
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def watch():
    while True:
        seen.append(resident())
        time.sleep(0.001)

run("--dry_run")  # the libraries are in memory, the plan is made
gc.collect()
before, seen = resident(), []
threading.Thread(target=watch, daemon=True).start()
run("--no_check")
print("GREW", max(seen) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measured as Linux shows it")
def test_writing_needs_the_memory_of_about_a_shard(tmp_path, capfd):
    """A model of 200 MB: in shards of 20 MB against one file, which holds all of it at once."""
    from transformers import AutoModelForCausalLM

    from tests.conftest import tiny_text_config

    config = tiny_text_config("qwen2")
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 512, 2048, 16
    config.layer_types = ["full_attention"] * 16
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "text")
    own_tokenizer("qwen2").save_pretrained(tmp_path / "text")
    size = (tmp_path / "text" / "model.safetensors").stat().st_size
    assert size > 190e6
    tower = write_tower(tmp_path / "tower", "clip")
    grew = {}
    for shard_gb in ("0.02", "5"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, "--language_model", str(tmp_path / "text"),
             "--vision_tower", str(tower), "--output_dir", str(tmp_path / shard_gb),
             "--shard_gb", shard_gb],
            cwd=REPO_ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        grew[shard_gb] = int(done.stdout.rpartition("GREW ")[2])
    with capfd.disabled():
        print(f"\n{size / 1e6:.0f} MB: memory grew by {grew['0.02'] / 1e6:.0f} MB in shards of "
              f"20 MB, by {grew['5'] / 1e6:.0f} MB in one file")  # fmt: skip
    assert len(list((tmp_path / "0.02").glob("model-*.safetensors"))) >= 9
    assert grew["0.02"] < 60e6
    assert grew["5"] > 190e6
