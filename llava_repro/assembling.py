"""A LLaVA from its parts: vision tower, projector, language model, tokenizer.

The parts lie on disk as their authors publish them (a CLIP folder brings its text tower too, which
is not loaded). The tokenizer gets `<image>` and, if it has none, a padding token; the language
model's embeddings grow when the new tokens do not fit into the rows it has. For plans without
weights the same configuration comes from `architectures.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llava_repro.settings import ARCHITECTURES, LlavaParts, TrainOptions
from shared.conversations import IMAGE_TAG, Template, check_tokenizer
from shared.llava_parts import (
    TOWERS,
    llava_config,
    load_image_processor,
    load_tokenizer,
    part_config,
    prepare_tokenizer,
    tower_family,
)
from shared.loading import load_pretrained, model_folder, pick_dtype
from shared.options import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import TrainingArguments

    from llava_repro.model import Llava


@dataclass(frozen=True)
class Assembled:
    """A LLaVA with all that turns rows into its input."""

    model: Llava
    tokenizer: Any
    image_processor: Any


def ready_tokenizer(folder: Path, template: Template | None) -> Any:
    """The tokenizer with `<image>` and padding, checked against the template; says what it did.

    Raises UserError before any weight is loaded.
    """
    tokenizer = load_tokenizer(folder)
    for line in [*prepare_tokenizer(tokenizer), *check_tokenizer(tokenizer, template)]:
        print(f"tokenizer:  {line}")
    return tokenizer


def assemble(
    options: LlavaParts,
    template: Template | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    language_model_dtype: torch.dtype,
    quantization: str,
) -> Assembled:
    """The parts loaded and put together; the projector is fresh (`read_projector` fills it).

    `language_model_dtype` is float32 where the language model itself trains: read in bf16 first,
    its weights would have lost what fp16 and fp32 files hold.
    """
    import transformers

    from llava_repro.model import Llava

    vision_folder = model_folder(options.vision_tower or "")
    text_folder = model_folder(options.language_model or "")
    vision_config, _ = part_config(str(vision_folder), ARCHITECTURES)
    tokenizer = ready_tokenizer(text_folder, template)
    tower = load_pretrained(
        getattr(transformers, TOWERS[tower_family(vision_config)]),
        vision_folder,
        device=device,
        dtype=dtype,
        quantization="none",
        skip_modules=(),
    )
    language_model = load_pretrained(
        transformers.AutoModelForCausalLM,
        text_folder,
        device=device,
        dtype=language_model_dtype,
        quantization=quantization,
        skip_modules=("lm_head",),
    )
    grow_embeddings(language_model, len(tokenizer))
    config = llava_config(
        tower.config,
        language_model.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TAG),
        vision_feature_layer=options.vision_feature_layer,
    )
    model = Llava(config, tower, language_model, projector=options.projector_type)
    model.projector.to(device)
    return Assembled(model, tokenizer, load_image_processor(vision_folder))


def compute_dtype(options: LlavaParts, training: TrainingArguments) -> torch.dtype:
    """The dtype of frozen weights and of the computation. Raises UserError for fp16 unscaled."""
    dtype = pick_dtype(options.dtype, training.device)
    if dtype == torch.float16 and not training.fp16:
        raise UserError(
            "this device computes in float16, whose gradients vanish unless the loss is scaled: "
            "give --fp16 true, or --dtype float32"
        )
    return dtype


def load_for_training(
    options: TrainOptions, training: TrainingArguments, template: Template | None
) -> tuple[Assembled, PeftModel | None]:
    """The model with exactly that open which trains, and peft's view of it when it is LoRA."""
    from transformers import set_seed

    from llava_repro.results import check_projector, read_projector
    from llava_repro.trainable import prepare_training, print_trained

    device, dtype = training.device, compute_dtype(options, training)
    train_type = options.train_type or ""
    whole = train_type in ("freeze_vision", "full")
    set_seed(training.seed)  # of a fresh projector and of LoRA's first weights
    if options.model is not None:
        assembled = load_assembled(options, template, device, torch.float32 if whole else dtype)
    else:
        assembled = assemble(
            options,
            template,
            device=device,
            dtype=torch.float32 if train_type == "full" else dtype,
            language_model_dtype=torch.float32 if whole else dtype,
            quantization=options.quantization,
        )
    model = assembled.model
    if options.projector is not None:
        for note in check_projector(options.projector, options, model.config):
            print(f"projector:  {note}")
        read_projector(model.projector, options.projector)
    set_seed(training.seed)  # the same LoRA matrices whether or not a projector was read
    view = prepare_training(
        model,
        train_type,
        rank=options.lora_rank,
        alpha=options.lora_alpha,
        dropout=options.lora_dropout,
    )
    if train_type != "full":
        model.vision_tower.to(dtype)
    print_trained(model)
    return assembled, view


def load_assembled(
    options: TrainOptions, template: Template | None, device: torch.device, dtype: torch.dtype
) -> Assembled:
    """A whole LLaVA folder with its tokenizer and image processor."""
    from llava_repro.model import Llava

    folder = model_folder(options.model or "")
    tokenizer = ready_tokenizer(folder, template)
    model = Llava.from_pretrained(
        folder, dtype=dtype, quantization=options.quantization, device=device
    )
    if tokenizer.convert_tokens_to_ids(IMAGE_TAG) != model.config.image_token_index:
        raise UserError(
            f"{folder}: {IMAGE_TAG} is token {tokenizer.convert_tokens_to_ids(IMAGE_TAG)} of its "
            f"tokenizer, config.json says {model.config.image_token_index}; write the folder anew "
            "with llava_repro/convert.py"
        )
    return Assembled(model, tokenizer, load_image_processor(folder))


def grow_embeddings(language_model: nn.Module, n_tokens: int) -> None:
    """Rows for new tokens where there are too few; never fewer than before.

    Many models have more rows than tokens (Qwen2.5: 151,936 for 151,665); then nothing changes.
    The new rows are the mean of the others: `<image>` is replaced by the picture, padding is
    masked, so they are never read.
    """
    rows = language_model.get_input_embeddings().weight.shape[0]
    if n_tokens > rows:
        language_model.resize_token_embeddings(n_tokens, mean_resizing=False)
        for embeddings in (
            language_model.get_input_embeddings(),
            language_model.get_output_embeddings(),
        ):
            if embeddings is not None:
                with torch.no_grad():
                    embeddings.weight[rows:] = embeddings.weight[:rows].mean(0)
