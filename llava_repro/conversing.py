"""A conversation with a LLaVA over several turns; pictures are encoded when they come and kept.

All turns stand in one sequence, as in training, so that the model has read what was said before.
Used by chat.py and demo.py, each visitor with a `Conversation` of his own. Reads and writes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llava_repro.asking import Decoding, human_text
from shared.options import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from llava_repro.answering import LlavaAnswerer, Turn
    from shared.answering import Answer
    from shared.images import ImageHandling

LEAST_ANSWER = 16  # tokens; with less room than that a question is refused


@dataclass
class Conversation:
    """Turns and the features (1, N, D) of their pictures, in the order of the `<image>`s.

    `turns` end with an answer between two questions; a question that could not be asked, or whose
    answer failed, leaves no trace.
    """

    turns: list[Turn] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)

    def ask(
        self,
        answerer: LlavaAnswerer,
        text: str,
        images: Sequence[Image] = (),
        *,
        decoding: Decoding | None = None,
        handling: ImageHandling | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Generator[str, None, Answer]:
        """Pieces of the answer to what was typed, about the new pictures and all before; returns
        the whole as an `Answer`.

        Stopped, or no longer read, the conversation goes on from the words that were shown. Raises
        UserError when there is nothing to ask or no room for it.
        """
        if not text.strip() and not images:
            raise UserError("nothing to ask: type a question or give a picture")
        human = human_text(text.strip(), len(images), answerer.tokenizer).strip()
        turns = [*self.turns, ("human", human)]
        decoding = fitted(answerer, turns, decoding or answerer.decoding)
        pictures = [*self.pictures]
        pictures += [answerer.encode_images([image], handling) for image in images]
        return (yield from self._answer(answerer, turns, pictures, decoding, stop))

    def answer_again(
        self,
        answerer: LlavaAnswerer,
        *,
        decoding: Decoding | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Generator[str, None, Answer]:
        """Another answer to the last question, in the place of the one before."""
        if not self.turns:
            raise UserError("nothing was asked yet")
        turns = self.turns[:-1]
        decoding = fitted(answerer, turns, decoding or answerer.decoding)
        return (yield from self._answer(answerer, turns, self.pictures, decoding, stop))

    def _answer(
        self,
        answerer: LlavaAnswerer,
        turns: list[Turn],
        pictures: list[Tensor],
        decoding: Decoding,
        stop: Callable[[], bool] | None,
    ) -> Generator[str, None, Answer]:
        import torch

        from llava_repro.streaming import stream

        features = torch.cat(pictures) if pictures else answerer.encode_images([])
        said, failed = "", False
        try:
            with closing(stream(answerer, features, turns, decoding, stop)) as pieces:
                while True:
                    try:
                        piece = next(pieces)
                    except StopIteration as end:
                        return end.value
                    said += piece
                    yield piece
        except Exception:
            failed = True
            raise
        finally:
            if not failed:
                self.turns, self.pictures = [*turns, ("gpt", said)], pictures


def fitted(answerer: LlavaAnswerer, turns: Sequence[Turn], decoding: Decoding) -> Decoding:
    """The decoding with no more new tokens than there is room for: a long conversation gets shorter
    answers. Raises UserError when there is hardly room for any."""
    least = replace(decoding, max_new_tokens=min(LEAST_ANSWER, decoding.max_new_tokens))
    problem = answerer.turns_problem(turns, least)
    if problem:
        raise UserError(problem)
    if answerer.max_length is None:
        return decoding
    left = answerer.max_length - len(answerer.prompt_ids(turns))
    return replace(decoding, max_new_tokens=min(left, decoding.max_new_tokens))
