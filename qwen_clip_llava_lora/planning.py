"""What a training would do, before any weight is read: train.py --dry_run prints it.

Data and configuration are read, weights never: what trains is opened and checked on transformers'
own model without memory (meta device), by the code that opens the real one. A model that is not on
this machine is planned from its published numbers (`architectures.json`), a LLaVA that is not
merged yet as LANGUAGE_MODEL+VISION_TOWER. Memory is computed (memory.py), never measured.

    python qwen_clip_llava_lora/train.py --preset emotion --data data/affectnet --dry_run
    python qwen_clip_llava_lora/train.py --model openbmb/MiniCPM-V-4.6 --data own.csv --dry_run
    python qwen_clip_llava_lora/train.py --data data/cc3m_595k --dry_run \
        --model Qwen/Qwen1.5-4B-Chat+openai/clip-vit-large-patch14-336
    python qwen_clip_llava_lora/train.py --toy --dry_run

Reads the data's first rows, their pictures' headers and a model's small files; writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qwen_clip_llava_lora.encoding import encode_row, n_picture_tokens
from qwen_clip_llava_lora.memory import (
    Component,
    Needs,
    meta_model,
    on_each_gpu,
    trainable_map,
    training_needs,
)
from qwen_clip_llava_lora.settings import ARCHITECTURES
from qwen_clip_llava_lora.training_model import family_of, prepare_training
from shared.conversation_data import Rows, row_name, show_labels
from shared.conversations import fit, row_images
from shared.images import header_size
from shared.llava_parts import llava_config, part_config, vision_part
from shared.loading import MemoryEstimate, model_folder
from shared.options import IGNORE_INDEX, MissingError, UserError, portable_path, read_json
from shared.training_flags import steps_of_epochs

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, TrainingArguments

    from qwen_clip_llava_lora.train_settings import TrainOptions
    from qwen_clip_llava_lora.training_data import TrainingData
    from shared.vision_families import Family

LOOKED_AT = 64  # rows from which the longest sample is taken
ASSUMED_PICTURE = (640, 480)  # where no row can be encoded: COCO's usual size,
ASSUMED_TEXT, ASSUMED_ANSWER = 128, 64  # tokens around a picture, of them learned
CARDS = (16, 24, 48, 80)  # GB
SEVERAL = (2, 4, 8)  # GPUs, told where one of the largest cards is not enough
VISION_FEATURE_LAYER = -2  # as merge_model.py writes it


@dataclass(frozen=True)
class Sample:
    """The sample that memory is counted with: its tokens, how many are learned, how many stand for
    pictures; `said` tells where it comes from."""

    tokens: int
    learned: int
    picture_tokens: int
    said: str


def print_training_plan(
    options: TrainOptions, training: TrainingArguments, data: TrainingData | None
) -> None:
    """--dry_run: model, what trains, data, steps, one sample with its learned tokens, memory.

    `data` is None where the data is not on this machine. Raises UserError, MissingError.
    """
    config, source = read_config(options.model or "", options.revision)
    family = family_on_disk(options)
    print(f"run:        {portable_path(training.output_dir)}")
    print(f"model:      {source}")
    print(f"training:   preset {options.preset}, {options.train_type}")
    model = opened(config, options)
    for line in [
        *map_lines(trainable_map(model), options),
        *data_lines(options, data),
        *length_lines(training, data),
    ]:
        print(line)
    sample = None
    if data is not None and family is not None:
        sample, lines = encoded_rows(family, data.learned, Path(data.source.image_root), options)
    else:
        lines = pictures_without_model(options, config, data)
    sample = sample or assumed_sample(config, options)
    for line in [*lines, *memory_lines(options, training, model, sample)]:
        print(line)


# Model


def read_config(name: str, revision: str | None = None) -> tuple[PretrainedConfig, str]:
    """(configuration, where it is from): a folder or downloaded Hub id, published numbers, or
    LANGUAGE_MODEL+VISION_TOWER. Raises MissingError for a model of which nothing is known."""
    from transformers import AutoConfig

    known = read_json(ARCHITECTURES)
    try:
        folder = model_folder(name, revision)
    except MissingError as error:
        if "+" in name:
            return merged_config(*name.split("+", 1))
        if name not in known:
            raise MissingError(
                f"{error}\n  a plan without weights: --dry_run with one of {', '.join(known)}, or "
                "with LANGUAGE_MODEL+VISION_TOWER of a LLaVA that is not merged yet"
            ) from error
        return part_config(name, ARCHITECTURES)[0], f"{name} ({published(name)})"
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: its config.json cannot be used ({error})") from error
    return config, f"{portable_path(name)} (on disk)"


def published(name: str) -> str:
    evidence = read_json(ARCHITECTURES)[name]["evidence"]
    return f"not on disk: published numbers, {evidence}"


def merged_config(language_model: str, vision_tower: str) -> tuple[PretrainedConfig, str]:
    """The LLaVA that merge_model.py would make of two models, its new tokens left out."""
    text, text_folder = part_config(language_model, ARCHITECTURES)
    vision, vision_folder = part_config(vision_tower, ARCHITECTURES)
    config = llava_config(
        vision_part(vision),
        text,
        image_token_index=text.vocab_size - 1,  # stands for any: only sizes matter here
        vision_feature_layer=VISION_FEATURE_LAYER,
    )
    said = [
        f"{portable_path(name)} ({'on disk' if folder else published(name)})"
        for name, folder in ((language_model, text_folder), (vision_tower, vision_folder))
    ]
    return config, "a LLaVA to be merged of " + " and ".join(said)


def family_on_disk(options: TrainOptions) -> Family | None:
    """Tokenizer, template and picture rules of --model, None where they are not here."""
    try:
        return family_of(options)
    except MissingError:
        return None


def plan_dtype(options: TrainOptions) -> torch.dtype:
    """Of frozen weights and computation on the GPU that is planned for."""
    return torch.bfloat16 if options.dtype == "auto" else getattr(torch, options.dtype)


def opened(config: PretrainedConfig, options: TrainOptions) -> nn.Module:
    """The model without weights, frozen and opened as the real one, which is checked by name."""
    model = meta_model(config, plan_dtype(options))
    prepare_training(model, config.model_type, options)
    return model.train()


def map_lines(parts: dict[str, Component], options: TrainOptions) -> list[str]:
    lines = []
    for name, part in parts.items():
        rule = f"{part.trained:,} trained" if part.trained else "frozen"
        if part.lora_layers:
            rule += f" (LoRA, rank {options.lora_rank}, on {part.lora_layers} layers)"
        lines.append(f"weights:    {name}: {part.parameters:,}, {rule}")
    total, trained = (sum(getattr(p, n) for p in parts.values()) for n in ("parameters", "trained"))
    return [*lines, f"trained:    {trained:,} of {total:,} ({100 * trained / total:.2f} %)"]


# Data


def data_lines(options: TrainOptions, data: TrainingData | None) -> list[str]:
    if data is None:
        named = ", ".join(options.data or ())
        return [f"data:       {f'{named} is not on this machine' if named else 'none is given'}"]
    kinds = [f"{d.name or portable_path(d.source)}: {len(d.rows):,} rows" for d in data.parts]
    formats = sorted({part.format for part in data.parts})
    return [
        f"data:       {'; '.join(kinds)} ({', '.join(formats)})",
        f"            {len(data.learned):,} train, {len(data.held_out):,} held out; pictures below "
        f"{portable_path(data.source.image_root)}",
    ]


def length_lines(training: TrainingArguments, data: TrainingData | None) -> list[str]:
    per_device, accumulated = (
        training.per_device_train_batch_size,
        training.gradient_accumulation_steps,
    )
    batch = per_device * training.world_size * accumulated
    lines = [
        f"batch:      {per_device} samples x {training.world_size} devices x {accumulated} "
        f"accumulated = {batch}"
    ]
    if training.max_steps < 1 and data is None:
        return [*lines, f"steps:      {training.num_train_epochs:g} passes over the data"]
    steps = training.max_steps
    if steps < 1:
        assert data is not None
        steps = steps_of_epochs(training, len(data.learned))
    passes = f", {steps * batch / len(data.learned):.2f} passes over the data" if data else ""
    optimizer = getattr(training.optim, "value", training.optim)
    return [
        *lines,
        f"steps:      {steps:,}, {training.get_warmup_steps(steps):,} of them warm-up{passes}",
        f"rate:       {training.learning_rate:g}, {optimizer}, gradient norm at most "
        f"{training.max_grad_norm:g}",
    ]


def encoded_rows(
    family: Family, rows: Rows, image_root: Path, options: TrainOptions
) -> tuple[Sample | None, list[str]]:
    """The longest of the first rows as they will be learned, and lines: one sample, picture sizes,
    lengths, what is wrong. Pictures are not decoded: their headers say how many tokens they take.
    """
    samples: list[Sample] = []
    lines, problems, shown = [], [], []
    n_looked = min(LOOKED_AT, len(rows))
    for i in range(n_looked):
        row = rows[i]
        name = row_name(row, i)
        try:
            if "problem" in row:
                raise UserError(row["problem"])
            sizes = [header_size(path) for path in row_images(row, image_root)]
            whole = encode_row(family, row, sizes)
            fitting = fit(whole, options.max_length, family.image_token_id)
            if fitting is None:
                n = len(whole["input_ids"])
                raise UserError(f"{n} tokens do not fit --max_length {options.max_length}")
        except UserError as error:
            problems.append(str(error) if name in str(error) else f"{name}: {error}")
            continue
        places = [n_picture_tokens(family, *size) for size in sizes]
        shown += [f"{w} x {h}: {n}" for (w, h), n in zip(sizes, places, strict=True)]
        n_tokens = len(fitting["input_ids"])
        learned = sum(label != IGNORE_INDEX for label in fitting["labels"])
        samples.append(Sample(n_tokens, learned, sum(places), f"{name}, the longest looked at"))
        if not lines:
            text = show_labels(fitting, family.tokenizer, family.image_token_id)
            lines += [
                f"sample:     {text!r}",
                f"            ({name}, {n_tokens} tokens, {learned} learned, in 【 】)",
            ]
    if shown:
        lines.append(f"pictures:   {', '.join(list(dict.fromkeys(shown))[:4])} tokens")
    if samples:
        tokens = sorted(s.tokens for s in samples)
        lines.append(
            f"lengths:    {tokens[0]} to {tokens[-1]} tokens, median {tokens[len(tokens) // 2]} "
            f"(of the first {n_looked} rows, {len(samples)} of them usable)"
        )
    if problems:
        lines.append(f"unusable:   {len(problems)} of {n_looked} rows: {problems[0]}")
    return max(samples, key=lambda s: s.tokens, default=None), lines


def pictures_without_model(
    options: TrainOptions, config: PretrainedConfig, data: TrainingData | None
) -> list[str]:
    """Without a tokenizer only the tokens of the first pictures are known, from their sizes."""
    why = "" if data is None else f": the tokenizer of {options.model} is not on this machine"
    lines = [f"sample:     none{why or ': there is no data'}"]
    sizes: list[tuple[int, int]] = []
    for i in range(min(LOOKED_AT, len(data.learned)) if data else 0):
        assert data is not None
        try:
            row = data.learned[i]
            sizes += [header_size(path) for path in row_images(row, data.source.image_root)]
        except UserError:  # named when the data is encoded, with a model
            continue
    shown = [f"{w} x {h}: {tokens_of(config, (w, h), options)}" for w, h in dict.fromkeys(sizes)]
    return [*lines, f"pictures:   {', '.join(shown[:4])} tokens"] if shown else lines


def tokens_of(config: PretrainedConfig, size: tuple[int, int], options: TrainOptions) -> int:
    """Tokens of a picture of (width, height) by transformers' own rules, without a model folder.

    Qwen-VL's bounds where none are given: 4 to 16,384 tokens (the published preprocessor_config of
    Qwen2-VL). MiniCPM-V: slices as its image processor cuts them by default, 16 patches a token.
    """
    width, height = size
    if config.model_type == "llava":
        from shared.vision_families import llava_image_tokens

        return llava_image_tokens(config)
    if config.model_type == "minicpmv4_6":
        from PIL import Image
        from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
            MiniCPMV4_6ImageProcessorPil,
        )

        cut = MiniCPMV4_6ImageProcessorPil()(Image.new("RGB", size), return_tensors="pt")
        return int(cut["target_sizes"].prod(dim=-1).sum()) // patches_per_token(config)
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    vision = config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    try:
        shown = smart_resize(
            height,
            width,
            factor=side,
            min_pixels=options.min_pixels or 4 * side**2,
            max_pixels=options.max_pixels or 16_384 * side**2,
        )
    except ValueError as error:
        raise UserError(f"a picture of {width} x {height} pixels: {error}") from error
    return shown[0] // side * (shown[1] // side)


def patches_per_token(config: PretrainedConfig) -> int:
    """What the tower sees for each place in the prompt."""
    if config.model_type == "minicpmv4_6":
        return 4 if config.downsample_mode == "4x" else 16
    return getattr(config.vision_config, "spatial_merge_size", 1) ** 2


def assumed_sample(config: PretrainedConfig, options: TrainOptions) -> Sample:
    picture = tokens_of(config, ASSUMED_PICTURE, options)
    tokens = min(picture + ASSUMED_TEXT, max(options.max_length, picture))
    width, height = ASSUMED_PICTURE
    return Sample(
        tokens,
        ASSUMED_ANSWER,
        picture,
        f"assumed: one picture of {width} x {height} ({picture} tokens), {ASSUMED_TEXT} tokens of "
        f"text, {ASSUMED_ANSWER} of them learned",
    )


# Memory


def needs_of(
    model: nn.Module, options: TrainOptions, sample: Sample, samples: int, recomputed: bool
) -> Needs:
    return training_needs(
        model,
        samples=samples,
        tokens=sample.tokens,
        learned=sample.learned,
        patches=sample.picture_tokens * patches_per_token(model.config),
        picture_tokens=sample.picture_tokens,
        recomputed=recomputed,
        packed=options.train_type == "qlora",
    )


def memory_lines(
    options: TrainOptions, training: TrainingArguments, model: nn.Module, sample: Sample
) -> list[str]:
    """GiB on each GPU as asked for and with the other choice of recomputation; which cards do."""
    optimizer = str(getattr(training.optim, "value", training.optim))
    samples = training.per_device_train_batch_size
    recomputes = bool(training.activation_checkpointing)
    chosen, other = (
        needs_of(model, options, sample, samples, recomputed)
        for recomputed in (recomputes, not recomputes)
    )
    memory = on_each_gpu(chosen, "ddp", training.world_size, optimizer)
    without = on_each_gpu(other, "ddp", training.world_size, optimizer)
    lines = [
        f"memory:     about {memory.total:.1f} GiB on each GPU, {how(recomputes)} "
        f"(weights {memory.weights:.1f}, training state {memory.trainable:.1f}, activations "
        f"{memory.activations:.1f}, overhead {memory.overhead:.1f})",
        f"            {how(not recomputes)} {without.total:.1f} GiB "
        f"(activations {without.activations:.1f})",
        f"            {fits_line(memory)}",
        f"            computed, not measured, for {samples} samples of {sample.tokens} tokens: "
        f"{sample.said}",
    ]
    if not memory.fits(CARDS[-1]):
        shared = ", ".join(
            f"with {n}: {on_each_gpu(chosen, 'zero3', n, optimizer).total:.0f}" for n in SEVERAL
        )
        lines.append(
            f"            ZeRO-3, which train.py refuses so far, would take, GiB on each GPU, "
            f"{shared} (qwen_clip_llava_lora/memory_table.py has more)"
        )
    return lines


def how(recomputed: bool) -> str:
    return f"{'with' if recomputed else 'without'} activation checkpointing"


def fits_line(memory: MemoryEstimate) -> str:
    """Whether it fits the GPU of this machine, or else the usual ones."""
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        size = card.total_memory / 1e9
        return f"{card.name}, {size:.0f} GB: {'fits' if memory.fits(int(size)) else 'too small'}"
    return ", ".join(f"{c} GB: {'fits' if memory.fits(c) else 'does not fit'}" for c in CARDS)
