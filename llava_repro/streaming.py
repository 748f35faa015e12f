"""One answer as it is made: pieces of text while the model generates in a thread of its own.

    for piece in stream(answerer, features, [("human", "<image>\\nWhat is it?")]):
        print(piece, end="", flush=True)

Used by predict.py, chat.py and demo.py. Reads and writes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from shared.answering import Answer
from shared.options import UserError

if TYPE_CHECKING:
    from llava_repro.answering import LlavaAnswerer, Turn
    from llava_repro.asking import Decoding


def stream(
    answerer: LlavaAnswerer,
    features: Tensor,
    turns: Sequence[Turn],
    decoding: Decoding | None = None,
    stop: Callable[[], bool] | None = None,
) -> Generator[str, None, Answer]:
    """Pieces of the answer to a conversation that ends with a human turn; joined, the answer.
    Returns it as `LlavaAnswerer.answer_turns` does.

    `features` (P, N, D) of its pictures in the order of the `<image>`s. Ends at the next token
    when `stop()` is true or nobody reads on. A beam search gives its answer in one piece. Raises
    UserError when the conversation can't go on.
    """
    decoding = decoding or answerer.decoding
    problem = answerer.turns_problem(turns, decoding)
    if problem:
        raise UserError(problem)
    if decoding.num_beams > 1:
        (answer,) = answerer.answer_turns(features, [range(len(features))], [turns], decoding)
        yield answer.answer
        return answer
    unread = threading.Event()
    told = [unread.is_set] if stop is None else [unread.is_set, stop]
    streamer = TextIteratorStreamer(answerer.tokenizer, skip_prompt=True, skip_special_tokens=True)
    results: list[Answer | Exception] = []

    def work() -> None:
        criteria = StoppingCriteriaList([Told(told)])
        try:
            results.extend(
                answerer.answer_turns(
                    features,
                    [range(len(features))],
                    [turns],
                    decoding,
                    streamer=streamer,
                    stopping_criteria=criteria,
                )
            )
        except Exception as error:
            results.append(error)
            streamer.end()  # the reader waits for it

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield from until(streamer, answerer.end_text)
    finally:
        unread.set()
        thread.join()
    (result,) = results
    if isinstance(result, Exception):
        raise result
    return result


def until(pieces: Iterable[str], end_text: str | None) -> Iterator[str]:
    """The pieces up to `end_text`, white space around the whole left out.

    What could be the beginning of the end mark, or of white space at the end, waits for the next
    piece.
    """
    said, shown = "", 0
    for piece in pieces:
        said += piece
        text, found, _ = said.partition(end_text) if end_text else (said, "", "")
        ready = text.lstrip() if found else held_back(text.lstrip(), end_text)
        ready = ready.rstrip()
        if len(ready) > shown:
            yield ready[shown:]
            shown = len(ready)
        if found:
            return
    rest = said.strip()
    if len(rest) > shown:
        yield rest[shown:]


def held_back(text: str, end_text: str | None) -> str:
    """The text without what may be the first characters of the end mark."""
    for n in range(min(len(end_text or "") - 1, len(text)), 0, -1):
        if text.endswith((end_text or "")[:n]):
            return text[:-n]
    return text


class Told(StoppingCriteria):
    """Stops generation when one of the functions says so."""

    def __init__(self, told: Sequence[Callable[[], bool]]) -> None:
        self.told = told

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full(
            (len(input_ids),), any(stop() for stop in self.told), device=input_ids.device
        )
