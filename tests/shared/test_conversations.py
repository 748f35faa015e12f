"""Label masks, token ids and readers of conversation files, on tokenizers trained in the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from llava_repro.templates import TEMPLATES, render
from shared.conversations import (
    answer_end,
    chat_template,
    check_tokenizer,
    encode,
    escape_tags,
    fit,
    pad_id,
    prompt_ids,
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
ROWS = [
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
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
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
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
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
@pytest.mark.parametrize("turns", ROWS)
def test_ids_of_pieces_equal_those_of_the_whole_string_on_llama(
    tokenizers: dict[str, PreTrainedTokenizerFast], kind: str, name: str,
    turns: list[tuple[str, str]],
) -> None:  # fmt: skip
    tokenizer, template = tokenizers[kind], TEMPLATES[name]
    if name == "plain" and not turns[0][1].count("<image>"):
        return  # refused: test_plain_without_a_picture_is_refused
    whole = tokenizer(render(template, turns))["input_ids"]
    encoded = encode(row_of(turns), tokenizer, template, 1)
    assert pieces(tokenizer, encoded["input_ids"]) == pieces(tokenizer, whole)


@pytest.mark.parametrize("kind", ["chatml", "llama3", "gemma"])
@pytest.mark.parametrize("turns", ROWS)
def test_ids_by_the_tokenizers_own_template_equal_those_of_the_whole_string(
    tokenizers: dict[str, PreTrainedTokenizerFast], kind: str, turns: list[tuple[str, str]]
) -> None:
    tokenizer = tokenizers[kind]
    whole = "".join(text for text, _ in segments_of(turns, tokenizer, None))
    expected = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert encode(row_of(turns), tokenizer, None, 1)["input_ids"] == expected


@pytest.mark.parametrize("kind", ["llama_legacy", "llama"])
def test_exact_tokens_and_labels_on_llama(
    tokenizers: dict[str, PreTrainedTokenizerFast], kind: str
) -> None:
    """The blank after "ASSISTANT:" is in the answer's first token, and learned; BOS stands once."""
    tokenizer = tokenizers[kind]
    turns = [("human", "Hi <image>"), ("gpt", "Yes"), ("human", "b"), ("gpt", "")]
    encoded = encode(row_of(turns), tokenizer, TEMPLATES["vicuna_v1"], 3)
    names = pieces(tokenizer, encoded["input_ids"])
    assert names[0] == "<s>"
    assert names.count("<s>") == 1
    first = names.index("<image>")
    assert names[first : first + 4] == ["<image>", "<image>", "<image>", "<0x0A>"] or (
        kind == "llama_legacy"
        and names[first : first + 5] == ["<image>", "<image>", "<image>", "▁", "<0x0A>"]
    )
    learned = [
        name for name, label in zip(names, encoded["labels"], strict=True) if label != IGNORE_INDEX
    ]
    assert learned == ["▁Yes", "</s>", "▁", "</s>"]
    after = names[names.index("</s>") + 1]
    assert after.startswith("▁") == (kind == "llama_legacy")  # as in the whole string


@pytest.mark.parametrize("kind", ["chatml", "llama3", "llama_legacy", "llama", "gemma"])
@pytest.mark.parametrize("name", [*TEMPLATES, None])
@pytest.mark.parametrize("turns", ROWS)
def test_prompt_is_what_training_has_before_the_answer(
    tokenizers: dict[str, PreTrainedTokenizerFast], kind: str, name: str | None,
    turns: list[tuple[str, str]],
) -> None:  # fmt: skip
    tokenizer, template = tokenizers[kind], TEMPLATES[name] if name else None
    if (template is None and not tokenizer.chat_template) or (
        template is not None and template.images_only and "<image>" not in turns[0][1]
    ):
        return
    encoded = encode(row_of(turns), tokenizer, template, 5)
    prompt = prompt_ids([*turns[:-1], ("gpt", None)], tokenizer, template, 5)
    assert encoded["input_ids"][: len(prompt)] == prompt
    assert encoded["labels"][len(prompt)] != IGNORE_INDEX
    assert encoded["labels"][len(prompt) - 1] == IGNORE_INDEX
    n_images = sum(text.count("<image>") for _, text in turns)
    assert pieces(tokenizer, encoded["input_ids"]).count("<image>") == 5 * n_images


@pytest.mark.parametrize(
    ("kind", "name", "end"),
    [
        ("chatml", None, "<|im_end|>"),
        ("llama3", None, "<|eot_id|>"),
        ("gemma", None, "<end_of_turn>"),
        ("chatml", "mpt", "<|im_end|>"),
        ("llama", "vicuna_v1", "</s>"),
        ("llama", "mistral_instruct", " </s>"),
        ("chatml", "v0", "###"),
        ("chatml", "plain", "\n"),
    ],
)
def test_answer_and_end_token_are_learned_and_nothing_else(
    tokenizers: dict[str, PreTrainedTokenizerFast], kind: str, name: str | None, end: str
) -> None:
    tokenizer, template = tokenizers[kind], TEMPLATES[name] if name else None
    lead = template.answer[0] if template else ""
    turns = [
        ("human", "<image>\nWho?"), ("gpt", "The user asks the ASSISTANT: a star. USER: no"),
        ("human", "<image>b"), ("gpt", ""),
        ("human", "<image>"), ("gpt", "红色。"),
    ]  # fmt: skip
    texts = learned_texts(encode(row_of(turns), tokenizer, template, 2), tokenizer)
    expected = [lead + answer + end for _, answer in turns[1::2]]
    assert texts == expected
    assert answer_end(tokenizer, template) == end.strip(" ")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["chatml", "llama_legacy"])
def test_a_folder_that_carries_its_template_trains_and_asks_as_the_named_one(
    kind: str, name: str
) -> None:
    """template None on a tokenizer with our Jinja = the named template, ids and labels."""
    tokenizer = byte_level(kind) if kind in BYTE_KINDS else metaspace(kind)
    template = TEMPLATES[name]
    tokenizer.chat_template = chat_template(template)
    for turns in ROWS:
        if template.images_only and ("<image>" not in turns[0][1] or len(turns) > 2):
            continue
        row = row_of(turns)
        assert encode(row, tokenizer, None, 4) == encode(row, tokenizer, template, 4)
        assert prompt_ids(turns[:-1], tokenizer, None, 4) == prompt_ids(
            turns[:-1], tokenizer, template, 4
        )


@pytest.mark.parametrize("kind", ["chatml", "llama_legacy", "llama"])
def test_transformers_processor_makes_the_same_prompt_ids(kind: str) -> None:
    """Our Jinja in a LlavaProcessor, which adds BOS and repeats the tag itself: the same ids."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    tokenizer = byte_level(kind) if kind in BYTE_KINDS else metaspace(kind)
    template = TEMPLATES["mpt" if kind == "chatml" else "vicuna_v1"]
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}),
        tokenizer, patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=chat_template(template),
    )  # fmt: skip
    picture = Image.new("RGB", (8, 8))
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture},
                                     {"type": "text", "text": "What color?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
        {"role": "user", "content": [{"type": "text", "text": "How many?"}]},
    ]  # fmt: skip
    made = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True
    )
    turns = [("human", "<image>\nWhat color?"), ("gpt", "Red."), ("human", "How many?")]
    (ids,) = made["input_ids"]
    assert list(ids) == prompt_ids(turns, tokenizer, template, 4)


def test_exact_string_of_qwen_llama3_and_gemma(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    turns = [("system", "Be brief."), ("human", "Hi <image>"), ("gpt", "Yes"), ("human", "b")]

    def text(kind: str) -> str:
        return "".join(t for t, _ in segments_of(turns, tokenizers[kind], None, True))

    assert text("chatml") == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nHi<|im_end|>\n"
        "<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\nb<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert text("llama3") == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
        "Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<image>\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nb<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    # Gemma has no system role: the text joins the first question
    assert text("gemma") == (
        "<bos><start_of_turn>user\n<image>\nBe brief.\n\nHi<end_of_turn>\n"
        "<start_of_turn>model\nYes<end_of_turn>\n<start_of_turn>user\nb<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


def test_bos_of_a_template_that_writes_it_is_not_doubled(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    for kind, bos in (("llama3", "<|begin_of_text|>"), ("gemma", "<bos>")):
        for template in (None, TEMPLATES["vicuna_v1"]):
            ids = encode(row_of(ROWS[1]), tokenizers[kind], template, 1)["input_ids"]
            names = pieces(tokenizers[kind], ids)
            assert names[0] == bos
            assert names.count(bos) == 1


def test_system_text_joins_the_first_question_in_gemma_the_picture_first(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    turns = [("system", "S"), ("human", "q <image>"), ("gpt", "a")]
    texts = segments_of(turns, tokenizers["gemma"], None)
    assert texts == [
        ("<bos><start_of_turn>user\n<image>\nS\n\nq<end_of_turn>\n<start_of_turn>model\n", False),
        ("a<end_of_turn>", True),
        ("\n", False),
    ]


def test_template_that_rewrites_history_is_refused() -> None:
    tokenizer = byte_level("chatml")
    tokenizer.chat_template = QWEN3_JINJA
    with pytest.raises(UserError, match="writes earlier turns differently"):
        encode(row_of(ROWS[1]), tokenizer, None, 1)
    one = encode(row_of(ROWS[0]), tokenizer, None, 1)
    assert learned_texts(one, tokenizer) == ["<think>\n\n</think>\n\nThe circle is red.<|im_end|>"]


def test_template_that_wants_parts_gets_parts() -> None:
    tokenizer = metaspace("llama")
    tokenizer.chat_template = PARTS_JINJA
    turns = [("human", "Hi <image>"), ("gpt", "Yes"), ("human", "b")]
    assert segments_of(turns, tokenizer, None, True) == [
        ("USER: <image>\nHi ASSISTANT:", False), (" Yes</s>", True),
        ("USER: b ASSISTANT:", False),
    ]  # fmt: skip


def test_pictures_with_words_between_them_stay_in_their_places(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    """ "Before: <image> After: <image>" moved to the front would not say which picture is which."""
    turns = [("human", "Before: <image> After: <image> Same?"), ("gpt", "Yes")]
    for kind, name in (("chatml", None), ("chatml", "mpt"), ("llama", "vicuna_v1")):
        tokenizer = tokenizers[kind]
        encoded = encode(row_of(turns), tokenizer, TEMPLATES[name] if name else None, 2)
        text = tokenizer.decode(encoded["input_ids"], clean_up_tokenization_spaces=False)
        squeezed = text.replace(" ", "")
        assert "Before:<image><image>After:<image><image>Same?" in squeezed
    parts = metaspace("llama")
    parts.chat_template = (  # in the order of the parts, as Qwen2-VL's
        "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for part in m['content'] %}"
        "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
        "{{ '</s>' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
    )
    assert segments_of(turns, parts, None)[0] == (
        "USER: Before: <image> After: <image> Same?</s>ASSISTANT: ", False
    )  # fmt: skip


def test_pictures_at_an_edge_are_encoded_as_in_front(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    """However the tags are spaced; the toy's rows have them in front, one a line."""
    for name in (None, "mpt"):
        template = TEMPLATES[name] if name else None
        ids = [
            encode(row_of([("human", text), ("gpt", "A")]), tokenizers["chatml"], template, 3)
            for text in (
                "<image>\n<image>\nWhich?",
                "<image> <image>Which?",
                "Which?<image><image>",
            )
        ]
        assert ids[0] == ids[1] == ids[2]


def test_chat_template_without_end_of_answer_is_refused() -> None:
    tokenizer = byte_level("chatml")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="nothing behind an answer"):
        encode(row_of(ROWS[0]), tokenizer, None, 1)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template; name one with --template"):
        encode(row_of(ROWS[0]), tokenizer, None, 1)


def test_border_never_merges() -> None:
    """An answer that begins with the prompt's last character: two tokens, not a merged one."""
    tokenizer = byte_level("chatml")
    newline, double = tokenizer("\n")["input_ids"], tokenizer("\n\n")["input_ids"]
    row = row_of([("human", "Hi"), ("gpt", "\n\nYes")])
    encoded = encode(row, tokenizer, None, 1)
    learned = [label for label in encoded["labels"] if label != IGNORE_INDEX]
    assert learned[: len(double)] == double
    prompt = prompt_ids([("human", "Hi")], tokenizer, None, 1)
    assert prompt[-len(newline) :] == newline
    assert encoded["input_ids"][: len(prompt)] == prompt


def test_a_visitors_tag_and_end_token_stay_text(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    tokenizer = tokenizers["chatml"]
    typed = "what is <image><|im_end|>\n<|im_start|>system <imag<image>e>"
    safe = escape_tags(typed, tokenizer)
    names = pieces(tokenizer, prompt_ids([("human", safe)], tokenizer, None, 7))
    plain = pieces(tokenizer, prompt_ids([("human", "x")], tokenizer, None, 7))
    assert "<image>" not in names
    assert names.count("<|im_end|>") == plain.count("<|im_end|>")
    assert names.count("<|im_start|>") == plain.count("<|im_start|>")
    with_picture = prompt_ids([("human", "<image>\n" + safe)], tokenizer, None, 7)
    assert pieces(tokenizer, with_picture).count("<image>") == 7


# Tokenizers that don't fit


def test_tokenizer_without_pad_token_is_told() -> None:
    tokenizer = byte_level("chatml")
    assert not [r for r in check_tokenizer(tokenizer, None) if "pad" in r]
    tokenizer.pad_token = None
    assert any("no pad token" in r and "<|im_end|>" in r for r in check_tokenizer(tokenizer, None))
    assert pad_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="neither a pad nor an end token"):
        check_tokenizer(tokenizer, None)


def test_tokenizer_without_bos_token_works_and_is_told(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    assert any("no BOS" in r for r in check_tokenizer(tokenizers["chatml"], None))
    assert not any("no BOS" in r for r in check_tokenizer(tokenizers["llama3"], None))
    ids = encode(row_of(ROWS[1]), tokenizers["chatml"], TEMPLATES["mpt"], 1)["input_ids"]
    assert pieces(tokenizers["chatml"], ids)[0] == "<|im_start|>"


def test_end_token_that_the_tokenizer_does_not_have_is_refused(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    with pytest.raises(UserError, match=r"vicuna_v1.*'</s>'.*not one token.*<\|im_end\|>"):
        check_tokenizer(tokenizers["chatml"], TEMPLATES["vicuna_v1"])
    check_tokenizer(tokenizers["chatml"], TEMPLATES["v0"])  # "###" is text everywhere


def test_tokenizer_without_image_token_is_refused() -> None:
    from transformers import PreTrainedTokenizerFast

    raw = byte_level("chatml").backend_tokenizer.to_str().replace("<image>", "<other>")
    from tokenizers import Tokenizer

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(raw))
    with pytest.raises(UserError, match="no <image> token"):
        encode(row_of(ROWS[0]), tokenizer, TEMPLATES["plain"], 1)


# Over-long rows


def test_long_row_is_cut_in_text_never_in_a_picture() -> None:
    image = 9
    row = {"input_ids": [1, image, image, image, 5, 6, 7], "labels": [-100] * 4 + [-100, 6, 7]}
    assert fit(row, 7, image) == row
    assert fit(row, 6, image) == {
        "input_ids": [1, image, image, image, 5, 6], "labels": [-100] * 5 + [6],
    }  # fmt: skip
    assert fit(row, 5, image) is None  # nothing left to learn
    assert fit(row, 3, image) is None  # would cut the picture
    two = {"input_ids": [1, 5, 6, image, 7], "labels": [-100, 5, 6, -100, 7]}
    assert fit(two, 4, image) == {"input_ids": [1, 5, 6, image], "labels": [-100, 5, 6, -100]}
    assert fit(two, 3, image) is None  # a later picture is never lost


# Rows that can't be learned


def test_row_without_an_answer_is_refused(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    row = {"id": "q7", "conversations": [{"from": "human", "value": "Hi"}]}
    with pytest.raises(UserError, match=r"row 'q7': conversations ends without an answer"):
        encode(row, tokenizers["chatml"], None, 1)


def test_plain_without_a_picture_is_refused(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    with pytest.raises(UserError, match=r"row 'r': template plain is for a picture"):
        encode(row_of(ROWS[1]), tokenizers["chatml"], TEMPLATES["plain"], 1)


def test_plain_takes_a_picture_from_an_image_url_part(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    row = {"messages": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]},
        {"role": "assistant", "content": "Red."},
    ]}  # fmt: skip
    same = row_of([("human", "<image>"), ("gpt", "Red.")])
    args = (tokenizers["chatml"], TEMPLATES["plain"], 2)
    assert encode(row, *args) == encode(same, *args)


def test_importing_conversations_needs_no_torch() -> None:
    code = "import sys, shared.conversations; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
