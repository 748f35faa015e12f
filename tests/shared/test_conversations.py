"""Label masks, token ids and readers of conversation files, on tokenizers trained in the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from llava_repro.templates import TEMPLATES, render
from shared.conversation_files import RowError, main, normalise_row
from shared.conversations import (
    answer_end,
    chat_template,
    check_tokenizer,
    encode,
    escape_tags,
    fit,
    open_conversations,
    pad_id,
    prompt_ids,
    row_images,
    row_turns,
    segments_of,
)
from shared.options import IGNORE_INDEX, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. USER: ASSISTANT: Yes",
    "What color is the circle? The circle is red. How many squares are there? There are two.",
    "system user assistant model The user asks: what is it? The assistant answers: a blue star.",
    "圆是什么颜色？红色。图中有几个方块？两个。 Human: Assistant: ### [INST] [/INST] <<SYS>>",
] * 8

# The published chat templates in short: what decides what is learned is as there.
CHATML_JINJA = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + "
    "m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_JINJA = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = "
    "strftime_now('%d %b %Y') %}{% endif %}{% if messages[0]['role'] == 'system' %}"
    "{% set system_message = messages[0]['content'] | trim %}{% set messages = messages[1:] %}"
    "{% else %}{% set system_message = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + "
    "system_message + '<|eot_id|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + "
    "'<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA_JINJA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}"
    "{% set role = m['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + "
    "m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
QWEN3_JINJA = (  # thinking is shown only in the last answer
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PARTS_JINJA = (  # as in published LLaVA folders: content must be a list of parts
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
    "{% endfor %}{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] + (' ' if m['role'] == 'user' else '</s>') }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SPECIALS = {
    "chatml": ["<pad>", "<|im_start|>", "<|im_end|>"],
    "llama3": ["<pad>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
               "<|eot_id|>"],
    "gemma": ["<pad>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
}  # fmt: skip
JINJA = {"chatml": CHATML_JINJA, "llama3": LLAMA3_JINJA, "gemma": GEMMA_JINJA}
BYTE_KINDS = ("chatml", "llama3")
TEN_ROWS = [
    [("human", "<image>\nWhat color is the circle?"), ("gpt", "The circle is red.")],
    [("human", "Hi"), ("gpt", "Yes"), ("human", "How many?"), ("gpt", "There are two.")],
    [("system", "Be brief."), ("human", "Hi <image>"), ("gpt", ""), ("human", "b"), ("gpt", "c")],
    [("human", "圆是什么颜色？\n<image>"), ("gpt", "红色。")],
    [("human", "Who?"), ("gpt", "The user asks the ASSISTANT: a star. USER: no")],
]


def byte_level(kind: str) -> PreTrainedTokenizerFast:
    """BPE over bytes, as Qwen and Llama 3 have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    specials = [*SPECIALS[kind], "<image>"]
    raw.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    bos = "<|begin_of_text|>" if kind == "llama3" else None
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, raw.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=bos, pad_token="<pad>",
        eos_token="<|eot_id|>" if bos else "<|im_end|>",
        extra_special_tokens=["<image>", *SPECIALS[kind][1:]],
    )  # fmt: skip
    tokenizer.chat_template = JINJA[kind]
    return tokenizer


def metaspace(kind: str) -> PreTrainedTokenizerFast:
    """SentencePiece-like BPE with byte fallback: Llama's legacy and newer form, and Gemma's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bos = "<bos>" if kind == "gemma" else "<s>"
    specials = ["<unk>", bos, "</s>", "<image>"]
    specials += [s for s in SPECIALS.get(kind, []) if s not in specials]
    draft = Tokenizer(models.BPE(unk_token="<unk>"))
    draft.normalizer = normalizers.Replace(" ", "▁")
    draft.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    draft.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False),
    )
    model = json.loads(draft.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    raw = Tokenizer(models.BPE(
        vocab=vocabulary, merges=[tuple(m) for m in model["merges"]], unk_token="<unk>",
        byte_fallback=True, fuse_unk=True))  # fmt: skip
    blank = normalizers.Replace(" ", "▁")
    if kind == "llama_legacy":
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blank])
    elif kind == "llama":
        raw.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        raw.normalizer = blank
    raw.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token=bos,
        eos_token="<end_of_turn>" if kind == "gemma" else "</s>",
        extra_special_tokens=[s for s in specials if s not in {"<unk>", bos}],
    )  # fmt: skip
    tokenizer.chat_template = JINJA.get(kind)
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    made = {kind: byte_level(kind) for kind in BYTE_KINDS}
    return made | {kind: metaspace(kind) for kind in ("llama_legacy", "llama", "gemma")}


def row_of(turns: list[tuple[str, str]]) -> dict[str, Any]:
    n_images = sum(text.count("<image>") for _, text in turns)
    images = {"image": [f"{i}.png" for i in range(n_images)]} if n_images else {}
    conversations = [{"from": role, "value": text} for role, text in turns]
    return {"id": "r", **images, "conversations": conversations}


def learned_texts(encoded: dict[str, list[int]], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The runs of learned tokens, decoded."""
    runs: list[list[int]] = []
    previous = IGNORE_INDEX
    for token, label in zip(encoded["input_ids"], encoded["labels"], strict=True):
        assert label in (token, IGNORE_INDEX)
        if label != IGNORE_INDEX:
            if previous == IGNORE_INDEX:
                runs.append([])
            runs[-1].append(token)
        previous = label
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]


def pieces(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("name", ["vicuna_v1", "v0_mmtag", "llava_llama_2", "mistral_instruct",
                                  "plain", "v0"])  # fmt: skip
@pytest.mark.parametrize("kind", ["llama_legacy", "llama"])
@pytest.mark.parametrize("turns", TEN_ROWS)
def test_ids_of_pieces_equal_those_of_the_whole_string_on_llama(
    tokenizers: dict[str, PreTrainedTokenizerFast], kind: str, name: str,
    turns: list[tuple[str, str]],
) -> None:  # fmt: skip
    tokenizer, template = tokenizers[kind], TEMPLATES[name]
    if name == "plain" and not turns[0][1].count("<image>"):
        pytest.skip("plain is for pictures")
    whole = tokenizer(render(template, turns))["input_ids"]
    encoded = encode(row_of(turns), tokenizer, template, 1)
    assert pieces(tokenizer, encoded["input_ids"]) == pieces(tokenizer, whole)
