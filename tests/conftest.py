"""Fixtures for all tests: tiny random BLIP-2 folders, pictures, the toy world, a browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

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
