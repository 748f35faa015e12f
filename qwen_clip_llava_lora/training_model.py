"""The model that trains: loaded, opened as declared (components.py), and its loss.

One of transformers' own classes, so that what is trained is what plain transformers and vLLM load.
Frozen weights are in the compute dtype, trained ones in fp32, because small bf16 updates round to
nothing. The head is computed at the positions before a learned token and nowhere else: the loss is
that of transformers' own forward with labels, at a fraction of its memory.

Used by train.py; reads a model folder, writes nothing.
Shapes: B rows, T tokens, A learned tokens of the batch, D width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qwen_clip_llava_lora.components import (
    LANGUAGE,
    PROJECTOR,
    VISION,
    component_of,
    components_of,
    idle_names,
    lora_targets,
    trained_names,
    trained_parts,
)
from qwen_clip_llava_lora.encoding import PICTURE_INPUTS
from qwen_clip_llava_lora.train_settings import TrainOptions
from shared.loading import (
    keep_trainable_after_inference,
    load_pretrained,
    model_folder,
    pick_dtype,
)
from shared.options import IGNORE_INDEX, UserError
from shared.training import trainable_to_fp32
from shared.vision_families import open_family

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import TrainingArguments

    from shared.vision_families import Family


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to train. `view` is peft's with LoRA, `changed` the names of all
    parameters outside LoRA that the base folder does not hold as they will be saved."""

    family: Family
    model: nn.Module
    view: PeftModel | None
    changed: frozenset[str]


def family_of(options: TrainOptions) -> Family:
    """The family of --model with tokenizer and image processor, no weight read. UserError."""
    family = open_family(
        model_folder(options.model or "", options.revision),
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
    )
    components_of(family.config.model_type)
    if options.image_aspect_ratio is not None:
        family.trained_on = options.image_aspect_ratio
    return family


def trains_projector(options: TrainOptions, model_type: str) -> bool:
    """--train_projector, else whether the family's projector is new: a merged LLaVA's."""
    return model_type == "llava" if options.train_projector is None else options.train_projector


def compute_dtype(options: TrainOptions, training: TrainingArguments) -> torch.dtype:
    """The dtype of frozen weights and of the computation. Raises UserError for fp16 unscaled."""
    dtype = pick_dtype(options.dtype, training.device)
    if dtype == torch.float16 and not training.fp16:
        raise UserError(
            "this device computes in float16, whose gradients vanish unless the loss is scaled: "
            "give --fp16 true, or --dtype float32"
        )
    return dtype


def load_for_training(options: TrainOptions, training: TrainingArguments, family: Family) -> Loaded:
    """The model with exactly that open which trains; prints the map. Raises UserError."""
    import transformers
    from transformers import set_seed

    from qwen_clip_llava_lora.results import read_projector

    dtype = compute_dtype(options, training)
    model = load_pretrained(
        getattr(transformers, family.model_class),
        family.folder,
        device=training.device,
        dtype=torch.float32 if options.train_type == "full" else dtype,
        quantization=options.quantization,
        skip_modules=family.not_quantized,
    )
    set_seed(training.seed)  # of LoRA's first weights
    view = prepare_training(model, family.config.model_type, options)
    read: frozenset[str] = frozenset()
    if options.projector is not None:
        read = read_projector(model, options.projector, family)
    if options.train_type == "full":
        keep_frozen_in(model, dtype)
    print_trained(model, family.config.model_type)
    family.attach(model)
    return Loaded(family, model, view, frozenset(trained_outside_lora(model)) | read)


def prepare_training(model: nn.Module, model_type: str, options: TrainOptions) -> PeftModel | None:
    """Freeze and open as declared, LoRA matrices put in place, what trains in fp32.

    The model is changed in place. Raises UserError when something else than declared would train.
    """
    model.requires_grad_(False)
    view = None
    if options.train_type in ("lora", "qlora"):
        from peft import LoraConfig, get_peft_model

        pattern = lora_targets(model_type, options.lora_layers, linear_layers(model))
        settings = LoraConfig(
            r=options.lora_rank,
            lora_alpha=options.lora_alpha,
            lora_dropout=options.lora_dropout,
            target_modules=pattern,
            bias="none",
        )
        view = get_peft_model(model, settings)
    named = dict(model.named_parameters())
    for name in declared_names(model, model_type, options):
        named[name].requires_grad_(True)
    trainable_to_fp32(model)
    keep_trainable_after_inference(model)
    check_trained(model, model_type, options)
    return view


def linear_layers(model: nn.Module) -> list[str]:
    """Paths of the linear layers, 4- and 8-bit ones too."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def declared_names(model: nn.Module, model_type: str, options: TrainOptions) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    return trained_names(
        names,
        model_type,
        options.train_type,
        train_projector=trains_projector(options, model_type),
        train_vision=options.train_vision,
        idle=idle_names(names, model_type, getattr(model.config, "vision_feature_layer", None)),
    )


def check_trained(model: nn.Module, model_type: str, options: TrainOptions) -> None:
    """Raises UserError unless exactly the declared parameters train, each component some of its.

    By name, not by count: the same number of wrong parameters would train as quietly.
    """
    named = dict(model.named_parameters())
    wanted = declared_names(model, model_type, options)
    found = {name for name, parameter in named.items() if parameter.requires_grad}
    if wanted != found:
        odd = sorted(wanted ^ found)
        raise UserError(
            f"{options.train_type}: {len(odd)} parameters are not as declared: {odd[0]}"
        )
    parts = trained_parts(
        options.train_type, trains_projector(options, model_type), options.train_vision
    )
    for component in parts:
        if not any(component_of(model_type, name) == component for name in found):
            raise UserError(f"{options.train_type}: nothing of the {component} would train")
    narrow = sorted(name for name in found if named[name].dtype != torch.float32)
    if narrow:
        raise UserError(f"{narrow[0]} would train in {named[narrow[0]].dtype}, not in float32")


def keep_frozen_in(model: nn.Module, dtype: torch.dtype) -> None:
    """--train_type full loads everything in fp32: what is frozen goes to the compute dtype."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)


def trained_outside_lora(model: nn.Module) -> list[str]:
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and ".lora_" not in name
    ]


def trained_map(model: nn.Module, model_type: str) -> dict[str, tuple[int, int]]:
    """component -> (weights, trained weights); a 4-bit weight counts as one."""
    counts = {component: (0, 0) for component in (VISION, PROJECTOR, LANGUAGE)}
    for name, parameter in model.named_parameters():
        owner = component_of(model_type, name) or "other"
        state: Any = getattr(parameter, "quant_state", None)
        size = state.shape.numel() if state is not None else parameter.numel()
        total, trained = counts.get(owner, (0, 0))
        counts[owner] = (total + size, trained + (size if parameter.requires_grad else 0))
    return counts


def print_trained(model: nn.Module, model_type: str) -> None:
    for component, (total, trained) in trained_map(model, model_type).items():
        print(f"  {component}: {total:,} weights, {trained:,} trained")


class VlmForTraining(nn.Module):
    """The training model: mixed precision, head at learned positions, frozen parts without dropout.

    With `contrastive_weight` above 0 the image-text loss of contrastive.py is added in training;
    with 0 nothing of it runs.
    """

    def __init__(
        self,
        family: Family,
        compute_dtype: torch.dtype,
        contrastive_weight: float = 0.0,
        contrastive_temperature: float = 0.07,
    ) -> None:
        super().__init__()
        self.model = family.model
        self.model_type: str = family.config.model_type
        self.image_token_id = family.image_token_id or 0
        self.special_ids = {*family.tokenizer.all_special_ids, *family.end_ids}
        self.compute_dtype = compute_dtype
        self.contrastive_weight = contrastive_weight
        self.contrastive_temperature = contrastive_temperature
        self.recomputes = False

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | int | float | None = None,
        **inputs: Any,
    ) -> dict[str, Tensor]:
        """The summed cross-entropy over `num_items_in_batch` (learned tokens of all accumulated
        batches and processes; None: of this one), in fp32 whatever the rest is. Raises UserError
        for a batch without a learned token."""
        targets = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)  # (B, T)
        learned = targets != IGNORE_INDEX  # position t predicts token t + 1
        targets = targets[learned]  # (A,)
        if not len(targets):
            raise UserError("a batch without a single token to learn")
        together = len(targets) if num_items_in_batch is None else num_items_in_batch
        mixed = self.compute_dtype != torch.float32
        with torch.autocast(input_ids.device.type, self.compute_dtype, enabled=mixed):
            contrast = None
            if self.training and self.contrastive_weight and "pixel_values" in inputs:
                inputs, contrast = self.contrast(input_ids, labels, inputs)
            hidden = self.model.model(
                input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **inputs
            )[0]  # (B, T, D)
            logits = self.model.lm_head(hidden[learned])  # (A, V)
        loss = nn.functional.cross_entropy(logits.float(), targets, reduction="sum") / together
        if contrast is not None:  # accumulated batches count by their learned tokens
            loss = loss + self.contrastive_weight * contrast * (len(targets) / together)
        if self.training and "pixel_values" not in inputs and contrast is None:
            loss = loss + self.unused()
        return {"loss": loss}

    def contrast(
        self, input_ids: Tensor, labels: Tensor, inputs: dict[str, Any]
    ) -> tuple[dict[str, Any], Tensor]:
        """The pictures encoded once for both losses: (inputs with their features, the loss)."""
        from qwen_clip_llava_lora.contrastive import contrastive_loss

        own = {name: inputs[name] for name in PICTURE_INPUTS if name in inputs}
        encoded = self.model.get_image_features(**own)
        vectors = encoded.pooler_output
        if not torch.is_tensor(vectors) or vectors.dim() == 3:  # one (N, D) a picture
            vectors = torch.cat(tuple(vectors))
        loss = contrastive_loss(
            vectors,
            input_ids,
            labels,
            self.model.get_input_embeddings(),
            image_token_id=self.image_token_id,
            special_ids=self.special_ids,
            temperature=self.contrastive_temperature,
        )
        rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
        return rest | {"mm_encoder_outputs": {"image": encoded}}, loss

    def unused(self) -> Tensor:
        """Zero, computed with every trained weight that a batch of text alone does not use: in
        several processes each waits for the gradients of all."""
        zero = torch.zeros((), device=self.model.device)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and component_of(self.model_type, name) != LANGUAGE:
                zero = zero + 0.0 * parameter.sum()
        return zero

    def stand_in(self) -> dict[str, Tensor]:
        """Two tokens of text, for a process whose samples are all bad while others train."""
        token = int(self.image_token_id == 0)  # any but the image token
        input_ids = torch.full((1, 2), token)
        return {
            "input_ids": input_ids,
            "labels": input_ids.clone(),
            "attention_mask": torch.ones_like(input_ids),
        }

    def train(self, mode: bool = True) -> VlmForTraining:
        """Training mode; a component without trained weights keeps its dropout off.

        transformers recomputes in training mode only: with --activation_checkpointing a frozen
        language model is put there too (these models have no dropout by default).
        """
        super().train(mode)
        trained = {
            component_of(self.model_type, name)
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        for component, prefixes in components_of(self.model_type).items():
            learns = component in trained or (component == LANGUAGE and self.recomputes)
            for prefix in prefixes:
                self.model.get_submodule(prefix.rstrip(".")).train(mode and learns)
        return self

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """The Trainer's hook: layers are computed again in the backward pass, not remembered."""
        self.recomputes = True
        self.model.activation_checkpointing_enable(**settings)
