"""Conversations: prompt templates, token ids and the rule which tokens are learned.

`Template.segments` writes a conversation as pieces of text, each learned or not: an answer and the
end token behind it are learned, nothing else. `encode` turns the pieces into ids and labels one by
one, so that a token never spans a border and nothing is found by counting; training, chat, demo and
evaluation all go through it (`prompt_ids` is the same up to the answer). Without a named template
the tokenizer's own chat template is used: the answers are the differences between renderings of
growing conversations (`chat_templates.py`). Files are read by `conversation_files.py` and checked
by `conversation_check.py`. No torch here.

    python -m shared.conversations data/llava/finetune.json --image_root data/llava --validate
    python -m shared.conversations data/toy/llava/finetune.jsonl --validate     (the toy's)

LLaVA's v1 convention, kept here: a prompt ends with "ASSISTANT:", and the blank before the answer
belongs to the answer's first token ("▁Yes"), so it is learned with the answer. It is what the
published checkpoints were trained on (haotian-liu/LLaVA c121f04, llava/train/train.py,
preprocess_v1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from shared.chat_templates import (
    Segment,
    chat_style,
    chat_template,
    checked_turns,
    is_interleaved,
    place_images,
    special_tokens,
    tokenizer_segments,
)
from shared.conversation_check import main
from shared.conversation_files import (
    IMAGE_TAG,
    RowError,
    Turn,
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
    "escape_tags", "fit", "ids_after", "is_interleaved", "open_conversations", "pad_id",
    "place_images", "prompt_ids", "row_images", "row_turns", "segments_of", "token_runs",
]  # fmt: skip


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
        turns, generate = checked_turns(turns, add_generation_prompt)
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


def escape_tags(
    text: str, tokenizer: PreTrainedTokenizerBase | None = None, keep_images: bool = False
) -> str:
    """What a visitor typed, with a blank in every special token, so that it stays text.

    Chat and demo pass each visitor's text through this and then put `<image>` before it for each
    picture. Otherwise a typed `<image>` would ask for features that are not there, and a typed end
    token would end the turn. Rows of training files are not escaped: there the tag is meant, as it
    is in a file's question with words between its pictures (`keep_images`).
    """
    specials = {IMAGE_TAG}
    if tokenizer is not None:
        added = tokenizer.added_tokens_decoder.values()
        specials |= {*tokenizer.all_special_tokens, *(str(t) for t in added if t.special)}
    specials -= {IMAGE_TAG} if keep_images else set()
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
    try:
        normal = normalise_row(row)
    except RowError as error:
        raise UserError(f"row {row.get('id')!r}: {error}") from error
    turns = [(turn["from"], turn["value"]) for turn in normal["conversations"]]
    if turns[-1][0] != "gpt":
        raise UserError(f"row {row.get('id')!r}: conversations ends without an answer to learn")
    if template is not None and template.images_only and not normal.get("image"):
        raise UserError(
            f"row {row.get('id')!r}: template {template.name} is for a picture and its caption, "
            "this row has no picture; choose another --template"
        )
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
    return tokenizer_segments(tokenizer, *checked_turns(turns, add_generation_prompt))


def answer_end(tokenizer: PreTrainedTokenizerBase, template: Template | None) -> str:
    """The text that ends an answer: `</s>`, `<|im_end|>`, `###`. Generation stops there."""
    return template.answer[1].strip(" ") if template else chat_style(tokenizer).end.strip(" ")


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


def token_runs(
    segments: Sequence[Segment], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[list[int], bool]]:
    """(ids, learned) for each piece, tokenised by itself; BOS in front where the tokenizer does so.

    A picture is the one placeholder that the pieces hold for it.
    """
    runs = []
    text = "".join(piece for piece, _ in segments)
    if _starts_with_bos(tokenizer) and not text.startswith(tokenizer.bos_token):
        runs.append(([tokenizer.bos_token_id], False))
    before = ""
    for piece, learned in segments:
        runs.append((ids_after(tokenizer, piece, before), learned))
        before = piece
    return runs


def _token_runs(
    segments: Sequence[Segment], tokenizer: PreTrainedTokenizerBase, n_image_tokens: int
) -> list[tuple[list[int], bool]]:
    """`token_runs` with each picture's placeholder repeated."""
    image_id = _image_token_id(tokenizer)
    return [
        ([i for t in ids for i in ([t] * n_image_tokens if t == image_id else [t])], learned)
        for ids, learned in token_runs(segments, tokenizer)
    ]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def ids_after(tokenizer: PreTrainedTokenizerBase, text: str, before: str) -> list[int]:
    """Ids of `text` as it stands behind `before` in one string, no token across the border.

    SentencePiece-like tokenizers put a blank before a text on its own ("▁Yes"). There the text is
    tokenised behind an anchor whose own tokens are seen to be unchanged, and the anchor's tokens
    are taken off. A special token is its own anchor: some tokenizers (Llama's legacy behaviour) put
    the blank after each of them too, others don't.
    """
    if not before or not _adds_blank(tokenizer):
        return _ids(tokenizer, text)
    special = next((s for s in special_tokens(tokenizer) if before.endswith(s)), None)
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


def _image_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    token_id = tokenizer.convert_tokens_to_ids(IMAGE_TAG)
    if token_id is None or token_id == tokenizer.unk_token_id:
        raise UserError(
            f"the tokenizer has no {IMAGE_TAG} token; a model folder written by "
            "llava_repro/convert.py or llava_repro/train.py has it"
        )
    return token_id


if __name__ == "__main__":
    guarded(main)
