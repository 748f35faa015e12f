"""Captions of pictures: BLIP, BLIP-2 and LLaVA, beam search or nucleus, n with scores in one pass.

    from lavis_apps.captioning import Captioner
    captioner = Captioner.open("Salesforce/blip-image-captioning-base")
    captioner.caption([picture], n=5, method="nucleus", seed=1)

A caption's `score` is the mean log-probability of its tokens, the end token with them, as the model
gives them: before temperature, nucleus, penalties and the shortest length change anything, for both
methods, so that captions can be compared. Beams come best first by the search's own measure,
samples in the order in which they were drawn.

BLIP goes on from the prompt "a picture of ", as LAVIS has it, and the caption is what stands behind
it. BLIP-2 goes on from its prompt (none, if not given). A LLaVA is asked by it, and answers in its
language; BLIP's captions are English whatever the prompt.

Reads a model folder or a downloaded Hub id; writes nothing.

    python lavis_apps/predict.py --task caption --image photo.jpg --n 3
    python lavis_apps/predict.py --task caption --toy
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lavis_apps.blip import Blip, blip_kind, load_blip
from lavis_apps.decoding import Decoding, Generated, blip_decode, language_decode
from lavis_apps.features import as_list
from lavis_apps.pictures import as_rgb
from lavis_apps.processors import CAPTION_PROMPT
from lavis_apps.settings import PUBLISHED_MODELS
from shared.loading import model_folder
from shared.options import UserError, manifest_value, read_json

if TYPE_CHECKING:
    from PIL.Image import Image

    from shared.vision_language import VisionLanguage

INSTRUCTION = "Describe the picture in one sentence."  # what a LLaVA is asked by default


@dataclass(frozen=True)
class Caption:
    """What stands behind the prompt, and the mean log-probability of its tokens (at most 0)."""

    text: str
    score: float


@dataclass(frozen=True)
class Captioner:
    """A loaded model that captions: a BLIP, or a `VisionLanguage` (BLIP-2, LLaVA)."""

    model: Blip | VisionLanguage

    @classmethod
    def open(
        cls,
        model: str | Path = PUBLISHED_MODELS["caption"],
        *,
        device: str = "auto",
        dtype: str = "auto",
        adapter: str | Path | None = None,
        quantization: str = "none",
    ) -> Captioner:
        """The model of a folder or downloaded Hub id; `quantization` is of a language model.

        Raises MissingError when it is not on this machine, UserError when it cannot caption.
        """
        return cls(open_speaker(model, "caption", device, dtype, adapter, quantization))

    @property
    def synthetic(self) -> bool:
        return is_synthetic(self.model)

    def default_prompt(self) -> str:
        """What `caption` uses where no prompt is given."""
        if isinstance(self.model, Blip):
            return CAPTION_PROMPT
        return INSTRUCTION if self.model.family.config.model_type == "llava" else ""

    def caption(
        self,
        images: Sequence[Image | Path | str] | Image | Path | str,
        *,
        n: int = 1,
        method: Literal["beam", "nucleus"] = "beam",
        num_beams: int = 3,
        max_length: int = 40,
        min_length: int = 5,
        top_p: float = 0.9,
        temperature: float = 1.0,
        length_penalty: float = 1.0,
        repetition_penalty: float = 1.0,
        prompt: str | None = None,
        seed: int = 0,
    ) -> list[list[Caption]]:
        """n captions of each picture (PIL or file), all in one batch.

        A beam search has at most `num_beams` of them.

        `prompt`: None is the model's own (`default_prompt`), "" none at all. Lengths are tokens:
        BLIP's with [DEC] and the prompt, as LAVIS counts, the others' new ones. The same seed gives
        the same nucleus captions of a picture in any batch. Raises UserError, ImageError for a file
        that is no picture.
        """
        import torch

        decoding = Decoding(
            method=method, n=n, num_beams=num_beams, max_length=max_length, min_length=min_length,
            top_p=top_p, temperature=temperature, length_penalty=length_penalty,
            repetition_penalty=repetition_penalty, seed=seed,
        )  # fmt: skip
        pictures = [as_rgb(image) for image in as_list(images)]
        if not pictures:
            return []
        prompt = self.default_prompt() if prompt is None else prompt
        if isinstance(self.model, Blip):
            return blip_captions(self.model, pictures, prompt, decoding)
        with torch.no_grad():
            texts = language_decode(self.model, pictures, [prompt] * len(pictures), decoding)
        return [[spoken_caption(self.model, text) for text in own] for own in texts]


def open_speaker(
    model: str | Path,
    kind: Literal["caption", "vqa"],
    device: str,
    dtype: str,
    adapter: str | Path | None,
    quantization: str,
) -> Blip | VisionLanguage:
    """A BLIP of that kind, a BLIP-2 or a LLaVA. Raises UserError for any other model."""
    folder = model_folder(str(model))
    if blip_kind(folder) is not None:
        if quantization != "none":
            raise UserError("--quantization is for BLIP-2 and LLaVA; a BLIP is small")
        return load_blip(model, kind=kind, device=device, dtype=dtype, adapter=adapter)
    family = read_json(folder / "config.json").get("model_type")
    if family not in ("llava", "blip-2"):
        raise UserError(f"{folder}: a {family} model; this takes a BLIP, a BLIP-2 or a LLaVA")
    from shared.vision_language import load_vision_language

    given = None if adapter is None else str(adapter)
    # its own count is for greedy answers; decoding.py sets how many tokens are made
    return load_vision_language(str(model), quantization, device, dtype, given, max_new_tokens=1)


def is_synthetic(model: Blip | VisionLanguage) -> bool:
    if isinstance(model, Blip):
        return model.synthetic
    return bool(manifest_value(model.family.folder, "synthetic"))


def blip_captions(
    blip: Blip, images: Sequence[Image], prompt: str, decoding: Decoding
) -> list[list[Caption]]:
    import torch

    ids = blip.tokenizer(prompt)["input_ids"][:-1]  # [SEP] would end the caption
    ids[0] = blip.first_id("[DEC]")
    start = torch.tensor([ids] * len(images), device=blip.device)
    with torch.no_grad():
        states = blip.encode_images(images)  # (B, N, D)
        seen = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        texts = blip_decode(blip, start, states, seen, decoding)
    shown = blip.tokenizer.decode(ids[1:], skip_special_tokens=True)

    def caption(text: Generated) -> Caption:
        # decoded as a whole: a caption may go on with a piece of the prompt's last word
        whole = blip.tokenizer.decode(ids[1:] + text.ids, skip_special_tokens=True)
        return Caption(whole.removeprefix(shown).strip(), text.score)

    return [[caption(text) for text in own] for own in texts]


def spoken_caption(asker: VisionLanguage, text: Generated) -> Caption:
    import torch

    said = asker.make_answer(text.ids, torch.tensor(text.log_probs))
    return Caption(said.answer, text.score)
