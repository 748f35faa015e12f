"""What a training would do, before any weight is loaded: what trains, steps, memory, one sample.

`--dry_run` prints it. Parameters are counted on the meta device from the models' configurations (on
disk, or `architectures.json`); memory is computed from sizes, never measured, and says so.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llava_repro.settings import ARCHITECTURES, TOY_QWEN2, LlavaParts, TrainOptions
from llava_repro.trainable import (
    COMPONENTS,
    idle_names,
    lora_size,
    lora_targets,
    trained_names,
)
from llava_repro.training_data import named_template
from shared.conversation_data import Rows, row_name, show_labels
from shared.conversations import encode
from shared.llava_parts import (
    TOWERS,
    llava_config,
    load_tokenizer,
    part_config,
    prepare_tokenizer,
    tower_family,
    vision_part,
)
from shared.loading import GIB, MemoryEstimate, model_folder, weight_bytes
from shared.options import MissingError, portable_path
from shared.training_flags import steps_of_epochs

if TYPE_CHECKING:
    from transformers import LlavaConfig, TrainingArguments

    from llava_repro.model import Llava

# For the memory of a sample where no data is read: a caption; an answer with its conversation.
TEXT_TOKENS = {"pretrain": 32, "finetune": 512}
PUBLISHED_GPUS = 8  # of the original scripts; over so many a sharded training is counted
EXAMPLE_ROW = {
    "id": "example",
    "image": "example.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat color is the circle?"},
        {"from": "gpt", "value": "red"},
    ],
}


def read_config(options: LlavaParts) -> tuple[LlavaConfig, str, list[str]]:
    """(configuration, projector type, where it comes from), from disk or architectures.json."""
    if options.model is not None:
        from llava_repro.layouts import open_checkpoint

        config = open_checkpoint(model_folder(options.model)).config
        return config, config.projector_type, [f"{portable_path(options.model)} (on disk)"]
    vision, vision_folder = part_config(options.vision_tower or "", ARCHITECTURES)
    text, text_folder = part_config(options.language_model or "", ARCHITECTURES)
    config = llava_config(
        vision_part(vision),
        text,
        image_token_index=text.vocab_size - 1,  # stands for any: only sizes matter here
        vision_feature_layer=options.vision_feature_layer,
    )
    sources = [
        f"{portable_path(name or '')} ({'on disk' if folder else 'not on disk: published numbers'})"
        for name, folder in (
            (options.vision_tower, vision_folder),
            (options.language_model, text_folder),
        )
    ]
    return config, options.projector_type, sources


def meta_model(config: LlavaConfig, projector_type: str) -> Llava:
    """The architecture without its weights."""
    import transformers

    from llava_repro.model import Llava

    vision, text = config.vision_config, config.text_config
    with torch.device("meta"):
        tower = getattr(transformers, TOWERS[tower_family(vision)])(vision)
        language_model = transformers.AutoModelForCausalLM.from_config(text)
        return Llava(config, tower, language_model, projector=projector_type)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters per component."""
    counts = dict.fromkeys(COMPONENTS, 0)
    for name, parameter in model.named_parameters():
        counts[next(c for c, start in COMPONENTS.items() if name.startswith(start))] += (
            parameter.numel()
        )
    return counts


def count_trained(model: Llava, train_type: str, rank: int) -> dict[str, int]:
    """Trained parameters per component, LoRA's matrices counted for the language model."""
    idle = idle_names(model.vision_tower, model.config.vision_feature_layer)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    trained = trained_names(sizes, train_type, idle)
    counts = {
        component: sum(sizes[name] for name in trained if name.startswith(start))
        for component, start in COMPONENTS.items()
    }
    if train_type in ("lora", "qlora"):
        counts["language model"] = lora_size(model.language_model, rank)[0]
    return counts


def n_image_tokens(config: LlavaConfig) -> int:
    from llava_repro import model

    return model.n_image_tokens(config)


def estimate_memory(
    model: Llava,
    *,
    train_type: str,
    trained: dict[str, int],
    samples: int,
    text_tokens: int,
    dtype: torch.dtype,
    optim: str,
    recomputed: bool,
) -> MemoryEstimate:
    """GiB on one card from sizes alone; D width, V vocabulary, `samples` rows with one picture.

    Trained weights: fp32, their gradients, two Adam moments (2 bytes together with an 8-bit
    optimizer), and autocast's copy in `dtype`. Activations per layer and token: about 34 D bytes at
    2 bytes a value (Korthikanti et al., arXiv 2205.05198, eq. 2, without the attention matrices),
    for LoRA its fp32 copies of the layers' inputs (9 D values); recomputed, only each layer's input
    and one whole layer. Logits of the learned tokens: V values, in `dtype`, in fp32, and their
    gradient. A frozen tower keeps one layer's activations at a time.
    """
    config, width = model.config, dtype.itemsize
    text, vision = config.text_config, config.vision_config
    counts = count_parameters(model)
    whole = train_type in ("freeze_vision", "full")
    frozen = {
        "vision tower": counts["vision tower"] - trained["vision tower"],
        "language model": 0 if whole else counts["language model"],
    }
    packed = 0
    if train_type == "qlora":
        pattern = re.compile(lora_targets(model.language_model))
        packed = sum(
            module.weight.numel()
            for name, module in model.language_model.named_modules()
            if isinstance(module, nn.Linear) and pattern.fullmatch(name)
        )
    weights = weight_bytes(
        {"packed": packed, "rest": sum(frozen.values()) - packed}, ("packed",), "nf4", width
    )
    per_trained = 4 + 4 + (2 if "8bit" in optim else 8) + (width if width < 4 else 0)
    tokens = samples * (n_image_tokens(config) + text_tokens)
    layer = 34 * width / 2 + (18 * 4 if train_type in ("lora", "qlora") else 0)
    per_layers = (
        width * text.num_hidden_layers + layer if recomputed else layer * text.num_hidden_layers
    )
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    seen = samples * patches
    if train_type == "full":
        tower = seen * vision.hidden_size * 34 * width / 2 * vision.num_hidden_layers
    else:
        tower = seen * vision.intermediate_size * 4 * width
    logits = samples * text_tokens * text.vocab_size * (width + 8)
    return MemoryEstimate(
        weights=weights / GIB,
        trainable=sum(trained.values()) * per_trained / GIB,
        activations=(tokens * per_layers * text.hidden_size + tower + logits) / GIB,
    )


def print_training_plan(
    options: TrainOptions, training: TrainingArguments, rows: tuple[Rows, Rows] | None
) -> None:
    """--dry_run: model, what trains, data, steps, memory, one sample with its learned tokens.

    `rows` is None where the data is not here: --n_samples are counted with.
    """
    learned, held_out = rows or (None, None)
    config, projector_type, sources = read_config(options)
    model = meta_model(config, projector_type)
    train_type = options.train_type or ""
    counts, trained = count_parameters(model), count_trained(model, train_type, options.lora_rank)
    n_images = n_image_tokens(config)
    print(f"run:        {portable_path(training.output_dir)}")
    for source in sources:
        print(f"model:      {source}")
    print(f"stage:      {options.stage}, {train_type}, projector {projector_type}")
    for component, count in counts.items():
        rule = f"{trained[component]:,} trained" if trained[component] else "frozen"
        lora = ""
        if train_type in ("lora", "qlora") and component == "language model":
            _, layers = lora_size(model.language_model, options.lora_rank)
            lora = f" (LoRA, rank {options.lora_rank}, {layers} layers)"
        print(f"weights:    {component}: {count:,}, {rule}{lora}")
    print(f"trained:    {sum(trained.values()):,}")
    n_held = len(held_out) if held_out is not None else 0
    n_rows = len(learned) if learned is not None else options.n_samples
    if learned is None:
        print(f"data:       {options.data} is not here; counted with {n_rows:,} samples")
    else:
        print(f"data:       {n_rows:,} samples, {n_held:,} held out")
    steps = training.max_steps if training.max_steps > 0 else steps_of_epochs(training, n_rows)
    per_device, accumulated = (
        training.per_device_train_batch_size,
        training.gradient_accumulation_steps,
    )
    print(
        f"batch:      {per_device} samples x {training.world_size} devices x {accumulated} "
        f"accumulated = {per_device * training.world_size * accumulated}"
    )
    print(f"steps:      {steps:,}, {training.get_warmup_steps(steps):,} of them warm-up")
    projector_rate = options.projector_learning_rate or training.learning_rate
    print(
        f"rates:      {training.learning_rate:g}, projector {projector_rate:g}, "
        f"weight decay {training.weight_decay:g}, {optimizer_name(training)}"
    )
    print(f"picture:    {n_images} tokens")
    print_memory(options, training, model, trained)
    for line in sample_lines(options, learned, n_images):
        print(line)


def optimizer_name(training: TrainingArguments) -> str:
    return getattr(training.optim, "value", str(training.optim))


def print_memory(
    options: TrainOptions, training: TrainingArguments, model: Llava, trained: dict[str, int]
) -> None:
    text_tokens = min(TEXT_TOKENS[options.stage], options.max_length)
    memory = estimate_memory(
        model,
        train_type=options.train_type or "",
        trained=trained,
        samples=training.per_device_train_batch_size,
        text_tokens=text_tokens,
        dtype=torch.bfloat16 if options.dtype == "auto" else getattr(torch, options.dtype),
        optim=optimizer_name(training),
        recomputed=bool(training.activation_checkpointing),
    )
    print(f"memory:     {memory}")
    print(f"            (computed for samples of one picture and {text_tokens} text tokens)")
    if memory.total > 24 * 0.95:
        sharded = (memory.weights + memory.trainable) / PUBLISHED_GPUS
        each = sharded + memory.activations + memory.overhead
        print(
            f"            weights and training state divided by {PUBLISHED_GPUS} GPUs: about "
            f"{each:.1f} GiB each"
        )


def sample_lines(options: TrainOptions, learned: Rows | None, n_images: int) -> list[str]:
    """One encoded sample, what is learned in 【 】, by the model's tokenizer or else the toy's."""
    name = options.model or options.language_model or ""
    try:
        folder, whose = model_folder(name), "the model's tokenizer"
    except MissingError:
        folder, whose = TOY_QWEN2, f"the toy's tokenizer: that of {name} is not on disk"
    tokenizer: Any = load_tokenizer(folder)
    prepare_tokenizer(tokenizer)
    row = learned[0] if learned is not None else EXAMPLE_ROW
    sample = encode(row, tokenizer, named_template(options.template), n_images)
    n_learned = sum(label >= 0 for label in sample["labels"])
    return [
        f"sample:     {show_labels(sample, tokenizer)!r}",
        f"            ({row_name(row, 0)}, {len(sample['input_ids'])} tokens, {n_learned} learned, "
        f"in 【 】; by {whose})",
    ]
