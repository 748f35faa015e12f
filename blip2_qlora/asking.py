"""One loaded base model, asked about a picture without and with its adapter: the demo's engine.

PEFT's `disable_adapter` gives the base's answer, then the same weights with the adapter answer. A
lock holds both answers of one visitor together, so nobody is answered with somebody else's adapter
state.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from blip2_qlora.blip2 import Preset
    from shared.answering import Answer


@dataclass(frozen=True)
class Reply:
    """What one model said about a picture; `seconds` is the time of both answers."""

    caption: Answer
    answer: Answer
    seconds: float


class Asker:
    """One loaded base model, asked without and with its adapter."""

    def __init__(
        self, model: Any, processor: Any, preset: Preset, *, greedy: bool, caption_min_tokens: int
    ) -> None:
        from blip2_qlora.blip2 import Blip2Answerer, caption_decoding

        captions = caption_decoding(greedy=greedy, min_tokens=caption_min_tokens)
        self.model = model
        self.prompt = preset.prompt
        self.answers = Blip2Answerer(model, processor, preset.decoding)
        self.captions = Blip2Answerer(model, processor, captions)
        self.lock = threading.Lock()

    @property
    def has_adapter(self) -> bool:
        return hasattr(self.model, "disable_adapter")

    def ask(self, image: Image, question: str) -> list[Reply]:
        """The base's reply and, where there is an adapter, the tuned model's."""
        with self.lock:
            off: AbstractContextManager = (
                self.model.disable_adapter() if self.has_adapter else nullcontext()
            )
            with off:
                replies = [self.reply(image, question)]
            if self.has_adapter:
                replies.append(self.reply(image, question))
        return replies

    def reply(self, image: Image, question: str) -> Reply:
        started = time.perf_counter()
        features = self.answers.encode_images([image])
        (caption,) = self.captions.answer(features, [0], [""])
        (answer,) = self.answers.answer(features, [0], [self.prompt.format(question)])
        return Reply(caption, answer, time.perf_counter() - started)

    def length(self, question: str) -> tuple[int, int]:
        """Tokens of the prompt with this question, and how many there is room for."""
        from blip2_qlora.blip2 import room_for_prompt

        ids = self.answers.tokenizer(self.prompt.format(question))["input_ids"]
        room = room_for_prompt(self.answers.model.config, self.answers.decoding.max_new_tokens)
        return len(ids), room
