"""What a run would do, before any weight is loaded: parameters, memory, length, one sample.

`--dry_run` of every script prints it. Parameters are counted on the meta device from the model's
configuration; memory and time are computed from sizes, never measured, and say so.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import torch
from torch import nn

from blip2_qlora.blip2 import (
    COMPONENTS,
    Preset,
    answer_ids,
    choose_preset,
    encode_pair,
    language_model_kind,
    lora_targets,
    prompt_ids,
    read_config,
)
from blip2_qlora.settings import TrainOptions
from blip2_qlora.training_data import PictureGroup, show_labels
from shared.loading import GIB, MemoryEstimate, model_folder, weight_bytes
from shared.options import UserError, portable_path
from shared.vqav2 import Question, QuestionSet

if TYPE_CHECKING:
    from transformers import Blip2Config, TrainingArguments

# For the time of a training: an RTX 3090's 71 TFLOP/s in bfloat16, a third of it reached.
ASSUMED_FLOPS = 71e12 / 3


def count_parameters(config: Blip2Config) -> dict[str, int]:
    """Parameters per component of this architecture, no weights needed (meta device)."""
    from transformers import Blip2ForConditionalGeneration

    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    counts = dict.fromkeys(COMPONENTS, 0)
    for name, parameter in model.named_parameters():
        counts[next(c for c, part in COMPONENTS.items() if part in name)] += parameter.numel()
    return counts


def quantizable_parameters(config: Blip2Config) -> int:
    """Weights that NF4 or int8 packs: the language model's linear layers without their biases.

    Its head and embeddings stay as they are, and so does T5's `wo` (transformers' modeling_t5.py,
    _keep_in_fp32_modules).
    """
    from transformers import Blip2ForConditionalGeneration

    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    return sum(
        module.weight.numel()
        for name, module in model.language_model.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith(("lm_head", ".wo"))
    )


def lora_parameters(config: Blip2Config, rank: int, targets: str) -> int:
    """LoRA weights over the linear layers whose names `targets` matches: rank x (in + out) each."""
    from transformers import Blip2ForConditionalGeneration

    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    return sum(
        rank * (module.in_features + module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(targets, name)
    )


def estimate_memory(
    config: Blip2Config,
    *,
    quantization: str,
    dtype: torch.dtype,
    pictures: int,
    questions: int,
    text_tokens: int,
    n_trainable: int = 0,
    num_beams: int = 1,
) -> MemoryEstimate:
    """GiB on one card from sizes alone: weights, training state, activations.

    Activations per layer and token of the language model, D its width. Training without
    recomputation: about 34 D bytes at 2 bytes a value (Korthikanti et al., arXiv 2205.05198, eq. 2,
    without the attention matrices), and LoRA's fp32 copies of its layers' inputs (9 D values, once
    before and once after dropout). Inference: the key-value cache, 2 D values for each beam. The
    frozen vision tower keeps one layer's activations at a time.
    """
    width = dtype.itemsize
    text = config.text_config
    is_t5 = language_model_kind(config) == "t5"
    hidden = text.d_model if is_t5 else text.hidden_size
    layers = 2 * text.num_layers if is_t5 else text.num_hidden_layers
    tokens = questions * (config.num_query_tokens + text_tokens)
    per_token = 34 * width / 2 + 18 * 4 if n_trainable else 2 * width * num_beams
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1
    vision = pictures * patches * config.vision_config.intermediate_size * 4 * width
    packed = quantizable_parameters(config)
    counts = {"packed": packed, "rest": sum(count_parameters(config).values()) - packed}
    weights = weight_bytes(counts, ("packed",), quantization, width)
    return MemoryEstimate(
        weights=weights / GIB,
        trainable=n_trainable * 16 / GIB,
        activations=(tokens * per_token * hidden * layers + vision) / GIB,
    )


def inference_plan(
    config: Blip2Config, preset: Preset, question: str, *, quantization: str, dtype: str, batch: int
) -> list[str]:
    """What --dry_run prints of a script that answers: shapes, one prompt, decoding, memory."""
    size = config.vision_config.image_size
    memory = estimate_memory(
        config,
        quantization=quantization,
        dtype=torch.bfloat16 if dtype == "auto" else getattr(torch, dtype),
        pictures=batch,
        questions=batch,
        text_tokens=32,
        num_beams=preset.decoding.num_beams,
    )
    tokens = config.num_query_tokens
    return [
        f"pictures: (up to {batch}, 3, {size}, {size}) -> {tokens} image tokens each",
        f"prompt:   <image> x {tokens} + {preset.prompt.format(question)!r}",
        f"decoding: {preset.decoding}",
        f"memory:   {memory}",
    ]


def print_training_plan(
    options: TrainOptions,
    training: TrainingArguments,
    rows: QuestionSet,
    groups: list[PictureGroup],
    held_out: list[Question],
) -> None:
    """--dry_run: data, one sample with its learned tokens, what trains, steps, memory, time."""

    config = read_config(options.model, options.revision)
    preset = choose_preset(config, options.preset, options.prompt, False)
    counts = count_parameters(config)
    targets = lora_targets(config, options.train_qformer)
    trained = lora_parameters(config, options.lora_rank, targets)
    n_questions = sum(len(group.questions) for group in groups)
    per_picture = n_questions / len(groups)
    pictures = training.per_device_train_batch_size
    print(f"run:        {portable_path(training.output_dir)}")
    bad = len(rows.problems)
    print(f"data:       {n_questions} questions in {len(groups)} picture groups")
    print(f"            {len(held_out)} questions held out, {bad} bad rows left out")
    accumulated = training.gradient_accumulation_steps
    print(f"step:       {pictures} pictures x {accumulated} accumulated")
    print(f"            {per_picture:.1f} questions a picture")
    epochs = training.max_steps * pictures * training.gradient_accumulation_steps / len(groups)
    print(f"length:     {training.max_steps} steps, {epochs:.2f} passes over the data")
    print(f"sample:     {sample_with_labels(options, preset.prompt, groups[0].questions[0])}")
    for component, count in counts.items():
        print(f"weights:    {component}: {count:,}, frozen")
    print(f"trained:    {trained:,} LoRA weights ({100 * trained / sum(counts.values()):.2f} %)")
    memory = estimate_memory(
        config,
        quantization=options.quantization,
        dtype=torch.bfloat16 if options.dtype == "auto" else getattr(torch, options.dtype),
        pictures=pictures,
        questions=math.ceil(pictures * per_picture),
        text_tokens=16,
        n_trainable=trained,
    )
    print(f"memory:     {memory}")
    hours = estimated_hours(config, counts, options, training, per_picture)
    print(f"time:       about {hours:.1f} h on a 24 GB card")
    print("            (computed for an RTX 3090 at a third of its peak, never measured)")


def sample_with_labels(options: TrainOptions, prompt: str, question: Question) -> str:
    """One encoded sample by the model's own tokenizer when it is on disk, else as plain text."""
    from transformers import Blip2Config, Blip2Processor

    try:
        folder = model_folder(options.model, options.revision)
    except UserError:
        return f"{prompt.format(question.question)} 【{question.target}】 (weights not on disk)"
    config = Blip2Config.from_pretrained(folder)
    processor = Blip2Processor.from_pretrained(folder, local_files_only=True)
    processor.num_query_tokens = config.num_query_tokens
    kind = language_model_kind(config)
    answer = answer_ids(processor, question.target or "", config.text_config.eos_token_id, kind)
    row = encode_pair(prompt_ids(processor, prompt.format(question.question)), answer, kind)
    return show_labels(row, processor.tokenizer)


def estimated_hours(
    config: Blip2Config,
    counts: dict[str, int],
    options: TrainOptions,
    training: TrainingArguments,
    per_picture: float,
) -> float:
    """FLOPs over an assumed speed: 2 per weight and token forward, 2 more for the gradient that
    passes through the frozen language model."""
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1
    vision = 2 * counts["vision tower"] * patches
    language = 4 * counts["language model"] * (config.num_query_tokens + 16) * per_picture
    pictures = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return training.max_steps * pictures * (vision + language) / ASSUMED_FLOPS / 3600
