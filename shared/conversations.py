"""Conversations: prompt templates, token ids and the rule which tokens are learned.

`Template.segments` writes a conversation as pieces of text, each learned or not: an answer and the
end token behind it are learned, nothing else. `encode` turns the pieces into ids and labels one by
one, so that a token never spans a border and nothing is found by counting; training, chat, demo and
evaluation all go through it (`prompt_ids` is the same up to the answer). Without a named template
the tokenizer's own chat template is used: the answers are the differences between renderings of
growing conversations. The reading of files is in `conversation_files.py`. No torch here.

    python -m shared.conversations data/llava/finetune.json --image_root data/llava --validate
    python -m shared.conversations data/toy/llava/finetune.jsonl --validate     (the toy's)

LLaVA's v1 convention, kept here: a prompt ends with "ASSISTANT:", and the blank before the answer
belongs to the answer's first token ("▁Yes"), so it is learned with the answer. It is what the
published checkpoints were trained on (haotian-liu/LLaVA c121f04, llava/train/train.py,
preprocess_v1).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from shared.conversation_files import (
    IMAGE_TAG,
    Turn,
    main,
    normalise_row,
    open_conversations,
    row_images,
    row_turns,
)
from shared.options import IGNORE_INDEX, UserError, guarded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "IMAGE_TAG", "Template", "answer_end", "chat_template", "check_tokenizer", "encode",
    "escape_tags", "fit", "open_conversations", "pad_id", "place_images", "prompt_ids",
    "row_images", "row_turns", "segments_of",
]  # fmt: skip

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


@dataclass(frozen=True)
class Template:
    """How a conversation is written as text. Named ones are in `llava_repro/templates.py`.

    A conversation is the system block, then human and gpt turns in turn. `answer` is learned
    with what it encloses: its second part is the end token.
    """

    name: str
    human: tuple[str, str]  # before and after the question
    gpt: str  # before the answer, not learned; the end of a generation prompt
    answer: tuple[str, str]  # before and after the answer, learned
    system: str = ""  # replaced by a conversation's own system turn; "" writes no block
    system_around: tuple[str, str] = ("", "")
    system_in_turn: bool = False  # the block stands inside the first human turn (Llama 2)
    between_rounds: str = ""  # before each human turn but the first
    image_around: tuple[str, str] = ("", "")  # mmtag: <Image>, </Image>
    images_only: bool = False  # plain: of system and human turns only the pictures remain
    examples: tuple[tuple[str, str], ...] = ()  # turns before the conversation, never learned

    def segments(self, turns: Sequence[Turn], add_generation_prompt: bool = False) -> list[Segment]:
        """The conversation as (text, learned) pieces; joined, they are the prompt.

        `turns` are ("system"|"human"|"gpt", text). A last ("gpt", None) is an answer to come, the
        same as `add_generation_prompt`. An empty answer still has its end token learned.
        Raises UserError when the turns don't alternate.
        """
        turns, generate = _checked_turns(turns, add_generation_prompt)
        system = self.system
        if turns[0][0] == "system":
            system, turns = turns[0][1], turns[1:]
        show_system = system and not self.images_only
        block = self.system_around[0] + system + self.system_around[1] if show_system else ""
        pieces: list[Segment] = []
        text = "" if self.system_in_turn else block
        for i, (role, value) in enumerate([*self.examples, *turns]):
            if role == "human":
                text += (self.between_rounds if i else "") + self.human[0]
                text += block if self.system_in_turn and i == 0 else ""
                text += self._question(value) + self.human[1]
                continue
            text += self.gpt
            answer = self.answer[0] + value + self.answer[1]
            if i < len(self.examples):
                text += answer
            else:
                pieces += [(text, False), (answer, True)]
                text = ""
        pieces.append((text + self.gpt if generate else text, False))
        return [piece for piece in pieces if piece[0]]

    def _question(self, text: str) -> str:
        tag = self.image_around[0] + IMAGE_TAG + self.image_around[1]
        if self.images_only:
            return tag * text.count(IMAGE_TAG)
        return place_images(text, tag)


def place_images(text: str, tag: str = IMAGE_TAG) -> str:
    """Every `<image>` of a turn moved to its front, one a line, the text stripped (as LLaVA)."""
    n = text.count(IMAGE_TAG)
    if not n:
        return text
    rest = text.replace(IMAGE_TAG, "").strip()
    return "\n".join([tag] * n + ([rest] if rest else []))


def escape_tags(text: str, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """What a visitor typed, with a blank in every special token, so that it stays text.

    Chat and demo pass each visitor's text through this and then put `<image>` before it for each
    picture. Otherwise a typed `<image>` would ask for features that are not there, and a typed end
    token would end the turn. Rows of training files are not escaped: there the tag is meant.
    """
    specials = {IMAGE_TAG} | (set(_specials(tokenizer)) if tokenizer is not None else set())
    for special in sorted(specials, key=len, reverse=True):
        # a token of white space alone (a newline in some vocabularies) opens no door
        if special.strip() and len(special) > 1:
            text = text.replace(special, f"{special[0]} {special[1:]}")
    return text


def encode(
    row: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    template: Template | None,
    n_image_tokens: int,
) -> dict[str, list[int]]:
    """A row of a conversation file -> {"input_ids", "labels"}, unpadded, of equal length.

    `labels` repeat the ids of every answer and its end token and are -100 elsewhere; they are not
    shifted (the model's loss does that). `<image>` is one token of the tokenizer and stands
    `n_image_tokens` times for each picture. `template` None is the tokenizer's own chat template.
    Raises UserError: a malformed row, a row without an answer, a tokenizer that doesn't fit.
    """
    row = normalise_row(row)
    turns = row_turns(row)
    if turns[-1][0] != "gpt":
        raise UserError(f"row {row.get('id')!r}: conversations ends without an answer to learn")
    segments = segments_of(turns, tokenizer, template)
    input_ids: list[int] = []
    labels: list[int] = []
    for ids, learned in _token_runs(segments, tokenizer, n_image_tokens):
        input_ids += ids
        labels += ids if learned else [IGNORE_INDEX] * len(ids)
    return {"input_ids": input_ids, "labels": labels}


def prompt_ids(
    turns: Sequence[Turn],
    tokenizer: PreTrainedTokenizerBase,
    template: Template | None,
    n_image_tokens: int,
) -> list[int]:
    """Token ids of a conversation up to the answer to come: what `encode` has before its labels."""
    segments = segments_of(turns, tokenizer, template, add_generation_prompt=True)
    return [i for ids, _ in _token_runs(segments, tokenizer, n_image_tokens) for i in ids]


def fit(
    encoded: dict[str, list[int]], max_length: int, image_token_id: int
) -> dict[str, list[int]] | None:
    """A row of at most `max_length` tokens: the end of its text is cut, as LLaVA does.

    Returns None, a row to drop and count, when a picture's token would be cut or nothing to learn
    would remain.
    """
    if len(encoded["input_ids"]) <= max_length:
        return encoded
    if image_token_id in encoded["input_ids"][max_length:]:
        return None
    cut = {name: values[:max_length] for name, values in encoded.items()}
    return cut if any(label != IGNORE_INDEX for label in cut["labels"]) else None


def segments_of(
    turns: Sequence[Turn],
    tokenizer: PreTrainedTokenizerBase,
    template: Template | None,
    add_generation_prompt: bool = False,
) -> list[Segment]:
    """(text, learned) pieces by a named template or, for None, the tokenizer's chat template."""
    if template is not None:
        return template.segments(turns, add_generation_prompt)
    return _chat_segments(tokenizer, *_checked_turns(turns, add_generation_prompt))


def answer_end(tokenizer: PreTrainedTokenizerBase, template: Template | None) -> str:
    """The text that ends an answer: `</s>`, `<|im_end|>`, `###`. Generation stops there."""
    return template.answer[1].strip(" ") if template else _chat_style(tokenizer).end.strip(" ")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, template: Template | None) -> list[str]:
    """Whether a tokenizer can be used with a template, before anything is encoded.

    Returns remarks worth printing (no pad token, no BOS token). Raises UserError when `<image>` or
    the template's end token is not one token, or when neither a pad nor an end token exists.
    """
    _image_token_id(tokenizer)
    end = answer_end(tokenizer, template)
    if end.startswith("<") and len(_ids(tokenizer, end)) != 1:
        raise UserError(
            f"template {template.name if template else 'of the tokenizer'}: answers end with "
            f"{end!r}, which is not one token of this tokenizer (its own end token is "
            f"{tokenizer.eos_token!r}), so the model would never stop; choose another --template, "
            "or none for the tokenizer's own chat template"
        )
    remarks = []
    if tokenizer.pad_token_id is None:
        name = tokenizer.convert_ids_to_tokens(pad_id(tokenizer))
        remarks.append(
            f"the tokenizer has no pad token: batches are padded with {name!r}; padding is masked "
            f"by length, so a real {name!r} is still learned"
        )
    if not _starts_with_bos(tokenizer):
        remarks.append("the tokenizer puts no BOS token before a text (right for Qwen and MPT)")
    return remarks


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills up a batch: the pad token, else the end token. UserError without both."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return token_id
    raise UserError(
        "the tokenizer has neither a pad nor an end token; set one in tokenizer_config.json "
        '("pad_token": "<pad>")'
    )


# Tokens


def _token_runs(
    segments: Sequence[Segment], tokenizer: PreTrainedTokenizerBase, n_image_tokens: int
) -> list[tuple[list[int], bool]]:
    """(ids, learned) for each piece, BOS in front where the tokenizer puts one, images repeated."""
    image_id = _image_token_id(tokenizer)
    runs = []
    text = "".join(piece for piece, _ in segments)
    if _starts_with_bos(tokenizer) and not text.startswith(tokenizer.bos_token):
        runs.append(([tokenizer.bos_token_id], False))
    before = ""
    for piece, learned in segments:
        ids = _ids_after(tokenizer, piece, before)
        runs.append(
            ([i for t in ids for i in ([t] * n_image_tokens if t == image_id else [t])], learned)
        )
        before = piece
    return runs


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _ids_after(tokenizer: PreTrainedTokenizerBase, text: str, before: str) -> list[int]:
    """Ids of `text` as it stands behind `before` in one string, no token across the border.

    SentencePiece-like tokenizers put a blank before a text on its own ("▁Yes"). There the text is
    tokenised behind an anchor whose own tokens are seen to be unchanged, and the anchor's tokens
    are taken off. A special token is its own anchor: some tokenizers (Llama's legacy behaviour) put
    the blank after each of them too, others don't.
    """
    if not before or not _adds_blank(tokenizer):
        return _ids(tokenizer, text)
    special = next((s for s in _specials(tokenizer) if before.endswith(s)), None)
    for anchor in [special] if special else [before[-1], "\n", ".", "1"]:
        head, both = _ids(tokenizer, anchor), _ids(tokenizer, anchor + text)
        if both[: len(head)] == head:
            return both[len(head) :]
    return _ids(tokenizer, text)


@lru_cache(maxsize=16)
def _adds_blank(tokenizer: PreTrainedTokenizerBase) -> bool:
    first = tokenizer.convert_ids_to_tokens(_ids(tokenizer, "a"))[0]
    return first[0] in "▁Ġ"


@lru_cache(maxsize=16)
def _starts_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a", verbose=False)["input_ids"][0] == bos


def _specials(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Special and added tokens, the longest first."""
    names = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    return tuple(sorted(names, key=len, reverse=True))


def _image_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    token_id = tokenizer.convert_tokens_to_ids(IMAGE_TAG)
    if token_id is None or token_id == tokenizer.unk_token_id:
        raise UserError(
            f"the tokenizer has no {IMAGE_TAG} token; a model folder written by "
            "llava_repro/convert.py or llava_repro/train.py has it"
        )
    return token_id


# Turns and the tokenizer's own chat template


def _checked_turns(
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


@dataclass(frozen=True)
class _ChatStyle:
    """What probing a tokenizer's chat template showed."""

    in_parts: bool  # content must be a list of parts
    takes_system: bool
    tail: str  # what follows the text of a last answer
    end: str  # the learned front of the tail: up to its first special token


def _chat_style(tokenizer: PreTrainedTokenizerBase) -> _ChatStyle:
    return _probe_chat_style(tokenizer, tokenizer.chat_template)


@lru_cache(maxsize=16)
def _probe_chat_style(tokenizer: PreTrainedTokenizerBase, chat: str | None) -> _ChatStyle:
    if not chat:
        raise UserError("the tokenizer has no chat template; name one with --template")
    question = ("human", PROBE)
    in_parts = PROBE not in _try_render(tokenizer, [question], False)
    if in_parts and PROBE not in _try_render(tokenizer, [question], True):
        _render(tokenizer, [question], False)  # its own error says more
        raise UserError("the tokenizer's chat template leaves out what the user says")
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
    places = [(tail.index(s), s) for s in _specials(tokenizer) if s.strip() and s in tail]
    first = min(places, default=None)
    end = tail if first is None else tail[: first[0] + len(first[1])]
    return _ChatStyle(in_parts, takes_system, tail, end)


def _chat_segments(
    tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]], generate: bool
) -> list[Segment]:
    """Answers found as differences between renderings of turns[:k]. See `Template.segments`.

    Published chat templates have no marks for what the assistant says, so each is rendered up to a
    question (with generation prompt) and up to its answer. Raises UserError for a template that
    writes earlier turns differently later on (Qwen 3 takes out earlier thinking).
    """
    style = _chat_style(tokenizer)
    if turns[0][0] == "system" and not style.takes_system:  # Gemma, Mistral
        (_, system), (role, first), *later = turns
        turns = [(role, f"{system}\n\n{place_images(first)}"), *later]
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
            raise UserError(
                "the tokenizer's chat template writes earlier turns differently when later ones "
                f"follow (seen at turn {k}), so what is learned would not be what is asked at "
                "inference; name a template with --template, or use rows of one question each"
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


if __name__ == "__main__":
    guarded(main)
