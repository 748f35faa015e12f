"""What a run would do, before any weight is loaded: parameters, memory, length, one sample.

`--dry_run` of every script prints it. Parameters are counted on the meta device from the model's
configuration; memory and time are computed from sizes, never measured, and say so.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
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
from shared.loading import GIB, MemoryEstimate, check_adapter, model_folder, weight_bytes
from shared.options import MissingError, UserError, portable_path
from shared.training_flags import steps_of_epochs
from shared.vqav2 import Question, QuestionSet

if TYPE_CHECKING:
    from transformers import Blip2Config, TrainingArguments

# For the time of a training: an RTX 3090's 71 TFLOP/s in bfloat16, a third of it reached.
ASSUMED_FLOPS = 71e12 / 3
TIMED_CARD_GB = 24
# Of a VQAv2 question and its answer, as the estimates count them.
PROMPT_TOKENS, ANSWER_TOKENS = 12, 4
# The train split of VQAv2 as published (https://visualqa.org/download.html).
VQAV2_QUESTIONS, VQAV2_PICTURES = 443_757, 82_783


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
    prompt_tokens: int,
    answer_tokens: int,
    n_trainable: int = 0,
    num_beams: int = 1,
    recompute_every: int = 0,
) -> MemoryEstimate:
    """GiB on one card from sizes alone: weights, training state, activations.

    Activations per layer and token of the language model, D its width. Training without
    recomputation: about 34 D bytes at 2 bytes a value (Korthikanti et al., arXiv 2205.05198, eq. 2,
    without the attention matrices), and LoRA's fp32 copies of its layers' inputs (9 D values, once
    before and once after dropout). `recompute_every` n (--activation_checkpointing): each n-th
    layer keeps its input only, and one layer at a time is whole (same paper, section 3).
    Inference: the key-value cache, 2 D values for each beam. OPT's layers see image, prompt and
    answer; T5's encoder sees image and prompt, its decoder the answer alone, for which it keeps
    keys and values of what the encoder saw. The frozen vision tower keeps one layer's activations
    at a time.
    """
    width = dtype.itemsize
    text = config.text_config
    read = questions * (config.num_query_tokens + prompt_tokens)
    written = questions * answer_tokens
    if language_model_kind(config) == "t5":
        hidden, decoder_layers = text.d_model, text.num_decoder_layers
        stacks = [(text.num_layers, read), (decoder_layers, written)]
    else:
        hidden, decoder_layers = text.hidden_size, 0
        stacks = [(text.num_hidden_layers, read + written)]
    if n_trainable:
        per_token = [
            *((tokens, layers, 34 * width / 2 + 18 * 4, width) for layers, tokens in stacks),
            # of what T5's encoder saw: keys and values, and the fp32 inputs of their LoRA layers
            (read, decoder_layers, 2 * width + 4 * 4, 0),
        ]
        values = sum(tokens * kept_layers(*kept, recompute_every) for tokens, *kept in per_token)
    else:
        layers, tokens = stacks[-1]  # T5's encoder keeps nothing
        values = (layers * tokens + decoder_layers * read) * 2 * width * num_beams
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1
    vision = pictures * patches * config.vision_config.intermediate_size * 4 * width
    packed = quantizable_parameters(config)
    counts = {"packed": packed, "rest": sum(count_parameters(config).values()) - packed}
    weights = weight_bytes(counts, ("packed",), quantization, width)
    return MemoryEstimate(
        weights=weights / GIB,
        trainable=n_trainable * 16 / GIB,
        activations=(values * hidden + vision) / GIB,
    )


def kept_layers(layers: int, whole: float, recomputed: float, recompute_every: int) -> float:
    """Bytes per token and unit of width over all layers, when each n-th one is recomputed."""
    if not recompute_every or not layers:
        return layers * whole
    n_recomputed = math.ceil(layers / recompute_every)
    return (layers - n_recomputed + 1) * whole + n_recomputed * recomputed


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
        prompt_tokens=22,
        answer_tokens=preset.decoding.max_new_tokens,
        num_beams=preset.decoding.num_beams,
    )
    tokens = config.num_query_tokens
    return [
        f"pictures: (up to {batch}, 3, {size}, {size}) -> {tokens} image tokens each",
        f"prompt:   <image> x {tokens} + {preset.prompt.format(question)!r}",
        f"decoding: {preset.decoding}",
        f"memory:   {memory}",
    ]


def adapter_plan(
    config: Blip2Config, model: str, revision: str | None, adapter: str | None
) -> list[str]:
    """What --dry_run says of --adapter after the checks of loading it: folder, manifest, base (when
    it is on this machine), every matrix's shape (from its header). Raises UserError like loading.
    """
    if adapter is None:
        return []
    from transformers import Blip2ForConditionalGeneration

    try:
        base_folder = model_folder(model, revision)
    except MissingError:
        base_folder = None
    with torch.device("meta"):
        base = Blip2ForConditionalGeneration(config)
    n_matrices = len(check_adapter(base, Path(adapter), base_folder))
    unknown = "" if base_folder else "; the base is not on this machine, so only shapes are known"
    return [f"adapter:  {portable_path(adapter)}: {n_matrices} matrices fit this model{unknown}"]


def print_plan_without_data(
    options: TrainOptions, training: TrainingArguments, missing: MissingError
) -> None:
    """--dry_run before VQAv2 is downloaded: what trains, memory, time, for its known sizes."""
    per_picture = min(VQAV2_QUESTIONS / VQAV2_PICTURES, options.questions_per_picture)
    n_questions = options.limit or VQAV2_QUESTIONS
    n_groups = max(1, round(n_questions / per_picture))
    if training.max_steps < 1:
        training.max_steps = steps_of_epochs(training, n_groups)
    print(f"data:       not known, {missing}")
    print(f"            taken as VQAv2's train split, {n_questions:,} questions")
    config = read_config(options.model, options.revision)
    prompt = choose_preset(config, options.preset, options.prompt, False).prompt
    print_costs(options, training, n_groups, per_picture, f"{prompt.format('...')} (no data)")


def print_training_plan(
    options: TrainOptions,
    training: TrainingArguments,
    rows: QuestionSet,
    groups: list[PictureGroup],
    held_out: list[Question],
) -> None:
    """--dry_run: data, one sample with its learned tokens, what trains, steps, memory, time."""
    config = read_config(options.model, options.revision)
    prompt = choose_preset(config, options.preset, options.prompt, False).prompt
    n_questions = sum(len(group.questions) for group in groups)
    print(f"run:        {portable_path(training.output_dir)}")
    bad = len(rows.problems)
    print(f"data:       {n_questions} questions in {len(groups)} picture groups")
    print(f"            {len(held_out)} questions held out, {bad} bad rows left out")
    sample = sample_with_labels(options, prompt, groups[0].questions[0])
    print_costs(options, training, len(groups), n_questions / len(groups), sample)


def print_costs(
    options: TrainOptions,
    training: TrainingArguments,
    n_groups: int,
    per_picture: float,
    sample: str,
) -> None:
    """Steps, one sample, what trains, memory and time, of `n_groups` picture groups."""
    config = read_config(options.model, options.revision)
    counts = count_parameters(config)
    targets = lora_targets(config, options.train_qformer)
    trained = lora_parameters(config, options.lora_rank, targets)
    pictures = training.per_device_train_batch_size
    accumulated = training.gradient_accumulation_steps
    print(f"step:       {pictures} pictures x {accumulated} accumulated")
    print(f"            {per_picture:.1f} questions a picture")
    epochs = training.max_steps * pictures * accumulated / n_groups
    print(f"length:     {training.max_steps} steps, {epochs:.2f} passes over the data")
    print(f"sample:     {sample}")
    for component, count in counts.items():
        print(f"weights:    {component}: {count:,}, frozen")
    print(f"trained:    {trained:,} LoRA weights ({100 * trained / sum(counts.values()):.2f} %)")
    memory = estimate_memory(
        config,
        quantization=options.quantization,
        dtype=torch.bfloat16 if options.dtype == "auto" else getattr(torch, options.dtype),
        pictures=pictures,
        questions=math.ceil(pictures * per_picture),
        prompt_tokens=PROMPT_TOKENS,
        answer_tokens=ANSWER_TOKENS,
        n_trainable=trained,
        recompute_every=recompute_every(training),
    )
    print(f"memory:     {memory}")
    if not memory.fits(TIMED_CARD_GB):
        print(f"time:       none, it does not fit into {TIMED_CARD_GB} GB. What makes it smaller:")
        print(f"            {smaller(options, training)}")
        return
    hours = estimated_hours(config, counts, options, training, per_picture)
    print(f"time:       about {hours:.1f} h on a {TIMED_CARD_GB} GB card")
    print("            (computed for an RTX 3090 at a third of its peak, never measured)")


def recompute_every(training: TrainingArguments) -> int:
    """Each how-manieth layer is recomputed: 0 without --activation_checkpointing (of which
    --gradient_checkpointing is the older name)."""
    if not training.activation_checkpointing:
        return 0
    return int((training.activation_checkpointing_kwargs or {}).get("every_n_layers", 1))


def smaller(options: TrainOptions, training: TrainingArguments) -> str:
    """The flags that save memory and are not given yet."""
    return ", ".join(
        flag
        for flag, useful in (
            ("--activation_checkpointing true", not training.activation_checkpointing),
            ("--quantization nf4", options.quantization != "nf4"),
            ("a smaller --batch_size", training.per_device_train_batch_size > 1),
            ("a smaller --questions_per_picture", options.questions_per_picture > 1),
            ("a smaller --model", True),
        )
        if useful
    )


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
    passes through the frozen language model, 2 more where its layers are recomputed."""
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1
    vision = 2 * counts["vision tower"] * patches
    read = config.num_query_tokens + PROMPT_TOKENS
    decoder = decoder_parameters(config)
    weights_by_tokens = (
        decoder * ANSWER_TOKENS + (counts["language model"] - decoder) * read
        if decoder
        else counts["language model"] * (read + ANSWER_TOKENS)
    )
    passes = 6 if recompute_every(training) else 4
    pictures = training.per_device_train_batch_size * training.gradient_accumulation_steps
    flops = pictures * (vision + passes * weights_by_tokens * per_picture)
    return training.max_steps * flops / ASSUMED_FLOPS / 3600


def decoder_parameters(config: Blip2Config) -> int:
    """Weights of T5's decoder, which sees the answer only; 0 of OPT, whose layers see it all."""
    from transformers import Blip2ForConditionalGeneration

    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if name.startswith("language_model.decoder.")
    )
