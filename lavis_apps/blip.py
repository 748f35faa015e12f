"""BLIP as the original asks it: one object for the three heads that transformers has as classes.

    kind        class                             does
    caption     BlipForConditionalGeneration      captions (a decoder that begins with [DEC])
    vqa         BlipForQuestionAnswering          answers (an encoder with [ENC], the decoder)
    matching    BlipForImageTextRetrieval         ITC: cosine of a picture and a text ([CLS]);
                                                  ITM: probability that they match ([ENC])

The first token decides which of its jobs BLIP's text encoder does. transformers' own forward passes
send [CLS] to all of them; the weights were trained with [ENC] wherever the text attends to the
picture (https://github.com/salesforce/BLIP/blob/main/models/blip_itm.py), and so it is here. The
published tokenizers do not list [DEC] and [ENC]; they are the last two ids of the vocabulary.

Texts come in processed (processors.py). Reads model folders; writes nothing.

    python -m pytest tests/lavis_apps/test_blip.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_apps.processors import blip_image_eval
from shared.loading import load_adapter, load_pretrained, model_folder, pick_device, pick_dtype
from shared.options import UserError, manifest_value, read_json

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

KINDS = {
    "BlipForConditionalGeneration": "caption",
    "BlipForQuestionAnswering": "vqa",
    "BlipForImageTextRetrieval": "matching",
}
MAX_TEXT_TOKENS = 35  # BLIP's, with first and last token (max_txt_len)


@dataclass
class Blip:
    """A BLIP of one kind, ready to be asked."""

    model: Any
    tokenizer: Any
    kind: str  # caption, vqa, matching
    folder: Path
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    synthetic: bool

    @property
    def device(self) -> torch.device:
        return self.model.device

    def pixel_values(self, images: Sequence[Image]) -> Tensor:
        """RGB pictures -> (B, 3, S, S) in the model's dtype, on its device."""
        import numpy as np
        import torch

        size, mean, std = self.image_size, self.mean, self.std
        pixels = np.stack([blip_image_eval(image, size, mean, std) for image in images])
        return torch.from_numpy(pixels).to(self.device, self.model.dtype)

    def encode_images(self, images: Sequence[Image]) -> Tensor:
        """(B, N, D) states of the vision tower: N = 1 + patches, the first is its [CLS]."""
        return self.states(self.pixel_values(images))

    def states(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, N, D), with gradients where the caller wants them."""
        return self.model.vision_model(pixel_values=pixel_values).last_hidden_state

    def first_id(self, first: str) -> int:
        """The id of [CLS], [ENC] or [DEC]. Raises UserError where the vocabulary has none."""
        text = self.model.config.text_config
        known = self.tokenizer.get_vocab().get(first)
        if known is not None:
            return known
        # bert-base-uncased's vocabulary and behind it [DEC], [ENC]: 30522 and 30523
        decoder_id = text.bos_token_id
        behind = {"[DEC]": decoder_id, "[ENC]": None if decoder_id is None else decoder_id + 1}
        number = behind.get(first)
        if number is None or number >= text.vocab_size:
            raise UserError(f"{self.folder}: its vocabulary has no {first}; is it a BLIP?")
        return number

    def tokens(
        self, texts: Sequence[str], first: str = "[CLS]", max_length: int | None = MAX_TEXT_TOKENS
    ) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (B, T): `first`, word pieces, [SEP], then padding.

        More than `max_length` tokens (None: what the model has positions for) are cut off in front
        of [SEP]; `cut_texts` tells which.
        """
        positions = self.model.config.text_config.max_position_embeddings
        limit = positions if max_length is None else min(max_length, positions)
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=limit,
            padding_side="right", return_tensors="pt",
        )  # fmt: skip
        input_ids = batch["input_ids"]
        input_ids[:, 0] = self.first_id(first)
        return {
            "input_ids": input_ids.to(self.device),
            "attention_mask": batch["attention_mask"].to(self.device),
        }

    def cut_texts(self, texts: Sequence[str], max_length: int = MAX_TEXT_TOKENS) -> list[bool]:
        """Whether `tokens` would cut each text."""
        return [len(ids) > max_length for ids in self.tokenizer(list(texts))["input_ids"]]

    # matching ------------------------------------------------------------------------------------

    def image_features(self, states: Tensor) -> Tensor:
        """(B, N, D) -> (B, P): ITC features of the pictures, of length one."""
        import torch

        return torch.nn.functional.normalize(self.model.vision_proj(states[:, 0]), dim=-1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(B, P): ITC features of the texts, of length one."""
        return self.project_texts(self.text_states(self.tokens(texts)))

    def text_states(self, tokens: dict[str, Tensor]) -> Tensor:
        """(B, T, D) of texts alone, as `tokens(texts)` gives them."""
        return self.model.text_encoder(**tokens, is_decoder=False).last_hidden_state

    def project_texts(self, states: Tensor) -> Tensor:
        import torch

        return torch.nn.functional.normalize(self.model.text_proj(states[:, 0]), dim=-1)

    def fused_states(self, states: Tensor, tokens: dict[str, Tensor], **options: Any) -> Any:
        """What the text encoder makes of texts (first token [ENC]) that attend to pictures.

        `last_hidden_state` is (B, T, D); row i is picture i (`states`, (B, N, D)) with text i.
        """
        import torch

        seen = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        return self.model.text_encoder(
            **tokens,
            encoder_hidden_states=states,
            encoder_attention_mask=seen,
            is_decoder=False,
            **options,
        )

    def match_logits(self, states: Tensor, texts: Sequence[str]) -> Tensor:
        """(B, 2) of the ITM head: column 0 "they don't match", 1 "they do"; row i = picture i."""
        fused = self.fused_states(states, self.tokens(texts, first="[ENC]"))
        return self.model.itm_head(fused.last_hidden_state[:, 0])

    def match_probability(self, states: Tensor, texts: Sequence[str]) -> Tensor:
        """(B,) ITM probability that picture i and text i match, in float32."""
        return self.match_logits(states, texts).float().softmax(dim=-1)[:, 1]


def blip_kind(folder: Path) -> str | None:
    """caption, vqa or matching as the folder's config.json says; None: it is no BLIP."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("model_type") != "blip":
        return None
    return next((KINDS[n] for n in config.get("architectures") or () if n in KINDS), None)


def load_blip(
    model: str | Path,
    *,
    kind: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    adapter: str | Path | None = None,
) -> Blip:
    """The BLIP in a folder or a downloaded Hub id, in eval mode, its adapter put on if given.

    Raises MissingError when it is not on this machine, UserError when it is no BLIP or one of
    another kind than asked for.
    """
    import transformers

    folder = model_folder(str(model))
    found = blip_kind(folder)
    if found is None:
        raise UserError(f"{folder}: no BLIP (its config.json names none of {', '.join(KINDS)})")
    if kind is not None and found != kind:
        wanted = next(name for name, known in KINDS.items() if known == kind)
        raise UserError(f"{folder}: a BLIP for {found}; this needs one for {kind} ({wanted})")
    picked = pick_device(device)
    name = next(n for n, known in KINDS.items() if known == found)
    loaded = load_pretrained(
        getattr(transformers, name),
        folder,
        device=picked,
        dtype=pick_dtype(dtype, picked),
        quantization="none",
        skip_modules=(),
    )
    mask_cross_attention(loaded)
    if adapter is not None:
        loaded = load_adapter(loaded, Path(adapter), folder)
    settings = read_image_settings(folder, loaded.config.vision_config.image_size)
    return Blip(
        model=loaded,
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True),
        kind=found,
        folder=folder,
        synthetic=bool(manifest_value(folder, "synthetic")),
        **settings,
    )


def mask_cross_attention(model: Any) -> None:
    """Let BLIP's cross-attention heed `encoder_attention_mask`.

    transformers 5.23 hands the mask to a layer under the name of self-attention's, and the layer
    drops it: the answer decoder attends to the padding behind shorter questions, in training too.
    """
    from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

    def rename(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        crosses = kwargs.get("encoder_hidden_states") is not None
        if crosses and kwargs.get("encoder_attention_mask") is None:
            kwargs["encoder_attention_mask"] = kwargs.get("attention_mask")
        return args, kwargs

    for module in model.modules():
        if isinstance(module, BlipTextSelfAttention):
            module.register_forward_pre_hook(rename, with_kwargs=True)


def read_image_settings(folder: Path, image_size: int) -> dict[str, Any]:
    """image_size, mean and std as the folder's processor says, else BLIP's own.

    The size is the one that the tower has positions for. Raises UserError when the processor's
    file asks for another.
    """
    from lavis_apps.processors import CLIP_MEAN, CLIP_STD

    settings: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name)
            if isinstance(content, dict):
                settings = content.get("image_processor") or content
                break
    size = settings.get("size")
    height = size.get("height", image_size) if isinstance(size, dict) else size or image_size
    if height != image_size:
        raise UserError(
            f"{folder}: its processor makes pictures of {height} pixels, its tower takes "
            f"{image_size}; are config.json and the processor's file of one model?"
        )
    return {
        "image_size": image_size,
        "mean": tuple(settings.get("image_mean") or CLIP_MEAN),
        "std": tuple(settings.get("image_std") or CLIP_STD),
    }
