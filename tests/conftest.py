"""Fixtures for all tests: tiny random BLIP-2 and LLaVA folders, pictures, a browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page
    from tokenizers import Tokenizer
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

WORDS = """
Question : Short Answer answer ? what color is the shape how many are there a red blue green circle
square star yes no 0 1 2 3 picture of and one two
"""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models are faster, and their figures steadier, on one thread."""
    import torch

    torch.set_num_threads(1)


def build_tiny_blip2(folder: Path, kind: str, seed: int = 0) -> Path:
    """A random BLIP-2 of a few ten thousand weights in the Hub layout; widths fit NF4's blocks."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessor,
        PreTrainedTokenizerFast,
    )

    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*specials, *dict.fromkeys(WORDS.split())])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    single = "<s> $A" if kind == "opt" else "$A </s>"
    raw.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>",
    )  # fmt: skip
    processor = Blip2Processor(
        BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer, num_query_tokens=4
    )
    size = len(tokenizer)
    text = {
        "opt": {
            "model_type": "opt", "hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "word_embed_proj_dim": 64, "vocab_size": size,
            "max_position_embeddings": 128, "bos_token_id": 0, "pad_token_id": 1,
            "eos_token_id": 2, "init_std": 0.2,
        },
        "t5": {
            "model_type": "t5", "d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2,
            "num_decoder_layers": 2, "num_heads": 4, "vocab_size": size, "bos_token_id": 0,
            "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
            "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
        },
    }[kind]  # fmt: skip
    config = Blip2Config(
        vision_config={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                       "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
        qformer_config={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                        "num_attention_heads": 4, "encoder_hidden_size": 64, "vocab_size": size},
        text_config=text,
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Blip2ForConditionalGeneration(config)
    # large weights: the default ones are so small that every picture gives the same answer
    model.query_tokens.data.normal_()
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.data.normal_(std=0.4 if "language_model" in name else 0.3)
    model.get_input_embeddings().weight.data.normal_()
    model.get_output_embeddings().weight.data.normal_()
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 1
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=["opt", "t5"])
def tiny_blip2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random BLIP-2, once with OPT and once with T5."""
    return build_tiny_blip2(tmp_path_factory.mktemp(f"blip2_{request.param}"), request.param)


@pytest.fixture(scope="session")
def tiny_blip2_opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_blip2(tmp_path_factory.mktemp("blip2_opt_only"), "opt")


@pytest.fixture(scope="session")
def write_tiny_blip2() -> Callable[..., Path]:
    """The writer of tiny BLIP-2 folders, for tests that want one of their own."""
    return build_tiny_blip2


# Tiny random LLaVAs: three kinds of tower x four kinds of language model, as model folders.
# `tiny_llava_folder(vision="clip", text="llama", ...)` writes a folder in the Hub layout with
# tokenizer and processor (once a session) and returns its path: read it, don't write into it.

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
        from shared.llava_parts import save_processor

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


@pytest.fixture
def pictures() -> list:
    """Three small pictures of noise, all different."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    return [
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)
    ]


CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture
def chromium_page() -> Iterator[Page]:
    """A page of headless Chromium (1280 x 900) that may read and write the clipboard.

    Takes the machine's own browser, else the one that `playwright install chromium` fetched; the
    test is skipped where there is neither. One browser a test: Playwright's synchronous interface
    keeps an event loop in this thread as long as it runs, which would disturb the tests between.
    """
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e .[test]"
    )
    with sync_api.sync_playwright() as playwright:
        executable = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
        if executable is None and not Path(playwright.chromium.executable_path).is_file():
            pytest.skip("no Chromium here: playwright install --with-deps chromium")
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        try:
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            context.grant_permissions(["clipboard-read", "clipboard-write"])
            yield context.new_page()
        finally:
            browser.close()


@pytest.fixture
def page_log(chromium_page: Page) -> dict[str, list[str]]:
    """What `chromium_page` did since its start: `errors` (console, exceptions) and `requests`."""
    log: dict[str, list[str]] = {"errors": [], "requests": []}
    chromium_page.on("request", lambda request: log["requests"].append(request.url))
    chromium_page.on("pageerror", lambda error: log["errors"].append(str(error)))
    chromium_page.on(
        "console",
        lambda message: log["errors"].append(message.text) if message.type == "error" else None,
    )
    return log
