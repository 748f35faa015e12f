"""The questions that predict.py asks, from its flags or a conversation file, and their lines.

    python llava_repro/predict.py --toy --dry_run

A row of a file that cannot be read stays in its place with its problem, so that the others are
asked. Reads the file, opens no picture; writes nothing. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_repro.asking import human_text
from shared.answering import Answer, round_or_none
from shared.conversation_files import Picture, RowError
from shared.conversations import (
    IMAGE_TAG,
    escape_tags,
    is_interleaved,
    open_conversations,
    row_images,
    row_turns,
)
from shared.options import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Row:
    """One question and the pictures that it is about."""

    pictures: tuple[str | Picture, ...]
    question: str | None  # without `<image>`, unless interleaved
    interleaved: bool = False  # words stand between the pictures
    problem: str | None = None  # why a row of a file has no question

    def text(self, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
        """The human turn."""
        question = self.question or ""
        if self.interleaved:
            return escape_tags(question, tokenizer, keep_images=True)
        return human_text(question, len(self.pictures), tokenizer)

    def line(self, answer: Answer | None = None, error: str | None = None) -> dict[str, Any]:
        """What --output and the terminal get."""
        names = [str(picture) for picture in self.pictures]
        line: dict[str, Any] = {
            "image_path": names[0] if len(names) == 1 else names or None,
            "question": self.question,
            "answer": answer.answer if answer else None,
            "confidence": round_or_none(answer.confidence) if answer else None,
            "finish_reason": answer.finish_reason if answer else None,
            "n_tokens": answer.n_tokens if answer else None,
        }
        return line | ({"error": error} if error else {})


def first_questions(file: Path, limit: int) -> list[Row]:
    """The first question of each conversation with its pictures; a bad row is one with its
    `problem`. Raises UserError for a file of another kind, and when all rows are bad."""
    rows = open_conversations(file)
    found = []
    for i in range(min(limit or len(rows), len(rows))):
        try:
            found.append(first_question(rows[i], file.parent))
        except RowError as error:  # names the field alone
            found.append(Row((), None, problem=f"{rows.where(i)}: {error}"))
        except UserError as error:
            found.append(Row((), None, problem=str(error)))
    if all(row.problem for row in found):
        raise UserError(f"no row can be asked; the first, {found[0].problem}")
    return found


def first_question(row: dict[str, Any], image_root: Path) -> Row:
    """Raises RowError."""
    pictures = row_images(row, image_root)
    text = next(text for role, text in row_turns(row) if role == "human") or ""
    pictures = pictures[: text.count(IMAGE_TAG)]
    question = text if is_interleaved(text) else text.replace(IMAGE_TAG, "").strip()
    return Row(tuple(pictures), question, is_interleaved(text))
