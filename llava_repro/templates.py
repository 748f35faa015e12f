"""LLaVA's named prompt templates, string by string as the released checkpoints were trained.

The strings are those of haotian-liu/LLaVA c121f04, llava/conversation.py. A model folder carries
its template in its tokenizer (`shared.conversations.chat_template`), so these names are needed only
where a checkpoint is trained or converted. Llama 3, Qwen and Gemma have no name here: template None
is the tokenizer's own chat template.

    from llava_repro.templates import TEMPLATES, render
    render(TEMPLATES["vicuna_v1"], [("human", "<image>\\nWhat is it?"), ("gpt", None)])

Two things to know about the originals. LLaVA's training and evaluation use `vicuna_v1` ("user"),
its command line and demo pick `llava_v1` ("human") for the same checkpoints; here one name serves
all. The mmtag templates are written as in training; LLaVA's demo gives the picture a turn of its
own there.
"""

from __future__ import annotations

from collections.abc import Sequence

from shared.conversation_files import Turn
from shared.conversations import Template

POLITE = (
    "A chat between a curious {0} and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the {0}'s questions."
)
MMTAG = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able "
    "to understand the visual content that the user provides, and assist the user with a variety "
    "of tasks using natural language.The visual content will be provided with the following "
    "format: <Image>visual content</Image>."  # no blank before "The visual": as released
)
LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially unbiased "
    "and positive in nature.\n\nIf a question does not make any sense, or is not factually "
    "coherent, explain why instead of answering something not correct. If you don't know the "
    "answer to a question, please don't share false information."
)
LLAVA_LLAMA_2 = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
MPT = (
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and "
    "honest answers."
)
# The dialogue that Vicuna v0, and so LLaVA's "v0", shows before every conversation.
V0_EXAMPLE = (
    (
        "human",
        "What are the key differences between renewable and non-renewable energy sources?",
    ),
    (
        "gpt",
        "Renewable energy sources are those that can be replenished naturally in a relatively "
        "short amount of time, such as solar, wind, hydro, geothermal, and biomass. "
        "Non-renewable energy sources, on the other hand, are finite and will eventually be "
        "depleted, such as coal, oil, and natural gas. Here are some key differences between "
        "renewable and non-renewable energy sources:\n"
        "1. Availability: Renewable energy sources are virtually inexhaustible, while "
        "non-renewable energy sources are finite and will eventually run out.\n"
        "2. Environmental impact: Renewable energy sources have a much lower environmental impact "
        "than non-renewable sources, which can lead to air and water pollution, greenhouse gas "
        "emissions, and other negative effects.\n"
        "3. Cost: Renewable energy sources can be more expensive to initially set up, but they "
        "typically have lower operational costs than non-renewable sources.\n"
        "4. Reliability: Renewable energy sources are often more reliable and can be used in more "
        "remote locations than non-renewable sources.\n"
        "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to "
        "different situations and needs, while non-renewable sources are more rigid and "
        "inflexible.\n"
        "6. Sustainability: Renewable energy sources are more sustainable over the long term, "
        "while non-renewable sources are not, and their depletion can lead to economic and social "
        "instability.\n",
    ),
)
NO_IMAGE_TAGS = ("", "")
IMAGE_TAGS = ("<Image>", "</Image>")


def _v0(
    name: str,
    system: str,
    image_around: tuple[str, str] = NO_IMAGE_TAGS,
    examples: tuple[tuple[str, str], ...] = (),
) -> Template:
    return Template(
        name=name, system=system, system_around=("", "###"), human=("Human: ", "###"),
        gpt="Assistant:", answer=(" ", "###"), image_around=image_around, examples=examples,
    )  # fmt: skip


def _v1(name: str, system: str, image_around: tuple[str, str] = NO_IMAGE_TAGS) -> Template:
    return Template(
        name=name, system=system, system_around=("", " "), human=("USER: ", " "),
        gpt="ASSISTANT:", answer=(" ", "</s>"), image_around=image_around,
    )  # fmt: skip


def _llama_2(name: str, system: str, between_rounds: str) -> Template:
    return Template(
        name=name, system=system, system_around=("<<SYS>>\n", "\n<</SYS>>\n\n"),
        system_in_turn=True, human=("[INST] ", " [/INST]"), gpt="", answer=(" ", " </s>"),
        between_rounds=between_rounds,
    )  # fmt: skip


def _chatml(name: str, system: str) -> Template:
    return Template(
        name=name, system=system, system_around=("<|im_start|>system\n", "<|im_end|>"),
        human=("<|im_start|>user\n", "<|im_end|>"), gpt="<|im_start|>assistant\n",
        answer=("", "<|im_end|>"),
    )  # fmt: skip


def _plain(name: str) -> Template:
    """Stage 1: the picture, its caption and a line break; the instruction is left out."""
    return Template(name=name, human=("", ""), gpt="", answer=("", "\n"), images_only=True)


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        _plain("plain"),
        _plain("v0_plain"),
        _v0("v0", POLITE.format("human"), examples=V0_EXAMPLE),
        _v0("default", POLITE.format("human"), examples=V0_EXAMPLE),
        _v0("llava_v0", POLITE.format("human")),
        _v0("v0_mmtag", MMTAG, IMAGE_TAGS),
        _v1("v1", POLITE.format("user")),
        _v1("vicuna_v1", POLITE.format("user")),
        _v1("llava_v1", POLITE.format("human")),
        _v1("v1_mmtag", MMTAG, IMAGE_TAGS),
        _llama_2("llama_2", LLAMA_2, "<s>"),
        _llama_2("llava_llama_2", LLAVA_LLAMA_2, "<s>"),
        _llama_2("mistral_instruct", "", ""),
        _chatml("mpt", MPT),
        _chatml("chatml_direct", "Answer the questions."),
        _chatml("mistral_direct", "Answer the questions."),
    )
}


def render(template: Template, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
    """The prompt as one string, without BOS. See `Template.segments`."""
    return "".join(text for text, _ in template.segments(turns, add_generation_prompt))
