"""Chat templates: the tokenizer's own as pieces of text, and a named one written as Jinja.

A model folder carries its prompt as a Jinja text in its tokenizer. `tokenizer_segments` finds the
answers in what such a text writes by rendering growing conversations (published templates have no
marks for them); `chat_template` writes one of ours. Used through `conversations.py`. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from shared.conversation_files import IMAGE_TAG, Turn
from shared.options import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shared.conversations import Template

Segment = tuple[str, bool]  # (text, learned)
CHAT_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
# Llama 3's chat template writes today's date into the prompt unless it is given one; this is the
# day that its authors put there for programs without a clock. A prompt must not change overnight.
DATE_STRING = "26 Jul 2024"
PROBE = "Qprobe7"
# The body that `chat_template` puts behind a template's values; Template.segments in Jinja.
CHAT_TEMPLATE = """\
{%- macro text_of(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- else -%}
    {%- for part in content -%}
      {{- '<image>' if part['type'] == 'image' else part['text'] -}}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro question(content) -%}
  {%- set text = text_of(content) -%}
  {%- set n = text.count('<image>') -%}
  {%- if IMAGES_ONLY -%}{{- TAG * n -}}
  {%- elif n == 0 -%}{{- text -}}
  {%- elif text.split('<image>')[1:-1] | join | trim -%}{{- text.replace('<image>', TAG) -}}
  {%- else -%}
    {%- set rest = text.replace('<image>', '').strip() -%}
    {{- (TAG + '\\n') * (n - 1) + TAG + ('\\n' + rest if rest else '') -}}
  {%- endif -%}
{%- endmacro -%}
{%- set system = SYSTEM_DEFAULT -%}
{%- set turns = messages -%}
{%- if messages and messages[0]['role'] == 'system' -%}
  {%- set system = '' if IMAGES_ONLY else text_of(messages[0]['content']) -%}
  {%- set turns = messages[1:] -%}
{%- endif -%}
{%- set block = SYSTEM_BEFORE + system + SYSTEM_AFTER if system else '' -%}
{{- ('' if SYSTEM_IN_TURN else block) + EXAMPLES -}}
{%- for turn in turns -%}
  {%- if turn['role'] == 'user' -%}
    {{- ('' if loop.first else BETWEEN) + HUMAN_BEFORE -}}
    {{- (block if SYSTEM_IN_TURN and loop.first else '') -}}
    {{- question(turn['content']) + HUMAN_AFTER -}}
  {%- elif turn['role'] == 'assistant' -%}
    {{- GPT + ANSWER_BEFORE + text_of(turn['content']) + ANSWER_AFTER -}}
  {%- else -%}
    {{- raise_exception('roles are user and assistant, with one system turn in front') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- GPT -}}{%- endif -%}
"""


def is_interleaved(text: str) -> bool:
    """Whether a turn has words between its pictures: "A: <image> B: <image>"."""
    return any(between.strip() for between in text.split(IMAGE_TAG)[1:-1])


def place_images(text: str, tag: str = IMAGE_TAG) -> str:
    """A turn with its pictures where a model is shown them.

    One picture, or several with nothing but white space between them: moved to the front, one a
    line, the text stripped. With words between the pictures all stay where they are, as those words
    say which picture is which. LLaVA's rule (haotian-liu/LLaVA c121f04, llava/train/train.py,
    preprocess_multimodal) was made for one picture; LLaVA-NeXT's (LLaVA-VL/LLaVA-NeXT 45f2d92, the
    same function) moves one picture only.
    """
    n = text.count(IMAGE_TAG)
    if not n:
        return text
    if is_interleaved(text):
        return text.replace(IMAGE_TAG, tag)
    rest = text.replace(IMAGE_TAG, "").strip()
    return "\n".join([tag] * n + ([rest] if rest else []))


def checked_turns(
    turns: Sequence[Turn], add_generation_prompt: bool
) -> tuple[list[tuple[str, str]], bool]:
    """Turns without the answer to come, and whether one is to come. Raises UserError."""
    turns = list(turns)
    generate = add_generation_prompt
    if turns and turns[-1] == ("gpt", None):
        turns, generate = turns[:-1], True
    expected = "human"
    for i, (role, text) in enumerate(turns):
        if text is None:
            raise UserError(f"turn {i} ({role}) has no text; only a last answer may be open")
        if role == "system" and i == 0:
            continue
        if role != expected:
            raise UserError(f"turn {i} is from {role!r} where {expected!r} is due")
        expected = "gpt" if role == "human" else "human"
    if not any(role == "human" for role, _ in turns):
        raise UserError("a conversation without a human turn")
    if generate and expected == "human":
        raise UserError("an answer was asked for, but the last turn is an answer already")
    return turns, generate


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Special and added tokens, the longest first."""
    names = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    return tuple(sorted(names, key=len, reverse=True))


@dataclass(frozen=True)
class ChatStyle:
    """What probing a tokenizer's chat template showed."""

    in_parts: bool  # content must be a list of parts
    takes_system: bool
    tail: str  # what follows the text of a last answer
    end: str  # the learned front of the tail: up to its first special token


def chat_style(tokenizer: PreTrainedTokenizerBase) -> ChatStyle:
    return _probe_chat_style(tokenizer, tokenizer.chat_template)


@lru_cache(maxsize=16)
def _probe_chat_style(tokenizer: PreTrainedTokenizerBase, chat: str | None) -> ChatStyle:
    if not chat:
        raise UserError("the tokenizer has no chat template; name one with --template")
    question = ("human", f"{IMAGE_TAG}\n{PROBE}")
    as_text = _try_render(tokenizer, [question], False)
    in_parts = PROBE not in as_text or _pictures_in_parts_alone(tokenizer, question, as_text)
    if in_parts and PROBE not in _try_render(tokenizer, [question], True):
        if IMAGE_TAG not in _render(tokenizer, [question], False):  # LLaVA's plain leaves the text
            raise UserError("the tokenizer's chat template leaves out what the user says")
        in_parts = False
    system = ("system", "S" + PROBE)
    takes_system = "S" + PROBE in _try_render(tokenizer, [system, question], in_parts)
    answered = _render(tokenizer, [question, ("gpt", "A" + PROBE)], in_parts)
    _, found, tail = answered.rpartition("A" + PROBE)
    if not found or not tail.strip(" "):
        raise UserError(
            "the tokenizer's chat template writes "
            + (
                "nothing behind an answer: a model could not learn to stop"
                if found
                else "no answer"
            )
            + "; name a template with --template"
        )
    places = [(tail.index(s), s) for s in special_tokens(tokenizer) if s.strip() and s in tail]
    first = min(places, default=None)
    end = tail if first is None else tail[: first[0] + len(first[1])]
    return ChatStyle(in_parts, takes_system, tail, end)


def _pictures_in_parts_alone(
    tokenizer: PreTrainedTokenizerBase, question: tuple[str, str], as_text: str
) -> bool:
    """Qwen-VL's template takes a text too, but `<image>` stays letters there: only a list of parts
    gets the tokens that stand for a picture."""
    as_parts = _try_render(tokenizer, [question], True)
    return PROBE in as_parts and any(
        token in as_parts and token not in as_text for token in special_tokens(tokenizer)
    )


def tokenizer_segments(
    tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]], generate: bool
) -> list[Segment]:
    """Answers found as differences between renderings of turns[:k]. See `Template.segments`.

    Published chat templates have no marks for what the assistant says, so each is rendered up to a
    question (with generation prompt) and up to its answer. Raises UserError for a template that
    writes earlier turns differently later on (Qwen 3 takes out earlier thinking).
    """
    style = chat_style(tokenizer)
    if turns[0][0] == "system" and not style.takes_system:  # Gemma, Mistral
        (_, system), (role, first), *later = turns
        turns = [(role, f"{system}\n\n{first}"), *later]
    whole = _render(tokenizer, turns, style.in_parts, generate)
    segments: list[Segment] = []
    done = 0
    for k, (role, _) in enumerate(turns):
        if role != "gpt":
            continue
        prompt = _render(tokenizer, turns[:k], style.in_parts, True)
        answered = _render(tokenizer, turns[: k + 1], style.in_parts)
        if not (
            answered.startswith(prompt)
            and whole.startswith(answered)
            and answered.endswith(style.tail)
        ):
            if generate:  # a prompt learns nothing: it is asked as the template writes it now
                return [(whole, False)]
            raise UserError(
                "the tokenizer's chat template writes earlier turns differently when later ones "
                f"follow (seen at turn {k}), so what is learned would not be what is asked at "
                "inference; use rows of one question each, or where a script takes it --template"
            )
        learned_to = len(answered) - len(style.tail) + len(style.end)
        segments += [(whole[done : len(prompt)], False), (whole[len(prompt) : learned_to], True)]
        done = learned_to
    segments.append((whole[done:], False))
    return [segment for segment in segments if segment[0]]


def _render(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[tuple[str, str]],
    in_parts: bool,
    generate: bool = False,
) -> str:
    from jinja2 import TemplateError

    messages = [{"role": CHAT_ROLES[r], "content": _content(r, t, in_parts)} for r, t in turns]
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generate, date_string=DATE_STRING
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise UserError(f"the tokenizer's chat template fails: {error}") from error


def _try_render(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], in_parts: bool
) -> str:
    try:
        return _render(tokenizer, turns, in_parts)
    except UserError:
        return ""


def _content(role: str, text: str, in_parts: bool) -> str | list[dict[str, str]]:
    text = place_images(text) if role == "human" else text
    if not in_parts:
        return text
    if role == "human" and is_interleaved(text):
        parts: list[dict[str, str]] = []
        for i, piece in enumerate(text.split(IMAGE_TAG)):
            parts += [{"type": "image"}] if i else []
            parts += [{"type": "text", "text": piece}] if piece else []
        return parts
    n = text.count(IMAGE_TAG) if role == "human" else 0
    rest = text.replace(IMAGE_TAG, "").strip() if n else text
    return [{"type": "image"}] * n + [{"type": "text", "text": rest}]


def chat_template(template: Template) -> str:
    """The Jinja text by which `tokenizer.apply_chat_template` writes what `template` writes.

    `convert.py` stores it in the tokenizer, so that a model folder carries its own template.
    `content` is a string with `<image>` in it or the list of parts that processors use. Like the
    published LLaVA folders it writes no BOS: tokenizers and processors add that.
    """
    bare = replace(template, system="", examples=())
    shown = bare.segments(template.examples) if template.examples else []
    examples = "".join(text for text, _ in shown)
    values = {
        "TAG": template.image_around[0] + IMAGE_TAG + template.image_around[1],
        "SYSTEM_DEFAULT": "" if template.images_only else template.system,
        "SYSTEM_BEFORE": template.system_around[0],
        "SYSTEM_AFTER": template.system_around[1],
        "EXAMPLES": examples + template.between_rounds if examples else "",
        "BETWEEN": template.between_rounds,
        "HUMAN_BEFORE": template.human[0],
        "HUMAN_AFTER": template.human[1],
        "GPT": template.gpt,
        "ANSWER_BEFORE": template.answer[0],
        "ANSWER_AFTER": template.answer[1],
        "IMAGES_ONLY": template.images_only,
        "SYSTEM_IN_TURN": template.system_in_turn,
    }
    head = "".join(
        f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}\n"
        for name, value in values.items()
    )
    return head + CHAT_TEMPLATE
