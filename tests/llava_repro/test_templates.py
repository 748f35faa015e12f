"""LLaVA's named templates, string by string, in Python and in Jinja."""

from __future__ import annotations

from typing import Any

import pytest

from llava_repro.templates import TEMPLATES, render
from shared.chat_templates import CHAT_ROLES
from shared.conversations import chat_template
from shared.options import UserError

ASK = [("human", "<image>\nHi"), ("gpt", None)]
TWO = [("human", "Hi <image>"), ("gpt", "Yes"), ("human", "Why?"), ("gpt", "So.")]

USER = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)
MMTAG = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able "
    "to understand the visual content that the user provides, and assist the user with a variety "
    "of tasks using natural language.The visual content will be provided with the following "
    "format: <Image>visual content</Image>."
)
LLAMA = (
    "<<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the "
    "visual content that the user provides, and assist the user with a variety of tasks using "
    "natural language.\n<</SYS>>\n\n"
)
MPT = (
    "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. The "
    "assistant gives helpful and honest answers.<|im_end|>"
)
DIRECT = "<|im_start|>system\nAnswer the questions.<|im_end|>"

EXPECTED = {
    "vicuna_v1": (
        f"{USER} USER: <image>\nHi ASSISTANT:",
        f"{USER} USER: <image>\nHi ASSISTANT: Yes</s>USER: Why? ASSISTANT: So.</s>",
    ),
    "v1": (
        f"{USER} USER: <image>\nHi ASSISTANT:",
        f"{USER} USER: <image>\nHi ASSISTANT: Yes</s>USER: Why? ASSISTANT: So.</s>",
    ),
    "llava_v1": (
        f"{HUMAN} USER: <image>\nHi ASSISTANT:",
        f"{HUMAN} USER: <image>\nHi ASSISTANT: Yes</s>USER: Why? ASSISTANT: So.</s>",
    ),
    "v1_mmtag": (
        f"{MMTAG} USER: <Image><image></Image>\nHi ASSISTANT:",
        f"{MMTAG} USER: <Image><image></Image>\nHi ASSISTANT: Yes</s>USER: Why? ASSISTANT: So.</s>",
    ),
    "llava_v0": (
        f"{HUMAN}###Human: <image>\nHi###Assistant:",
        f"{HUMAN}###Human: <image>\nHi###Assistant: Yes###Human: Why?###Assistant: So.###",
    ),
    "v0_mmtag": (
        f"{MMTAG}###Human: <Image><image></Image>\nHi###Assistant:",
        f"{MMTAG}###Human: <Image><image></Image>\nHi###Assistant: Yes###Human: Why?"
        "###Assistant: So.###",
    ),
    "plain": ("<image>", "<image>Yes\nSo.\n"),
    "v0_plain": ("<image>", "<image>Yes\nSo.\n"),
    "llava_llama_2": (
        f"[INST] {LLAMA}<image>\nHi [/INST]",
        f"[INST] {LLAMA}<image>\nHi [/INST] Yes </s><s>[INST] Why? [/INST] So. </s>",
    ),
    "mistral_instruct": (
        "[INST] <image>\nHi [/INST]",
        "[INST] <image>\nHi [/INST] Yes </s>[INST] Why? [/INST] So. </s>",
    ),
    "mpt": (
        f"{MPT}<|im_start|>user\n<image>\nHi<|im_end|><|im_start|>assistant\n",
        f"{MPT}<|im_start|>user\n<image>\nHi<|im_end|><|im_start|>assistant\nYes<|im_end|>"
        "<|im_start|>user\nWhy?<|im_end|><|im_start|>assistant\nSo.<|im_end|>",
    ),
    "chatml_direct": (
        f"{DIRECT}<|im_start|>user\n<image>\nHi<|im_end|><|im_start|>assistant\n",
        f"{DIRECT}<|im_start|>user\n<image>\nHi<|im_end|><|im_start|>assistant\nYes<|im_end|>"
        "<|im_start|>user\nWhy?<|im_end|><|im_start|>assistant\nSo.<|im_end|>",
    ),
    "mistral_direct": (
        f"{DIRECT}<|im_start|>user\n<image>\nHi<|im_end|><|im_start|>assistant\n",
        f"{DIRECT}<|im_start|>user\n<image>\nHi<|im_end|><|im_start|>assistant\nYes<|im_end|>"
        "<|im_start|>user\nWhy?<|im_end|><|im_start|>assistant\nSo.<|im_end|>",
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_exact_strings(name: str) -> None:
    asked, answered = EXPECTED[name]
    assert render(TEMPLATES[name], ASK) == asked
    assert render(TEMPLATES[name], ASK[:1], add_generation_prompt=True) == asked
    assert render(TEMPLATES[name], TWO) == answered


def test_v0_shows_its_dialogue_and_does_not_learn_it() -> None:
    for name in ("v0", "default"):
        segments = TEMPLATES[name].segments([("human", "<image>\nHi"), ("gpt", "Yes")])
        (before, learned), (answer, answer_learned) = segments
        assert (learned, answer, answer_learned) == (False, " Yes###", True)
        assert before.startswith(
            f"{HUMAN}###Human: What are the key differences between renewable and non-renewable "
            "energy sources?###Assistant: Renewable energy sources are those that can be "
            "replenished naturally in a relatively short amount of time, such as solar, wind,"
        )
        assert before.endswith(
            "can lead to economic and social instability.\n###Human: <image>\nHi###Assistant:"
        )


def test_llama_2_has_its_long_system_text() -> None:
    prompt = render(TEMPLATES["llama_2"], ASK)
    assert prompt.startswith(
        "[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant. Always answer as "
        "helpfully as possible, while being safe.  Your answers should not include any harmful,"
    )
    assert prompt.endswith("please don't share false information.\n<</SYS>>\n\n<image>\nHi [/INST]")


@pytest.mark.parametrize(
    ("name", "learned"),
    [
        ("vicuna_v1", [" Yes</s>", " </s>"]),
        ("llava_v0", [" Yes###", " ###"]),
        ("llava_llama_2", [" Yes </s>", "  </s>"]),
        ("mpt", ["Yes<|im_end|>", "<|im_end|>"]),
        ("plain", ["Yes\n", "\n"]),
    ],
)
def test_answers_and_end_tokens_are_learned(name: str, learned: list[str]) -> None:
    """An empty answer too; no role word and nothing of the system text."""
    turns = [("system", "S"), ("human", "<image>"), ("gpt", "Yes"), ("human", "b"), ("gpt", "")]
    segments = TEMPLATES[name].segments(turns)
    assert [text for text, is_learned in segments if is_learned] == learned


def test_pictures_come_first_one_a_line_unless_words_stand_between_them() -> None:
    """LLaVA's rule for one picture; words between several say which is which, so they stay."""

    def question(text: str) -> str:
        prompt = render(TEMPLATES["mistral_instruct"], [("human", text)])
        return prompt.removeprefix("[INST] ").removesuffix(" [/INST]")

    assert question("Hi <image>") == "<image>\nHi"
    assert question("<image>") == "<image>"
    for together in ("<image>\n<image>\nHi", "<image> <image> Hi", "Hi\n<image><image>",
                     "<image><image>Hi"):  # fmt: skip
        assert question(together) == "<image>\n<image>\nHi"
    for between in ("<image> and <image>?", "Before: <image>\nAfter: <image>\nWhat is new? ",
                    "<image><image> or <image>"):  # fmt: skip
        assert question(between) == between
    mmtag = render(TEMPLATES["v1_mmtag"], [("human", "A: <image> B: <image>")])
    assert "A: <Image><image></Image> B: <Image><image></Image>" in mmtag
    assert question(" no picture ") == " no picture "  # text alone is left as it is


def test_a_system_turn_takes_the_place_of_the_default() -> None:
    turns = [("system", "Be brief."), ("human", "Hi")]
    assert render(TEMPLATES["vicuna_v1"], turns, True) == "Be brief. USER: Hi ASSISTANT:"
    assert render(TEMPLATES["mistral_instruct"], turns) == (
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]"
    )
    assert render(TEMPLATES["mpt"], [("system", ""), ("human", "Hi")]) == (
        "<|im_start|>user\nHi<|im_end|>"
    )


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "without a human turn"),
        ([("system", "S")], "without a human turn"),
        ([("gpt", "Yes")], "turn 0 is from 'gpt' where 'human' is due"),
        ([("human", "a"), ("human", "b")], "turn 1 is from 'human' where 'gpt' is due"),
        ([("human", "a"), ("system", "S")], "turn 1 is from 'system' where 'gpt' is due"),
        ([("human", "a"), ("gpt", None), ("human", "b")], r"turn 1 \(gpt\) has no text"),
        ([("human", None)], r"turn 0 \(human\) has no text"),
    ],
)
def test_turns_out_of_order_are_refused(turns: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TEMPLATES["vicuna_v1"].segments(turns)


def test_an_answer_after_an_answer_is_refused() -> None:
    with pytest.raises(UserError, match="the last turn is an answer already"):
        render(TEMPLATES["vicuna_v1"], TWO, add_generation_prompt=True)


CONVERSATIONS = [
    [("human", "<image>\nHi")],
    [("human", "Hi"), ("gpt", "Yes")],
    [("human", " Hi <image> there\n<image> "), ("gpt", " Yes\n"), ("human", "<image>")],
    [("human", "Which?\n<image> <image>\n"), ("gpt", "A"), ("human", "<image>\n\n<image>\nB?")],
    [("human", "<image>1<image><image>"), ("gpt", "A"), ("human", " <image>\u00a0<image> B")],
    [("system", "Be «brief»."), ("human", "问 <image>"), ("gpt", "答"), ("human", 'a "b" \\ c')],
    [("system", ""), ("human", "{{ x }}"), ("gpt", ""), ("human", " b "), ("gpt", "{% if %}")],
]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("generate", [False, True])
def test_jinja_writes_what_render_writes(
    name: str, turns: list[tuple[str, str]], generate: bool
) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    if generate and turns[-1][0] == "gpt":
        return
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    tokenizer.chat_template = chat_template(TEMPLATES[name])
    expected = render(TEMPLATES[name], turns, generate)

    def apply(messages: list[dict[str, Any]]) -> str:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generate
        )

    assert apply([{"role": CHAT_ROLES[r], "content": text} for r, text in turns]) == expected
    assert apply([{"role": CHAT_ROLES[r], "content": parts(text)} for r, text in turns]) == expected


def parts(text: str) -> list[dict[str, str]]:
    """The same content as a list of parts, pictures where their tags stand."""
    found: list[dict[str, str]] = []
    for i, piece in enumerate(text.split("<image>")):
        found += [{"type": "image"}] if i else []
        found += [{"type": "text", "text": piece}] if piece else []
    return found


def test_jinja_refuses_unknown_roles() -> None:
    from jinja2 import TemplateError
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    tokenizer.chat_template = chat_template(TEMPLATES["vicuna_v1"])
    with pytest.raises(TemplateError, match="roles are user and assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)
