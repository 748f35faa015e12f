"""CLIP: features of pictures and texts in one space; pictures through the folder's own processor.

A picture is described by its [CLS] token behind the last norm, a text by its end token; both are
projected and brought to length one. Texts go in as they are (no LAVIS processor), those longer than
the model's positions (77 in OpenAI's) are cut in front of the end token. CLIP has no matching head:
nothing of it sees picture and text together.

    clip = load_clip("openai/clip-vit-base-patch32")
    cosines = clip.read_images([image]).vector @ clip.read_texts(["a dog"]).vector.T

Reads model folders; writes nothing. Downloads nothing, needs no torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_apps.features import Encoded, unit
from shared.loading import load_adapter, load_pretrained, model_folder, pick_device, pick_dtype
from shared.options import UserError, manifest_value, read_json

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

LONGEST_SIDES = 8  # longer pictures lose their ends before the processor enlarges what it crops


@dataclass
class Clip:
    """A CLIP, ready to be asked (`lavis_apps.features.Family`)."""

    model: Any
    tokenizer: Any
    image_processor: Any
    folder: Path
    synthetic: bool

    fuses = False  # no part of it sees picture and text together

    @property
    def temperature(self) -> float:
        """What cosines are divided by in front of a softmax: learned, 0.01 in OpenAI's."""
        return float((-self.model.logit_scale.detach().float()).exp())

    def pixel_values(self, images: Sequence[Image]) -> Tensor:
        """RGB pictures -> (B, 3, S, S): shorter side to S, the middle square, normalised."""
        inputs = self.image_processor([middle(image) for image in images], return_tensors="pt")
        return inputs["pixel_values"].to(self.model.device, self.model.dtype)

    def process(self, text: str) -> str:
        return text.strip()

    @property
    def size(self) -> int:
        return self.model.visual_projection.out_features

    @property
    def max_tokens(self) -> int:
        return self.model.config.text_config.max_position_embeddings

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` (B, T), right-padded."""
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens,
            padding_side="right", return_tensors="pt",
        )  # fmt: skip
        return {k: batch[k].to(self.model.device) for k in ("input_ids", "attention_mask")}

    def cut_texts(self, texts: Sequence[str], *, whole: bool = False) -> list[bool]:
        """Which texts `tokens` cuts; `whole` changes nothing."""
        return [len(ids) > self.max_tokens for ids in self.tokenizer(list(texts))["input_ids"]]

    def read_images(self, images: Sequence[Image]) -> Encoded:
        """`embeds` are the tower's last states in front of its last norm, [CLS] first."""
        model = self.model
        states = model.vision_model(pixel_values=self.pixel_values(images)).last_hidden_state
        projected = unit(
            model.visual_projection(model.vision_model.post_layernorm(states))
        )  # (B, N, P)
        return Encoded(states, projected, projected[:, 0])

    def read_texts(self, texts: Sequence[str], *, whole: bool = False) -> Encoded:
        """`embeds` are the tower's last states behind its last norm. `whole` changes nothing: the
        positions are the only limit."""
        model, tokens = self.model, self.tokens(texts)
        output = model.text_model(**tokens)
        return Encoded(
            output.last_hidden_state,
            unit(model.text_projection(output.last_hidden_state)),
            unit(model.text_projection(output.pooler_output)),
            tokens["attention_mask"].bool(),
        )

    def cosines(self, images: Encoded, text_features: Tensor) -> Tensor:
        """(B, n) of pictures and (n, P) features of texts."""
        return images.vector @ text_features.T


def middle(image: Image) -> Image:
    """The picture, without the ends of one more than `LONGEST_SIDES` times as long as high.

    CLIP's processor enlarges the whole picture until its shorter side fits, then keeps the middle
    square: of 20,000 x 10 pixels it would make 448,000 x 224 first. What is cut here lies far
    outside that square.
    """
    width, height = image.size
    shorter = min(width, height)
    if max(width, height) <= LONGEST_SIDES * shorter:
        return image
    # an even number of pixels goes, so that the middle stays where it is
    keep_w, keep_h = (s - 2 * max(0, (s - LONGEST_SIDES * shorter) // 2) for s in (width, height))
    left, top = (width - keep_w) // 2, (height - keep_h) // 2
    return image.crop((left, top, left + keep_w, top + keep_h))


def load_clip(
    model: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    adapter: str | Path | None = None,
) -> Clip:
    """The CLIP in a folder or a downloaded Hub id, in eval mode, its adapter put on if given.

    Raises MissingError when it is not on this machine, UserError when it is no CLIP.
    """
    import transformers

    folder = model_folder(str(model))
    found = read_json(folder / "config.json").get("model_type")
    if found != "clip":
        raise UserError(f"{folder}: a model of type {found}, no CLIP")
    picked = pick_device(device)
    loaded = load_pretrained(
        transformers.CLIPModel,
        folder,
        device=picked,
        dtype=pick_dtype(dtype, picked),
        quantization="none",
        skip_modules=(),
    )
    if adapter is not None:
        loaded = load_adapter(loaded, Path(adapter), folder)
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, backend="pil"
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: its processor or tokenizer cannot be loaded ({error}); download the model "
            "again"
        ) from error
    return Clip(loaded, tokenizer, processor, folder, bool(manifest_value(folder, "synthetic")))
