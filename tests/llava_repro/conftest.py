"""Tiny random LLaVAs: three kinds of tower x four kinds of language model, as model folders.

`tiny_llava_folder(vision="clip", text="llama", ...)` writes a folder in the Hub layout with
tokenizer and processor (once a session) and returns its path: read it, don't write into it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

IMAGE_SIZE, PATCH_SIZE = 32, 8  # 16 patches
TEXT_WIDTH, VISION_WIDTH, VOCABULARY = 64, 32, 320  # NF4 wants multiples of 64
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VICUNA = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {{ message['content'] }} "
    "{% else %}ASSISTANT: {{ message['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def byte_tokenizer(specials: list[str]) -> Tokenizer:
    """One token a byte, so that any text in any language has ids; special tokens first."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *letters])}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return raw


def tiny_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Qwen's: ChatML, no BOS. Llama's and Mistral's: BOS in front, unknown token for padding."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if text.startswith("qwen"):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=byte_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
        )
        tokenizer.chat_template = CHATML
    else:
        raw = byte_tokenizer(["<unk>", "<s>", "</s>"])
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
            pad_token="<unk>",
        )  # fmt: skip
        tokenizer.chat_template = VICUNA
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    return tokenizer


def tiny_vision_config(vision: str, width: int = VISION_WIDTH) -> Any:
    from transformers import ChineseCLIPVisionConfig, CLIPVisionConfig, SiglipVisionConfig

    config_class = {
        "clip": CLIPVisionConfig, "siglip": SiglipVisionConfig,
        "chinese_clip": ChineseCLIPVisionConfig,
    }[vision]  # fmt: skip
    return config_class(
        hidden_size=width, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        image_size=IMAGE_SIZE, patch_size=PATCH_SIZE,
    )  # fmt: skip


def tiny_text_config(text: str, tied: bool = False) -> Any:
    """llama, mistral, qwen2, qwen3; grouped-query attention in all."""
    from transformers import AutoConfig

    return AutoConfig.for_model(
        text, hidden_size=TEXT_WIDTH, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, vocab_size=VOCABULARY,
        max_position_embeddings=512, sliding_window=None, tie_word_embeddings=tied,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip


def tiny_image_processor(vision: str) -> Any:
    from transformers import (
        ChineseCLIPImageProcessor,
        CLIPImageProcessor,
        SiglipImageProcessor,
    )

    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    if vision == "siglip":
        return SiglipImageProcessor(size=square)
    if vision == "chinese_clip":
        return ChineseCLIPImageProcessor(size=square, do_center_crop=False)
    return CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=square)


def tiny_reference(
    vision: str = "clip",
    text: str = "llama",
    *,
    strategy: str | None = None,
    layer: int | tuple[int, ...] = -2,
    vision_width: int = VISION_WIDTH,
    tied: bool = False,
    seed: int = 0,
) -> LlavaForConditionalGeneration:
    """transformers' LLaVA with weights so large that every picture and word changes the answer."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=tiny_vision_config(vision, vision_width),
        text_config=tiny_text_config(text, tied),
        image_token_index=tiny_tokenizer(text).convert_tokens_to_ids("<image>"),
        vision_feature_layer=layer if isinstance(layer, int) else list(layer),
        vision_feature_select_strategy=strategy or ("full" if vision == "siglip" else "default"),
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.data.normal_(std=0.3 if "vision_tower" in name else 0.2)
        elif name.endswith("bias"):
            weight.data.normal_(std=0.1)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
    return model


@pytest.fixture(scope="session")
def tiny_llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The writer of tiny LLaVA folders; see `tiny_reference` for its arguments."""

    @cache
    def write(vision: str = "clip", text: str = "llama", **settings: Any) -> Path:
        from llava_repro.hub_layout import save_processor

        model = tiny_reference(vision, text, **settings)
        folder = tmp_path_factory.mktemp(f"llava_{vision}_{text}")
        model.save_pretrained(folder)
        save_processor(folder, model.config, tiny_tokenizer(text), tiny_image_processor(vision))
        return folder

    return write


@pytest.fixture(scope="session")
def tiny_parts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """Folders of a whole tiny CLIP-like tower and of a language model, as their authors publish."""

    @cache
    def write(vision: str = "clip", text: str = "llama") -> tuple[Path, Path]:
        import torch
        from transformers import AutoModel, AutoModelForCausalLM

        torch.manual_seed(1)
        vision_folder = tmp_path_factory.mktemp(f"tower_{vision}")
        text_folder = tmp_path_factory.mktemp(f"text_{text}")
        AutoModel.from_config(tiny_vision_config(vision)).save_pretrained(vision_folder)
        tiny_image_processor(vision).save_pretrained(vision_folder)
        AutoModelForCausalLM.from_config(tiny_text_config(text)).save_pretrained(text_folder)
        tiny_tokenizer(text).save_pretrained(text_folder)
        return vision_folder, text_folder

    return write


@pytest.fixture(scope="session")
def llava_parts() -> dict[str, Callable[..., Any]]:
    """The builders above, for tests that need a model or tokenizer without a folder."""
    return {
        "reference": tiny_reference,
        "tokenizer": tiny_tokenizer,
        "text_config": tiny_text_config,
        "vision_config": tiny_vision_config,
        "image_processor": tiny_image_processor,
    }


def write_conversations(folder: Path) -> Path:
    """40 rows: most with a picture, some text alone, some with two pictures or two rounds."""
    import json

    from PIL import Image

    colors = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(40):
        color, other = list(colors)[i % 3], list(colors)[(i // 3) % 3]
        for k, name in enumerate((color, other)):
            ground = Image.new("RGB", (20 + i % 5, 16), colors[name])
            ground.save(folder / "images" / f"{i}_{k}.png")
        row = {"id": f"sample {i}"}
        if i % 5 == 4:
            turns = [("human", "say hello"), ("gpt", "hello . " * (1 + i % 4))]
        elif i % 7 == 6:
            row["image"] = [f"{i}_0.png", f"{i}_1.png"]
            turns = [("human", "<image>\n<image>\nwhat color is the shape ?"),
                     ("gpt", f"{color} and {other}")]  # fmt: skip
        else:
            row["image"] = f"{i}_0.png"
            turns = [("human", "<image>\nwhat color is the shape ?"), ("gpt", color)]
            if i % 2:
                turns += [("human", "is the shape red ?"), ("gpt", "yes" if i % 3 == 0 else "no")]
        row["conversations"] = [{"from": who, "value": text} for who, text in turns]
        rows.append(row)
    path = folder / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    """chat.jsonl with its pictures beside it in images/, to be spoiled at will."""
    return write_conversations(tmp_path / "data")


@pytest.fixture(scope="session")
def shared_conversations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same to read from."""
    return write_conversations(tmp_path_factory.mktemp("conversations") / "data")
