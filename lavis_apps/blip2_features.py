"""BLIP-2's first stage (Q-Former without language model): features, ITC and ITM.

Its Q-Former describes a picture with 32 queries. ITC is the largest cosine of a text with them, ITM
the probability from the matching logits that the 32 queries have when they attend to picture and
text, averaged over the queries in front of the one softmax. Texts begin with [CLS] in all of this
(only BLIP has [ENC]) and are cut at 32 tokens, as in LAVIS
(https://github.com/salesforce/LAVIS/tree/main/lavis/models/blip2_models). LAVIS tokenises without
padding, so that its batches can't hold captions of different lengths; here they can.

    blip2 = load_blip2("Salesforce/blip2-itm-vit-g")
    images = blip2.read_images([image])
    probability = blip2.match_logits(images.states, ["a dog"]).softmax(-1)[:, 1]

Reads model folders (`Blip2ForImageTextRetrieval`); writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_apps.blip import read_image_settings
from lavis_apps.features import INITIAL_TEMPERATURE, Encoded, caption_limits, unit
from lavis_apps.processors import blip_caption, blip_image_eval
from shared.loading import load_adapter, load_pretrained, model_folder, pick_device, pick_dtype
from shared.options import UserError, manifest_value, read_json

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

MAX_TEXT_TOKENS = 32  # LAVIS' max_txt_len of BLIP-2, with first and last token
ARCHITECTURE = "Blip2ForImageTextRetrieval"


@dataclass
class Blip2:
    """A BLIP-2 with its two heads, ready to be asked (`lavis_apps.features.Family`)."""

    model: Any
    tokenizer: Any
    folder: Path
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    synthetic: bool
    temperature: float = INITIAL_TEMPERATURE

    fuses = True

    def pixel_values(self, images: Sequence[Image]) -> Tensor:
        """RGB pictures -> (B, 3, S, S), squeezed to squares as LAVIS does."""
        import numpy as np
        import torch

        size, mean, std = self.image_size, self.mean, self.std
        pixels = np.stack([blip_image_eval(image, size, mean, std) for image in images])
        # not model.dtype: in float16 the Q-Former stays float32, the tower doesn't
        weight = self.model.vision_projection.weight
        return torch.from_numpy(pixels).to(weight.device, weight.dtype)

    def process(self, text: str) -> str:
        return blip_caption(text)

    def tokens(self, texts: Sequence[str], max_length: int = MAX_TEXT_TOKENS) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (B, T): [CLS], word pieces, [SEP], padding."""
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=max_length,
            padding_side="right", return_tensors="pt",
        )  # fmt: skip
        device = self.model.device
        return {k: batch[k].to(device) for k in ("input_ids", "attention_mask")}

    def cut_texts(self, texts: Sequence[str], *, whole: bool = False) -> list[bool]:
        """Which raw texts are cut."""
        limit = self.positions if whole else MAX_TEXT_TOKENS

        def cut(full: Sequence[str]) -> list[bool]:
            return [len(ids) > limit for ids in self.tokenizer(list(full))["input_ids"]]

        return caption_limits(texts, cut)

    @property
    def size(self) -> int:
        return self.model.vision_projection.out_features

    @property
    def positions(self) -> int:
        return self.model.config.qformer_config.max_position_embeddings

    def read_images(self, images: Sequence[Image]) -> Encoded:
        """`embeds` (B, Q, D) are the queries behind the Q-Former, `states` (B, N, D) what they
        read: the vision tower's.

        `vector` is the direction of the queries' mean: one vector a picture, for an index. It is
        not what ITC compares (`cosines`), which needs all of them.
        """
        model = self.model
        states = model.vision_model(pixel_values=self.pixel_values(images)).last_hidden_state
        queries = model.qformer(
            query_embeds=model.query_tokens.expand(len(states), -1, -1),
            encoder_hidden_states=states,
            encoder_attention_mask=seen(states),
        ).last_hidden_state
        projected = unit(model.vision_projection(queries.to(model.vision_projection.weight.dtype)))
        return Encoded(queries, projected, unit(projected.mean(1)), states=states)

    def read_texts(self, texts: Sequence[str], *, whole: bool = False) -> Encoded:
        """Texts alone; `whole`: cut where the positions end, not at 32 tokens."""
        model = self.model
        tokens = self.tokens(texts, self.positions if whole else MAX_TEXT_TOKENS)
        states = model.qformer(
            query_embeds=model.embeddings(input_ids=tokens["input_ids"]),
            query_length=0,
            attention_mask=tokens["attention_mask"],
        ).last_hidden_state
        projected = unit(model.text_projection(states.to(model.text_projection.weight.dtype)))
        return Encoded(states, projected, projected[:, 0], tokens["attention_mask"].bool())

    def fused(self, states: Tensor, texts: Sequence[str], *, whole: bool = False) -> Encoded:
        """`embeds` (B, Q, D): the queries that saw picture i (`states`) and text i; `vector` their
        mean, which is what the matching head reads (it is linear)."""
        import torch

        model = self.model
        tokens = self.tokens(texts, self.positions if whole else MAX_TEXT_TOKENS)
        queries = model.query_tokens.expand(len(states), -1, -1)
        count = queries.shape[1]
        output = model.qformer(
            query_embeds=model.embeddings(input_ids=tokens["input_ids"], query_embeds=queries),
            query_length=count,
            attention_mask=torch.cat([seen(queries), tokens["attention_mask"]], dim=1),
            encoder_hidden_states=states,
            encoder_attention_mask=seen(states),
        ).last_hidden_state[:, :count]
        return Encoded(output, None, output.mean(1))

    def match_logits(self, states: Tensor, texts: Sequence[str]) -> Tensor:
        """(B, 2) of the ITM head: column 1 "they match"; row i = picture i with text i."""
        vector = self.fused(states, texts).vector
        return self.model.itm_head(vector.to(self.model.itm_head.weight.dtype))

    def cosines(self, images: Encoded, text_features: Tensor) -> Tensor:
        """(B, n): the largest cosine of the text with any query of the picture."""
        return (images.projected @ text_features.T).amax(1)  # (B, Q, P) x (P, n)


def seen(states: Tensor) -> Tensor:
    """(B, N) of ones for (B, N, D)."""
    import torch

    return torch.ones(states.shape[:2], dtype=torch.long, device=states.device)


def load_blip2(
    model: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    adapter: str | Path | None = None,
) -> Blip2:
    """The BLIP-2 of a folder or a downloaded Hub id, in eval mode.

    Raises MissingError when it is not on this machine, UserError when it is no BLIP-2 or one for
    captions, whose Q-Former has no text side and no heads.
    """
    import transformers

    folder = model_folder(str(model))
    config = read_json(folder / "config.json")
    if config.get("model_type") != "blip-2" or ARCHITECTURE not in config.get("architectures", ()):
        raise UserError(
            f"{folder}: no {ARCHITECTURE} (config.json says {config.get('architectures')}); "
            "features and matching need BLIP-2's first stage, as in Salesforce/blip2-itm-vit-g"
        )
    picked = pick_device(device)
    loaded = load_pretrained(
        transformers.Blip2ForImageTextRetrieval,
        folder,
        device=picked,
        dtype=pick_dtype(dtype, picked),
        quantization="none",
        skip_modules=(),
    )
    if adapter is not None:
        loaded = load_adapter(loaded, Path(adapter), folder)
    return Blip2(
        model=loaded,
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True),
        folder=folder,
        synthetic=bool(manifest_value(folder, "synthetic")),
        temperature=float(manifest_value(folder, "temperature") or INITIAL_TEMPERATURE),
        **read_image_settings(folder, loaded.config.vision_config.image_size),
    )
