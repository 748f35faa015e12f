"""Families of vision-language models: prompts, pictures and choices in each one's own form.

A family is found by `model_type` in config.json: `llava` (any language model; CLIP, Chinese-CLIP or
SigLIP), `blip-2` (OPT, T5), `qwen2_vl`, `qwen2_5_vl`. What is the same for all, generation and
likelihood, is `shared.vision_language`, which is the way in. A folder is loaded with
`AutoTokenizer` and `AutoImageProcessor`, and the picture's places in the prompt are written here:
the processors of Qwen-VL cannot be made without torchvision, this can.

Reads a model folder and an adapter folder; writes nothing.
Shapes: P pictures, B prompts, N image tokens of a picture, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from shared.chat_templates import chat_style, special_tokens, tokenizer_segments
from shared.conversations import IMAGE_TAG, answer_end, escape_tags, ids_after, pad_id, prompt_ids
from shared.images import trained_aspect_ratio
from shared.llava_parts import CLASS_TOKENS
from shared.loading import check_adapter_folder, load_adapter
from shared.options import UserError, read_json

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

T5_MAX_TOKENS = 512  # Flan-T5 was trained at this length; its relative positions set no hard bound
PROBE = "Aprobe7"
PROJECTOR_FILE = "projector.safetensors"  # beside the LoRA of llava_repro/train.py
# The published LLaVA-1.5 folders' template writes no end behind an answer, though the models were
# trained with one; without it nothing shows where an answer ends.
END_OF_ANSWER = (
    "{% if not add_generation_prompt and messages[-1]['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}"
)


@dataclass(frozen=True)
class PictureFeatures:
    """A picture as the language model is shown it: (N, D); Qwen-VL's also has its grid of patches,
    (3,): time, height, width."""

    vectors: Tensor
    grid: Tensor | None = None


class Family:
    """What the families have in common; made before any weight is read, `attach` brings them.

    `decoder` is what is called with embeddings, mask and cache; `n_image_tokens` is the number of a
    picture's tokens, the largest possible where pictures differ; `trained_on` is "pad", "square" or
    None (not said). Raises UserError for a folder that cannot be asked.
    """

    model_class: str
    not_quantized: tuple[str, ...]  # small or sensitive: regular expressions of module names
    decoder: nn.Module

    def __init__(
        self,
        folder: Path,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any,
    ) -> None:
        self.folder = folder
        self.config = config
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.pad_id = pad_id(tokenizer)
        self.image_token_id: int | None = config.image_token_id
        self.n_image_tokens = 0
        self.max_length: int | None = getattr(config.text_config, "max_position_embeddings", None)
        self.trained_on: str | None = None
        self.side: int = getattr(config.vision_config, "image_size", 0) or 448
        self.end_ids: set[int] = set()
        self.end_text: str | None = None  # an end that is no token: "###", a line break
        self._choice_ids: dict[tuple[str, str], list[int]] = {}

    def attach(self, model: nn.Module) -> None:
        self.model = self.decoder = model
        own = model.generation_config.eos_token_id
        self.end_ids |= {*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id}
        self.end_ids -= {None}

    def load_adapter(self, model: nn.Module, adapter: Path) -> nn.Module:
        """The model with the adapter's layers in it, without peft's wrapper. Raises UserError."""
        return load_adapter(model, adapter, self.folder).get_base_model()

    def encode(self, images: Sequence[Image]) -> list[PictureFeatures]:
        """Each picture once through the tower and what brings it to the language model's width."""
        raise NotImplementedError

    def prompt_ids(self, prompt: str, n_image_tokens: int) -> list[int]:
        """Ids up to the answer to come, with `n_image_tokens` places for a picture, or 0."""
        raise NotImplementedError

    def lead(self, prompt: str) -> str:
        """What stands between a prompt's end and an answer's first letter: a blank, or nothing."""
        raise NotImplementedError

    def choice_ids(self, choice: str, lead: str) -> list[int]:
        """Ids of a choice as the model would write it behind the prompt, without end token."""
        key = (choice, lead)
        if key not in self._choice_ids:
            self._choice_ids[key] = self.ids_behind_prompt(lead + choice.strip())
        return self._choice_ids[key]

    def ids_behind_prompt(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def positions(
        self, input_ids: Tensor, mask: Tensor, pictures: Sequence[PictureFeatures | None]
    ) -> tuple[Tensor, Tensor]:
        """Positions of the prompts without their padding (B, T), and of what follows (B,)."""
        return (mask.cumsum(dim=-1) - 1).clamp(min=0), mask.sum(dim=-1)

    def pixels(self, images: Sequence[Image]) -> Any:
        try:
            return self.image_processor(list(images), return_tensors="pt")
        except ValueError as error:  # Qwen-VL: more than 200 times as long as wide
            raise UserError(f"a picture cannot be brought to the model's form: {error}") from error


class LlavaFamily(Family):
    """LLaVA in the Hub layout: the chat template of the folder's tokenizer, as in its training.

    The published LLaVA-1.5 folders' template has no system text (the original's evaluation has).
    """

    model_class = "LlavaForConditionalGeneration"
    not_quantized = (r".*vision_tower", r".*multi_modal_projector", "lm_head")

    def __init__(self, folder: Path, config: Any, tokenizer: Any, image_processor: Any) -> None:
        super().__init__(folder, config, tokenizer, image_processor)
        self.n_image_tokens = llava_image_tokens(config)
        self.trained_on = trained_aspect_ratio(folder)
        check_image_token(self, config.image_token_id)
        use_chat_template(
            tokenizer, folder, "llava_repro/convert.py --template NAME writes one into the folder"
        )
        try:
            chat_style(tokenizer)
        except UserError:  # it may lack the end alone; anything else is told the second time
            tokenizer.chat_template += END_OF_ANSWER
            chat_style(tokenizer)
        end = answer_end(tokenizer, None)
        if end in special_tokens(tokenizer):
            self.end_ids.add(tokenizer.convert_tokens_to_ids(end))
        else:
            self.end_text = end
        (self._prompt_text, _), (answer, _), *_ = tokenizer_segments(
            tokenizer, [("human", "Q"), ("gpt", PROBE)], False
        )
        self._lead = answer.partition(PROBE)[0]

    def load_adapter(self, model: nn.Module, adapter: Path) -> nn.Module:
        return load_llava_adapter(self, model, adapter)

    @torch.no_grad()
    def encode(self, images: Sequence[Image]) -> list[PictureFeatures]:
        pixels = self.pixels(images)["pixel_values"]
        features = self.model.get_image_features(
            pixel_values=pixels.to(self.model.device, self.model.model.vision_tower.dtype)
        ).pooler_output  # P times (N, D)
        return [PictureFeatures(vectors) for vectors in features]

    def prompt_ids(self, prompt: str, n_image_tokens: int) -> list[int]:
        text = escape_tags(prompt, self.tokenizer)
        if n_image_tokens:
            text = f"{IMAGE_TAG}\n{text}"
        return prompt_ids([("human", text)], self.tokenizer, None, n_image_tokens)

    def lead(self, prompt: str) -> str:
        return self._lead

    def ids_behind_prompt(self, text: str) -> list[int]:
        """As `shared.conversations.encode` has an answer behind its prompt, and so as learned."""
        return ids_after(self.tokenizer, text, self._prompt_text)


class Blip2Family(Family):
    """BLIP-2: the prompt is plain text behind N query tokens ("Question: ... Answer:")."""

    model_class = "Blip2ForConditionalGeneration"
    not_quantized = ("language_projection", "qformer", "vision_model", "lm_head")

    def __init__(self, folder: Path, config: Any, tokenizer: Any, image_processor: Any) -> None:
        super().__init__(folder, config, tokenizer, image_processor)
        kind = config.text_config.model_type
        if kind not in ("opt", "t5"):
            raise UserError(
                f"{folder}: a BLIP-2 with a {kind} language model; only OPT and T5 work"
            )
        self.is_opt = kind == "opt"
        self.max_length = self.max_length or T5_MAX_TOKENS
        self.n_image_tokens = config.num_query_tokens
        if config.image_token_id is None:
            raise UserError(
                f"{folder}: config.json has no image_token_index: no place for pictures"
            )
        known = tokenizer.convert_tokens_to_ids(IMAGE_TAG)
        if known not in (None, tokenizer.unk_token_id):  # old folders' tokenizers don't know it
            check_image_token(self, config.image_token_id)

    def attach(self, model: nn.Module) -> None:
        self.model, self.decoder = model, model.language_model
        end = model.generation_config.eos_token_id  # OPT's is the line break, not </s>
        end = self.config.text_config.eos_token_id if end is None else end
        self.end_ids = {*(end if isinstance(end, list) else [end])} - {None}

    @torch.no_grad()
    def encode(self, images: Sequence[Image]) -> list[PictureFeatures]:
        pixels = self.pixels(images)["pixel_values"]
        dtype = self.model.vision_model.embeddings.patch_embedding.weight.dtype
        features = self.model.get_image_features(pixels.to(self.model.device, dtype)).pooler_output
        return [PictureFeatures(vectors) for vectors in features]

    def prompt_ids(self, prompt: str, n_image_tokens: int) -> list[int]:
        text = self.tokenizer(escape_tags(prompt, self.tokenizer))["input_ids"]
        return [self.image_token_id or 0] * n_image_tokens + text

    def lead(self, prompt: str) -> str:
        """OPT goes on behind "Answer:" with a blank, which its BPE keeps in the next token; T5's
        answer is a text of its own."""
        return " " if self.is_opt and prompt and not prompt[-1].isspace() else ""


class QwenVlFamily(Family):
    """Qwen2-VL and Qwen2.5-VL: ChatML, as many tokens a picture as its size asks for, positions in
    three dimensions (M-RoPE)."""

    not_quantized = (r".*visual", "lm_head")

    def __init__(self, folder: Path, config: Any, tokenizer: Any, image_processor: Any) -> None:
        super().__init__(folder, config, tokenizer, image_processor)
        self.model_class = {
            "qwen2_vl": "Qwen2VLForConditionalGeneration",
            "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
        }[config.model_type]
        use_chat_template(tokenizer, folder, "download the model again")
        vision = config.vision_config
        self.n_image_tokens = image_processor.size["longest_edge"] // (
            (vision.patch_size * vision.spatial_merge_size) ** 2
        )
        shown = tokenizer(self.prompt_text("Q", with_picture=True), add_special_tokens=False)
        if shown["input_ids"].count(config.image_token_id) != 1:
            raise UserError(f"{folder}: its chat template writes no place for a picture")
        asked = self.prompt_text("Q", with_picture=False)
        answered = self.prompt_text("Q", with_picture=False, answer=PROBE)
        if not answered.startswith(asked) or PROBE not in answered:
            raise UserError(f"{folder}: its chat template writes an answer elsewhere than it asks")
        self._lead = answered[len(asked) :].partition(PROBE)[0]

    def prompt_text(self, prompt: str, with_picture: bool, answer: str | None = None) -> str:
        content = [{"type": "image"}] * with_picture + [{"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answer is None
        )

    @torch.no_grad()
    def encode(self, images: Sequence[Image]) -> list[PictureFeatures]:
        inputs = self.pixels(images)
        grids = inputs["image_grid_thw"].to(self.model.device)  # (P, 3)
        features = self.model.get_image_features(
            inputs["pixel_values"].to(self.model.device), grids
        ).pooler_output  # P times (N of that picture, D)
        return [PictureFeatures(v, grid) for v, grid in zip(features, grids, strict=True)]

    def prompt_ids(self, prompt: str, n_image_tokens: int) -> list[int]:
        text = self.prompt_text(escape_tags(prompt, self.tokenizer), bool(n_image_tokens))
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        places = {self.image_token_id: n_image_tokens}
        return [i for token in ids for i in [token] * places.get(token, 1)]

    def lead(self, prompt: str) -> str:
        return self._lead

    def positions(
        self, input_ids: Tensor, mask: Tensor, pictures: Sequence[PictureFeatures | None]
    ) -> tuple[Tensor, Tensor]:
        """transformers' own rule: (3, B, T); a picture takes the positions of its longer side."""
        grids = [picture.grid for picture in pictures if picture is not None]
        positions, shift = self.model.model.get_rope_index(
            input_ids,
            (input_ids == self.image_token_id).int(),
            torch.stack(grids) if grids else None,
            attention_mask=mask,
        )
        return positions, mask.sum(dim=-1) + shift[:, 0]


FAMILIES: dict[str, type[Family]] = {
    "llava": LlavaFamily,
    "blip-2": Blip2Family,
    "qwen2_vl": QwenVlFamily,
    "qwen2_5_vl": QwenVlFamily,
}


# Checks


def llava_image_tokens(config: PretrainedConfig) -> int:
    """Image tokens of one picture, from the configuration: CLIP-L/14 at 336 pixels has 576.

    Raises UserError for an unknown tower, and for one that would lose its first patch.
    """
    vision = config.vision_config
    class_tokens = CLASS_TOKENS.get(vision.model_type)
    if class_tokens is None:
        raise UserError(
            f"a LLaVA with a {vision.model_type} tower: the number of its image tokens is known "
            f"for {', '.join(CLASS_TOKENS)} alone"
        )
    dropped = 1 if config.vision_feature_select_strategy == "default" else 0
    if dropped > class_tokens:
        raise UserError(
            f"vision_feature_select_strategy is default, but {vision.model_type} has no class "
            "token: its first patch would be lost. Set it to full"
        )
    return (vision.image_size // vision.patch_size) ** 2 + class_tokens - dropped


def check_image_token(family: Family, expected: int) -> None:
    found = family.tokenizer.convert_tokens_to_ids(IMAGE_TAG)
    if found != expected:
        raise UserError(
            f"{family.folder}: {IMAGE_TAG} is token {found} of its tokenizer, config.json says "
            f"{expected}: they don't belong together; download or convert the model again"
        )


def use_chat_template(tokenizer: PreTrainedTokenizerBase, folder: Path, advice: str) -> None:
    """The tokenizer's chat template; older folders keep it in chat_template.json. UserError."""
    file = folder / "chat_template.json"
    if not tokenizer.chat_template and file.is_file():
        tokenizer.chat_template = read_json(file).get("chat_template")
    if not isinstance(tokenizer.chat_template, str):
        raise UserError(f"{folder}: its tokenizer has no chat template; {advice}")


# Adapters of LLaVA


def load_llava_adapter(family: LlavaFamily, model: nn.Module, adapter: Path) -> nn.Module:
    """LoRA on the whole LLaVA, or on its language model alone with a projector beside it (what
    llava_repro/train.py writes). Raises UserError when they don't belong together."""
    manifest = check_adapter_folder(adapter)
    whole = "its run's model/ folder (train.py --save_model true) holds the merged model: give that"
    if "model" not in manifest.get("parts", {"model": ""}):
        raise UserError(
            f"{adapter}: trained on a vision tower and a language model of their own, not on one "
            f"LLaVA folder; {whole} with --model"
        )
    if manifest.get("template") is not None:
        raise UserError(
            f"{adapter}: trained with the named prompt {manifest['template']}, here the folder's "
            f"own chat template asks; {whole} with --model"
        )
    host = model if is_made_for(adapter, model) else language_model_view(model)
    load_adapter(host, adapter, family.folder)
    if host is not model:
        model.lm_head = host.get_output_embeddings()
    if (adapter / PROJECTOR_FILE).is_file():
        read_projector(model, adapter / PROJECTOR_FILE)
    family.trained_on = manifest.get("image_aspect_ratio", family.trained_on)
    return model.eval()


def is_made_for(adapter: Path, model: nn.Module) -> bool:
    """Whether the adapter's layers are called as in this model, seen from its top."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{adapter}: its weights cannot be read ({error})") from error
    layers = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in names}
    return layers <= {name for name, _ in model.named_modules()}


def language_model_view(model: nn.Module) -> nn.Module:
    """The language model inside a LLaVA as the causal model that it is by itself, sharing its
    layers: an adapter trained on it finds them by their names."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        view = AutoModelForCausalLM.from_config(deepcopy(model.config.text_config))
    setattr(view, view.base_model_prefix, model.model.language_model)
    view.set_output_embeddings(model.lm_head)
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "hf_quantizer"):  # peft asks for them
        if hasattr(model, name):
            setattr(view, name, getattr(model, name))
    return view


def read_projector(model: nn.Module, file: Path) -> None:
    """Fill a Hub-layout projector from `model.mm_projector.*`, the original's names.

    A linear one has W alone: W, no activation and the identity, as in a converted folder. Raises
    UserError when it doesn't fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        saved = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    found = {name.removeprefix("model.mm_projector."): tensor for name, tensor in saved.items()}
    projector = model.model.multi_modal_projector
    own = projector.state_dict()
    if "weight" in found and model.config.projector_hidden_act == "linear":
        width = len(found["weight"])
        found = {f"linear_1.{name}": tensor for name, tensor in found.items()}
        found["linear_2.weight"] = torch.eye(width)
        if "linear_2.bias" in own:
            found["linear_2.bias"] = torch.zeros(width)
    elif model.config.projector_hidden_act != "linear":
        places = {"0": "linear_1", "2": "linear_2"}
        parts = {name: name.partition(".") for name in found}
        found = {f"{places.get(p[0], p[0])}.{p[2]}": found[name] for name, p in parts.items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in found.items()}
    ours = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if theirs != ours:
        raise UserError(f"{file}: a projector of {theirs}, this model's is {ours}")
    projector.load_state_dict(found)
