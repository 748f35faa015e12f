"""What a training would do, before any weight is read: train.py --dry_run prints it.

Data, configuration and tokenizer are read, weights never: what trains is opened on transformers'
own model without memory (meta device), by the code that opens the real one. Memory is computed from
sizes, never measured.

    python lavis_apps/train.py --toy --task vqa --dry_run
    python lavis_apps/train.py --task retrieval --layer_decay 0.9 --dry_run

Reads the data, one picture and a model's small files; writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lavis_apps.blip import KINDS, Blip, blip_kind, read_image_settings
from lavis_apps.train_settings import TrainOptions
from lavis_apps.training_data import Collator, SeenSamples, TrainingData
from lavis_apps.training_model import (
    Loaded,
    check_family,
    layer_rates,
    open_weights,
    trained_map,
)
from shared.conversation_data import show_labels
from shared.loading import MemoryEstimate, model_folder, pick_dtype
from shared.options import MissingError, portable_path
from shared.training_flags import steps_of_epochs

if TYPE_CHECKING:
    from transformers import TrainingArguments

GIB = 1024**3
ADAM_BYTES = 16  # a trained weight in fp32, its gradient, two moments
TEXT_TOKENS = 35  # of a text where memory is counted


def print_training_plan(
    options: TrainOptions, training: TrainingArguments, data: TrainingData | None
) -> None:
    """Data, steps, what trains, one sample with its learned tokens, memory. Raises UserError."""
    print(f"run:        {portable_path(training.output_dir)}")
    print(f"task:       {options.task}, --tuning {options.tuning}, --augment {options.augment}")
    for line in data_lines(options, training, data):
        print(line)
    try:
        loaded = without_weights(options)
    except MissingError as error:
        print(f"model:      {error}")
        return
    print(f"model:      {portable_path(options.model or '')} ({type(loaded.model).__name__})")
    for component, (total, trained) in trained_map(loaded.model).items():
        print(f"  {component}: {total:,} weights, {trained:,} trained")
    rates = layer_rates(loaded.model, training.learning_rate, options.layer_decay)
    if rates:
        low, high = min(rates.values()), max(rates.values())
        print(f"learning rate of the tower's layers: {low:.2g} to {high:.2g}")
    if data is not None:
        for line in sample_lines(options, loaded, data):
            print(line)
    dtype = pick_dtype(options.dtype, training.device)
    estimate = memory(options, loaded, training.per_device_train_batch_size, dtype)
    print(f"memory:     {estimate}")


def data_lines(
    options: TrainOptions, training: TrainingArguments, data: TrainingData | None
) -> list[str]:
    if data is None:
        return [
            f"data:       not on this machine: {', '.join(options.data_root or ['none given'])}"
        ]
    n = len(data.samples)
    steps = training.max_steps if training.max_steps > 0 else steps_of_epochs(training, n)
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    lines = [
        f"data:       {', '.join(data.names)}: {n:,} samples, {len(data.problems)} bad rows",
        f"validation: {data.held_out_name or 'none'}, {len(data.held_out):,} samples",
        f"steps:      {steps:,} of {batch * training.world_size} pictures",
    ]
    if options.data_weights:
        shares = [w / sum(options.data_weights) for w in options.data_weights]
        lines.append(f"shares:     {', '.join(f'{share:.0%}' for share in shares)}")
    return lines


def without_weights(options: TrainOptions) -> Loaded:
    """The model on the meta device, opened as for training. Raises MissingError, UserError."""
    import transformers

    folder = model_folder(options.model or "", options.revision)
    family = check_family(folder, options.task)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    kind = blip_kind(folder)
    name = next((n for n, known in KINDS.items() if known == kind), "CLIPModel")
    with torch.device("meta"):
        model = getattr(transformers, name)(config)
    view = open_weights(model, options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if family == "blip":
        settings = read_image_settings(folder, config.vision_config.image_size)
        blip = Blip(model, tokenizer, str(kind), folder, synthetic=False, **settings)
        return Loaded(blip, view, folder)
    from lavis_apps.clip import Clip

    processor = transformers.AutoImageProcessor.from_pretrained(
        folder, local_files_only=True, backend="pil"
    )
    return Loaded(Clip(model, tokenizer, processor, folder, synthetic=False), view, folder)


def sample_lines(options: TrainOptions, loaded: Loaded, data: TrainingData) -> list[str]:
    """Shapes of a batch of two, and the first sample's texts, what is learned in 【 】."""
    collator = Collator(options, loaded.inputs())
    seen = SeenSamples(data.samples[:2], 0)
    batch = collator([seen[i] for i in range(len(seen))])
    if not batch["sample_ids"]:
        return [f"sample:     cannot be used: {batch['skipped'][0]}"]
    shapes = {name: tuple(t.shape) for name, t in batch.items() if torch.is_tensor(t)}
    lines = ["batch:      " + ", ".join(f"{name} {shape}" for name, shape in shapes.items())]
    lines.append(f"sample:     {batch['sample_ids'][0]}, {portable_path(data.samples[0].image)}")
    tokenizer = loaded.asked.tokenizer

    def shown(ids: Any, labels: Any, mask: Any, first: str) -> str:
        n = int(mask.sum())
        row = {"input_ids": ids[1:n].tolist(), "labels": labels[1:n].tolist()}
        return f"  {first} {show_labels(row, tokenizer, image_token_id=-1)}"

    if options.task in ("vqa", "retrieval"):
        ids = batch["input_ids"][0][: int(batch["attention_mask"][0].sum())]
        question = options.task == "vqa"  # published tokenizers don't list [ENC]
        lines.append(
            "  [ENC] " * question + "  " * (not question) + tokenizer.decode(ids[question:])
        )
    if options.task == "caption":
        parts = (batch[name][0] for name in ("input_ids", "labels", "attention_mask"))
        lines.append(shown(*parts, first="[DEC]"))
    if options.task == "vqa":
        for row in (batch["question_of"] == 0).nonzero()[:, 0].tolist():
            names = ("answer_input_ids", "answer_labels", "answer_attention_mask")
            answer = shown(*(batch[name][row] for name in names), first="[DEC]")
            lines.append(f"{answer} (weight {float(batch['answer_weights'][row]):.1f})")
    if options.task == "classification":
        label = int(batch["labels"][0])
        lines.append(f"  class 【{data.classes[label]}】 of {len(data.classes)}")
    return lines


def memory(
    options: TrainOptions, loaded: Loaded, batch_size: int, dtype: torch.dtype
) -> MemoryEstimate:
    """Weights, training state, and what the layers keep for the backward pass: 34 D + 5 heads x
    length values of two bytes a token and layer (arXiv 2205.05198, section 4.1)."""
    counts = trained_map(loaded.model).values()
    total, trained = (sum(numbers) for numbers in zip(*counts, strict=True))
    config = loaded.model.config
    vision, text = config.vision_config, config.text_config
    n_patches = (vision.image_size // vision.patch_size) ** 2 + 1
    texts = batch_size * options.texts_per_picture
    if options.task == "retrieval":
        texts *= 4  # each text alone, with its picture, and with about two false ones

    def kept(part: Any, rows: int, length: int) -> float:
        width, heads = part.hidden_size, part.num_attention_heads
        return part.num_hidden_layers * rows * length * (34 * width + 5 * heads * length)

    values = kept(text, texts, min(TEXT_TOKENS, text.max_position_embeddings))
    if options.task != "classification" and isinstance(loaded.asked, Blip):  # cross-attention
        values += text.num_hidden_layers * texts * n_patches * 4 * text.hidden_size
    if options.tuning != "frozen_tower":
        values += kept(vision, batch_size, n_patches)
    size = 2 if dtype != torch.float32 else 4
    return MemoryEstimate(
        weights=(total - trained) * size / GIB,
        trainable=trained * ADAM_BYTES / GIB,
        activations=values * size / 2 / GIB,
    )
