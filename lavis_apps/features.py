"""Features of pictures, texts and pairs: one call and one type for BLIP, BLIP-2 and CLIP.

    extractor = FeatureExtractor.open("Salesforce/blip-itm-base-coco")
    features = extractor.extract(["dog.jpg"], ["a dog runs"])
    features.image_features @ features.text_features.T     # the ITC cosine, (1, 1)

B pictures or texts, N picture tokens, T text tokens, Q queries, D width, P width of the common
space. At 224 pixels, for a text of 12 tokens, as LAVIS documents it (with its names):

    field                  BLIP base       BLIP-2          CLIP ViT-B/16
    image_embeds           (B, 197, 768)   (B, 32, 768)    (B, 197, 768)   as they are
    image_embeds_proj      (B, 197, 256)   (B, 32, 256)    (B, 197, 512)   each of length one
    text_embeds            (B, 12, 768)    (B, 12, 768)    (B, 12, 512)    as they are
    text_embeds_proj       (B, 12, 256)    (B, 12, 256)    (B, 12, 512)    each of length one
    multimodal_embeds      (B, 12, 768)    (B, 32, 768)    None            as they are
    image_features         [CLS]           queries' mean   [CLS]           (B, P), of length one
    text_features          [CLS]           [CLS]           end token       (B, P), of length one
    multimodal_features    [ENC]           queries' mean   None            (B, D): the ITM head's
                                                                           input, as it is

`image_embeds` are the vision tower's last states (BLIP-2: the queries behind the Q-Former), the
`_proj` every token in the common space. In multi-modal ones BLIP's text begins with [ENC]. BLIP-2's
ITC is no product of `image_features` and `text_features`: see blip2_features.py.

`Embedder` gives an index what it needs of any family. Reads model folders and pictures, writes
nothing: feature_files.py does.

    python lavis_apps/predict.py --task features --image photos/ --output photos.npz [--toy]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from lavis_apps.blip import MAX_TEXT_TOKENS, Blip, load_blip
from lavis_apps.pictures import as_rgb
from lavis_apps.processors import blip_caption
from lavis_apps.settings import default_model
from shared.loading import adapter_fingerprint, fingerprint, model_folder
from shared.options import UserError, manifest_value, portable_path, read_json

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

INITIAL_TEMPERATURE = 0.07  # LAVIS' and ALBEF's; BlipForImageTextRetrieval has not the learned one
BATCH_SIZE = 16
BATCH_TEXTS = 128


class Encoded(NamedTuple):
    """Pictures, texts or pairs as a family reads them; padded text positions are not zeroed."""

    embeds: Tensor  # (B, N, D)
    projected: Tensor | None  # (B, N, P) float32 of length one
    vector: Tensor  # (B, P) float32 of length one; of pairs (B, D)
    mask: Tensor | None = None  # (B, T) of texts: True where there is a token
    states: Tensor | None = None  # (B, N, D) of pictures: what texts attend to


class Family(Protocol):
    """What BLIP, BLIP-2 and CLIP have in common here. `whole` leaves texts their length up to the
    model's positions, where the family's own limit for matching is lower."""

    model: Any
    folder: Path
    synthetic: bool
    fuses: bool  # can look at picture and text together: `fused`, `match_logits`

    @property
    def temperature(self) -> float: ...
    @property
    def size(self) -> int: ...
    def process(self, text: str) -> str: ...  # raw -> what the tokenizer gets
    def cut_texts(self, texts: Sequence[str], *, whole: bool = False) -> list[bool]: ...  # raw
    def read_images(self, images: Sequence[Image]) -> Encoded: ...
    def read_texts(self, texts: Sequence[str], *, whole: bool = False) -> Encoded: ...
    def fused(self, states: Tensor, texts: Sequence[str], *, whole: bool = False) -> Encoded: ...
    def match_logits(self, states: Tensor, texts: Sequence[str]) -> Tensor: ...
    def cosines(self, images: Encoded, text_features: Tensor) -> Tensor: ...


@dataclass
class BlipFeatures:
    """A BLIP for matching (blip.py) as a `Family`."""

    blip: Blip
    temperature: float = INITIAL_TEMPERATURE

    fuses = True

    @property
    def model(self) -> Any:
        return self.blip.model

    @property
    def folder(self) -> Path:
        return self.blip.folder

    @property
    def synthetic(self) -> bool:
        return self.blip.synthetic

    @property
    def size(self) -> int:
        return self.model.vision_proj.out_features

    def process(self, text: str) -> str:
        return blip_caption(text)

    def tokens(self, texts: Sequence[str], first: str, whole: bool) -> dict[str, Tensor]:
        return self.blip.tokens(texts, first, None) if whole else self.blip.tokens(texts, first)

    def cut_texts(self, texts: Sequence[str], *, whole: bool = False) -> list[bool]:
        positions = self.model.config.text_config.max_position_embeddings
        limit = positions if whole else MAX_TEXT_TOKENS
        return caption_limits(texts, lambda full: self.blip.cut_texts(full, limit))

    def read_images(self, images: Sequence[Image]) -> Encoded:
        states = self.blip.encode_images(images)
        projected = unit(self.model.vision_proj(states))
        return Encoded(states, projected, projected[:, 0], states=states)

    def read_texts(self, texts: Sequence[str], *, whole: bool = False) -> Encoded:
        tokens = self.tokens(texts, "[CLS]", whole)
        states = self.blip.text_states(tokens)
        projected = unit(self.model.text_proj(states))
        return Encoded(states, projected, projected[:, 0], tokens["attention_mask"].bool())

    def fused(self, states: Tensor, texts: Sequence[str], *, whole: bool = False) -> Encoded:
        tokens = self.tokens(texts, "[ENC]", whole)
        output = self.blip.fused_states(states, tokens).last_hidden_state
        return Encoded(output, None, output[:, 0].float(), tokens["attention_mask"].bool())

    def match_logits(self, states: Tensor, texts: Sequence[str]) -> Tensor:
        return self.blip.match_logits(states, texts)

    def cosines(self, images: Encoded, text_features: Tensor) -> Tensor:
        return images.vector @ text_features.T


def unit(features: Tensor) -> Tensor:
    """Brought to length one along the last axis, in float32."""
    import torch

    return torch.nn.functional.normalize(features.float(), dim=-1)


def open_family(
    model: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    adapter: str | Path | None = None,
) -> Family:
    """The family that the folder's config.json names, loaded.

    BLIP's temperature is what the manifest.json of adapter or model says (`temperature`), else
    LAVIS' initial 0.07: the published folders are without the learned one. Raises MissingError,
    UserError.
    """
    from lavis_apps.blip2_features import load_blip2
    from lavis_apps.clip import load_clip

    folder = model_folder(str(model))
    config = read_json(folder / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    where: dict[str, Any] = {"device": device, "dtype": dtype, "adapter": adapter}
    if kind == "clip":
        return load_clip(folder, **where)
    if kind == "blip-2":
        return load_blip2(folder, **where)
    if kind == "blip":
        folders = [folder] if adapter is None else [Path(adapter), folder]
        return BlipFeatures(load_blip(folder, kind="matching", **where), blip_temperature(*folders))
    raise UserError(
        f"{folder}: a model of type {kind}; features, matching, classification and search take a "
        "BLIP for matching (Salesforce/blip-itm-base-coco), a CLIP (openai/clip-vit-base-patch32) "
        "or BLIP-2's first stage (Salesforce/blip2-itm-vit-g)"
    )


def as_family(model: Blip | Family | Embedder) -> Family:
    """A loaded model as a `Family`. Raises UserError for a BLIP of another kind."""
    if isinstance(model, Embedder):
        return model.family
    if not isinstance(model, Blip):
        return model
    if model.kind != "matching":
        raise UserError(f"{model.folder}: a BLIP for {model.kind}; this needs one for matching")
    return BlipFeatures(model, blip_temperature(model.folder))


def blip_temperature(*folders: Path) -> float:
    """What the first manifest.json that has one says (train.py writes it), else 0.07."""
    said = (manifest_value(folder, "temperature") for folder in folders)
    return next((float(value) for value in said if value), INITIAL_TEMPERATURE)


def checked_texts(
    texts: str | Sequence[str], process: Callable[[str], str], what: str = "text"
) -> list[str]:
    """The texts as the model's text processor makes them. Raises UserError for none, or an empty
    one; `what` they are called there."""
    given = as_list(texts)
    if not given:
        raise UserError(f"no {what} given: at least one is needed")
    done = [process(text) for text in given]
    for number, (text, made) in enumerate(zip(given, done, strict=True), start=1):
        if not made.strip():
            which = f"{what} {number} of {len(given)}" if len(given) > 1 else f"the {what}"
            rest = f"has no word: {text[:20]!r}" if text.strip() else "is empty"
            raise UserError(f"{which} {rest}; give a few words")
    return done


def caption_limits(
    texts: Sequence[str], cut_texts: Callable[[Sequence[str]], list[bool]]
) -> list[bool]:
    """Which raw texts lose their end: to `blip_caption`'s 50 words, or to the tokenizer."""
    unlimited = [blip_caption(text, max_words=len(text) + 1) for text in texts]
    words = [blip_caption(t) != full for t, full in zip(texts, unlimited, strict=True)]
    return [a or b for a, b in zip(words, cut_texts(unlimited), strict=True)]


@dataclass
class Embedder:
    """One vector a picture and a text, of length one, whose product says how alike they are.

    What an index needs of a model. `size` is their length P; `fingerprint` differs between models
    whose vectors may not be compared (weights, adapter, picture processing).
    """

    family: Family
    name: str
    fingerprint: str

    @property
    def size(self) -> int:
        return self.family.size

    @property
    def temperature(self) -> float:
        return self.family.temperature

    @property
    def synthetic(self) -> bool:
        return self.family.synthetic

    def image_features(self, images: Sequence[Image | Path | str]) -> Tensor:
        """(B, P) float32, on the CPU. Raises ImageError for a file that is no picture."""
        import torch

        with torch.no_grad():
            parts = [
                self.family.read_images([as_rgb(image) for image in batch]).vector.cpu()
                for batch in batches(images, BATCH_SIZE)
            ]
        return torch.cat(parts) if parts else torch.zeros(0, self.size)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(B, P) float32, on the CPU, of raw texts. Raises UserError for an empty one.

        Long texts are cut (BLIP 35 tokens, BLIP-2 32, CLIP its positions): `cut_texts` says which.
        """
        import torch

        checked = checked_texts(texts, self.family.process)
        with torch.no_grad():
            parts = [self.family.read_texts(b).vector.cpu() for b in batches(checked, BATCH_TEXTS)]
        return torch.cat(parts)

    def cut_texts(self, texts: Sequence[str]) -> list[bool]:
        return self.family.cut_texts(texts)


def open_embedder(
    model: str | Path = "",
    *,
    device: str = "auto",
    dtype: str = "auto",
    adapter: str | Path | None = None,
) -> Embedder:
    """The embedder of a model folder or a downloaded Hub id: BLIP for matching, CLIP, BLIP-2.

    BLIP-2's one vector a picture is its queries' mean, a stand-in for its ITC. Raises MissingError,
    UserError.
    """
    model = model or default_model("search")
    family = open_family(model, device=device, dtype=dtype, adapter=adapter)
    return Embedder(family, portable_path(model), family_fingerprint(model, adapter))


def family_fingerprint(model: str | Path, adapter: str | Path | None = None) -> str:
    """A short hash of weights, adapter and picture processing; loads no model."""
    folder = model_folder(str(model))
    parts: list[Any] = [fingerprint(folder), adapter_fingerprint(adapter and str(adapter))]
    for name in ("preprocessor_config.json", "processor_config.json"):
        content = read_json(folder / name) if (folder / name).is_file() else {}
        parts.append(content.get("image_processor", content))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Features:
    """What was asked for, float32 on the CPU, None where it was not or the family has none.

    Shapes and what is of length one: this file's first lines. Positions behind a text's end are
    zero in `text_embeds`, `text_embeds_proj` and BLIP's `multimodal_embeds`, False in `text_mask`.
    """

    image_embeds: Tensor | None = None  # (B, N or Q, D)
    image_embeds_proj: Tensor | None = None  # (B, N or Q, P)
    image_features: Tensor | None = None  # (B, P)
    text_embeds: Tensor | None = None  # (B, T, D)
    text_embeds_proj: Tensor | None = None  # (B, T, P)
    text_mask: Tensor | None = None  # (B, T)
    text_features: Tensor | None = None  # (B, P)
    multimodal_embeds: Tensor | None = None  # (B, T or Q, D)
    multimodal_features: Tensor | None = None  # (B, D)
    cut_texts: tuple[int, ...] = ()  # numbers (from 0) of the texts whose end the model did not see


@dataclass
class FeatureExtractor:
    """Features of every kind that the family has."""

    family: Family
    name: str
    fingerprint: str

    @classmethod
    def open(
        cls,
        model: str | Path = "",
        *,
        device: str = "auto",
        dtype: str = "auto",
        adapter: str | Path | None = None,
    ) -> FeatureExtractor:
        """Of a model folder or a downloaded Hub id. Raises MissingError, UserError."""
        embedder = open_embedder(model, device=device, dtype=dtype, adapter=adapter)
        return cls(embedder.family, embedder.name, embedder.fingerprint)

    def extract(
        self,
        images: Sequence[Image | Path | str] | Image | Path | str | None = None,
        texts: Sequence[str] | str | None = None,
        *,
        multimodal: bool = True,
        batch_size: int = BATCH_SIZE,
    ) -> Features:
        """Features of pictures (PIL or files), of raw texts, and of pairs when both are given.

        With both, row i of the multi-modal ones is picture i with text i; `multimodal=False` allows
        different counts. Texts are cut where the model's positions end (BLIP and BLIP-2 512, behind
        `blip_caption`'s 50 words), as LAVIS' extractors do, not at the limits of matching. Raises
        UserError for nothing, an empty text or unequal pairs, ImageError for a broken file.
        """
        import torch

        if images is None and texts is None:
            raise UserError("nothing to encode: give images, texts, or both")
        pictures = as_list(images)
        checked = [] if texts is None else checked_texts(texts, self.family.process)
        pairs = images is not None and texts is not None and multimodal and self.family.fuses
        if pairs and len(pictures) != len(checked):
            raise UserError(
                f"{len(pictures)} pictures and {len(checked)} texts are no pairs: give as many of "
                "both, or multimodal=False for features of each by itself"
            )
        if images is not None and not pictures:
            raise UserError("no picture given: at least one is needed")
        found: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for start in range(0, len(pictures), batch_size):
                part = slice(start, start + batch_size)
                read = self.family.read_images([as_rgb(picture) for picture in pictures[part]])
                keep(found, "image", read)
                if pairs and read.states is not None:
                    fused = self.family.fused(read.states, checked[part], whole=True)
                    keep(found, "multimodal", fused)
            for start in range(0, len(checked), BATCH_TEXTS):
                batch = checked[start : start + BATCH_TEXTS]
                keep(found, "text", self.family.read_texts(batch, whole=True))
        cut = self.family.cut_texts(as_list(texts), whole=True) if checked else []
        return Features(
            **{name: joined(parts) for name, parts in found.items()},
            cut_texts=tuple(i for i, is_cut in enumerate(cut) if is_cut),
        )


def keep(found: dict[str, list[Tensor]], kind: str, read: Encoded) -> None:
    """Add a batch's tensors to `found` by their names in `Features`, padding zeroed."""
    tensors = {"embeds": read.embeds, "embeds_proj": read.projected}
    for name, tensor in tensors.items():
        if tensor is not None:
            here = tensor if read.mask is None else tensor * read.mask[..., None]
            found.setdefault(f"{kind}_{name}", []).append(here.float().cpu())
    found.setdefault(f"{kind}_features", []).append(read.vector.float().cpu())
    if kind == "text" and read.mask is not None:
        found.setdefault("text_mask", []).append(read.mask.cpu())


def joined(parts: Sequence[Tensor]) -> Tensor:
    """(B, ...) of batches; those of fewer tokens get zeros behind."""
    import torch

    if parts[0].dim() == 1 or len({p.shape[1:] for p in parts}) == 1:
        return torch.cat(list(parts))
    longest = max(p.shape[1] for p in parts)
    whole = parts[0].new_zeros(sum(len(p) for p in parts), longest, *parts[0].shape[2:])
    start = 0
    for part in parts:
        whole[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return whole


def as_list(items: Any) -> list[Any]:
    """One thing or several (pictures, files, texts) as a list; None is none."""
    if items is None:
        return []
    several = isinstance(items, Iterable) and not isinstance(items, str | Path)
    return list(items) if several else [items]


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
