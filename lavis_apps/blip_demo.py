"""The BLIP demo as it was known: one picture, one of three functions, a line of text back.

BLIP's Space answered `inference(raw_image, model_n, question, strategy)`, its predictor for
commands (https://github.com/salesforce/BLIP/blob/main/predict.py) `predict(image, task, question,
caption)`.
Both are here with their names, arguments, decoding (3 beams or nucleus 0.9, 5 to 20 tokens) and the
form of their answers. The text goes to the matching model as it is written, as there.

    from lavis_apps.blip_demo import BlipDemo
    demo = BlipDemo.open()
    demo.inference(picture, "Image Captioning", "", "Beam search")          # "caption: ..."
    demo.predict("photo.jpg", "image_text_matching", caption="a dog")

In app.py it is the last tab and the endpoint /inference. Reads model folders; writes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_apps.app_models import Shelf
from lavis_apps.settings import PUBLISHED_MODELS
from shared.images import open_image
from shared.options import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

CAPTIONING, QUESTION, MATCHING = (
    "Image Captioning",
    "Visual Question Answering",
    "Image-Text Matching",
)
FUNCTIONS = (CAPTIONING, QUESTION, MATCHING)
STRATEGIES = ("Beam search", "Nucleus sampling")
TASKS = {
    "image_captioning": CAPTIONING,
    "visual_question_answering": QUESTION,
    "image_text_matching": MATCHING,
}
MAX_LENGTH, MIN_LENGTH = 20, 5  # tokens of a caption, the prompt's counted


@dataclass(frozen=True)
class BlipDemo:
    """`use(kind)` lends the model of a kind (caption, vqa, matching) for a with block."""

    use: Callable[[str], AbstractContextManager[Any]]

    @classmethod
    def open(
        cls,
        *,
        caption: str = PUBLISHED_MODELS["caption"],
        vqa: str = PUBLISHED_MODELS["vqa"],
        matching: str = PUBLISHED_MODELS["matching"],
        device: str = "auto",
    ) -> BlipDemo:
        """Each model is loaded when it is first needed."""
        models: dict[str, Sequence[str]]
        models = {"caption": [caption], "vqa": [vqa], "matching": [matching]}
        return cls(Shelf(models, device).use)

    def inference(self, raw_image: Image, model_n: str, question: str, strategy: str) -> str:
        """`model_n` one of FUNCTIONS, `question` the question or the text to match, `strategy` one
        of STRATEGIES for captions. Sampling is not seeded. Raises UserError."""
        if model_n not in FUNCTIONS:
            raise UserError(f"model_n {model_n!r}: one of {', '.join(FUNCTIONS)}")
        if strategy not in STRATEGIES:
            raise UserError(f"strategy {strategy!r}: one of {', '.join(STRATEGIES)}")
        if model_n == CAPTIONING:
            return f"caption: {self.caption(raw_image, strategy)}"
        if not question.strip():
            raise UserError(f"{model_n} needs a text: a question, or what to match")
        if model_n == QUESTION:
            return f"answer: {self.answer(raw_image, question)}"
        return self.match(raw_image, question)

    def predict(
        self,
        image: Path | str | Image,
        task: str = "image_captioning",
        question: str | None = None,
        caption: str | None = None,
    ) -> str:
        """`task` one of TASKS. Raises UserError, ImageError."""
        if task not in TASKS:
            raise UserError(f"task {task!r}: one of {', '.join(TASKS)}")
        opened = open_image(image) if isinstance(image, str | Path) else image
        text = (caption if TASKS[task] == MATCHING else question) or ""
        said = self.inference(opened, TASKS[task], text, STRATEGIES[0])
        return said[0].upper() + said[1:]

    def caption(self, image: Image, strategy: str) -> str:
        with self.use("caption") as captioner:
            ((found,),) = captioner.caption(
                [image], method="beam" if strategy == STRATEGIES[0] else "nucleus",
                max_length=MAX_LENGTH, min_length=MIN_LENGTH, seed=random.randrange(1 << 31),
            )  # fmt: skip
        return found.text

    def answer(self, image: Image, question: str) -> str:
        with self.use("vqa") as answerer:
            return answerer.answer([image], [question])[0].answer

    def match(self, image: Image, text: str) -> str:
        import torch

        with self.use("matching") as family, torch.no_grad():
            blip = getattr(family, "blip", None)
            if blip is None:
                raise UserError(f"{family.folder}: no BLIP; the BLIP demo matches with one")
            states = blip.encode_images([image])
            probability = float(blip.match_probability(states, [text]))
            cosine = float(blip.image_features(states) @ blip.text_features([text]).T)
        return (
            f"The image and text is matched with a probability of {probability:.4f}.\n"
            f"The image feature and text feature has a cosine similarity of {cosine:.4f}."
        )
