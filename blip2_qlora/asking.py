"""Captions and answers about the same pictures, each encoded once; without and with an adapter.

`CaptionsAndAnswers` is what `predict.py` and the demo ask: a caption and an answer are decoded
differently, from one encoding of the picture. `Asker` is the demo's engine: PEFT's
`disable_adapter` gives the base's answer, then the same weights with the adapter answer. A lock
holds both answers of one visitor together, so nobody is answered with somebody else's adapter
state.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from blip2_qlora.blip2 import Blip2Answerer, Preset
    from shared.answering import Answer


class CaptionStart(str):
    """A prompt that asks for a caption, which goes on from these words (usually none)."""


class CaptionsAndAnswers:
    """A `shared.answering.VisionLanguageModel` that also captions: prompts of type CaptionStart."""

    def __init__(
        self, model: Any, processor: Any, preset: Preset, *, greedy: bool, caption_min_tokens: int
    ) -> None:
        from blip2_qlora.blip2 import Blip2Answerer, caption_decoding

        decoding = caption_decoding(greedy=greedy, min_tokens=caption_min_tokens)
        self.prompt = preset.prompt
        self.answers = Blip2Answerer(model, processor, preset.decoding)
        self.captions = Blip2Answerer(model, processor, decoding)

    def decoder(self, prompt: str) -> Blip2Answerer:
        return self.captions if isinstance(prompt, CaptionStart) else self.answers

    def encode_images(self, images: Sequence[Image]) -> Any:
        return self.answers.encode_images(images)

    def prompt_problem(self, prompt: str) -> str | None:
        return self.decoder(prompt).prompt_problem(prompt)

    def answer(
        self, features: Any, picture_index: Sequence[int], prompts: Sequence[str]
    ) -> list[Answer]:
        """Captions and answers, one for each prompt, in order; features as in `Blip2Answerer`."""
        found: dict[int, Answer] = {}
        for decoder in (self.captions, self.answers):
            rows = [i for i, prompt in enumerate(prompts) if self.decoder(prompt) is decoder]
            if rows:
                index = [picture_index[i] for i in rows]
                said = decoder.answer(features, index, [prompts[i] for i in rows])
                found |= dict(zip(rows, said, strict=True))
        return [found[i] for i in range(len(prompts))]


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
        self.model = model
        self.speaker = CaptionsAndAnswers(
            model, processor, preset, greedy=greedy, caption_min_tokens=caption_min_tokens
        )
        self.lock = threading.Lock()

    @property
    def has_adapter(self) -> bool:
        return hasattr(self.model, "disable_adapter")

    @property
    def device(self) -> Any:
        return self.speaker.answers.device

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
        prompts = [CaptionStart(""), self.speaker.prompt.format(question)]
        features = self.speaker.encode_images([image])
        caption, answer = self.speaker.answer(features, [0, 0], prompts)
        return Reply(caption, answer, time.perf_counter() - started)

    def length(self, question: str) -> tuple[int, int]:
        """Tokens of the prompt with this question, and how many there is room for."""
        from blip2_qlora.blip2 import room_for_prompt

        answers = self.speaker.answers
        ids = answers.tokenizer(self.speaker.prompt.format(question))["input_ids"]
        return len(ids), room_for_prompt(answers.model.config, answers.decoding.max_new_tokens)
