"""The steps of `convert.py`: tokenizer and image processor, room for `<image>`, writing, proof."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from llava_repro.hub_layout import (
    EMBEDDING,
    IN_TRANSFORMERS,
    hub_config,
    hub_tensors,
)
from llava_repro.layouts import Checkpoint, open_checkpoint
from llava_repro.model import Llava, n_image_tokens
from llava_repro.templates import TEMPLATES
from shared.conversations import IMAGE_TAG, chat_template
from shared.llava_parts import (
    load_image_processor,
    load_tokenizer,
    prepare_tokenizer,
    save_processor,
)
from shared.options import UserError
from shared.weight_files import ShardWriter, grown

ROWS_MULTIPLE = 64  # a grown vocabulary ends at a multiple of this, as llava-hf's 32,064 does
# Largest difference of logits, as a share of the largest logit. The weights are the same to the
# bit; a grown vocabulary changes the shape, and with it the order of sums, of one product.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def read_tokenizer(checkpoint: Checkpoint, template: str | None) -> Any:
    """The language model's tokenizer with `<image>`, a padding token and a chat template."""
    tokenizer = load_tokenizer(checkpoint.text_folder)
    for line in prepare_tokenizer(tokenizer):
        print(f"tokenizer:  {line}")
    if template is not None:
        if template not in TEMPLATES:
            raise UserError(f"--template {template}: not one of {', '.join(TEMPLATES)}")
        tokenizer.chat_template = chat_template(TEMPLATES[template])
    if not tokenizer.chat_template:
        raise UserError(
            f"{checkpoint.text_folder}: its tokenizer has no chat template; name the prompt that "
            f"the model was trained with: --template {', '.join(TEMPLATES)} (LLaVA v1.5: vicuna_v1)"
        )
    return tokenizer


def read_image_processor(checkpoint: Checkpoint) -> Any:
    """Of the checkpoint itself, else of its tower; CLIP's from its size, as all of them are alike.

    Raises UserError when none can be had.
    """
    from transformers import CLIPImageProcessor  # after quiet_libraries: it would say a lot

    names = ("preprocessor_config.json", "processor_config.json")
    for folder in (checkpoint.folder, checkpoint.vision_folder, checkpoint.text_folder):
        if folder is not None and any((folder / name).is_file() for name in names):
            return load_image_processor(folder)
    vision = checkpoint.config.vision_config
    if vision.model_type != "clip_vision_model":
        raise UserError(f"{checkpoint.folder}: no preprocessor_config.json; give --vision_tower")
    size = vision.image_size
    return CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )


def with_image_token(checkpoint: Checkpoint, tokenizer: Any) -> Checkpoint:
    """`<image>` by the tokenizer's id, and rows for it in the embeddings where there are too few.

    transformers looks the placeholder up before it replaces it, so it needs a row; the new rows are
    the mean of the others and are never read.
    """
    config = checkpoint.config
    config.image_token_index = tokenizer.convert_tokens_to_ids(IMAGE_TAG)
    rows = config.text_config.vocab_size
    if len(tokenizer) <= rows:
        return checkpoint
    wanted = -(-len(tokenizer) // ROWS_MULTIPLE) * ROWS_MULTIPLE
    config.text_config.vocab_size = wanted
    weights = dict(checkpoint.weights)
    for name in (EMBEDDING, "language_model.lm_head.weight"):
        if name in weights:
            weights[name] = grown(weights[name], wanted)
    print(f"vocabulary: {rows} rows grow to {wanted}, the new ones are the mean of the others")
    return replace(checkpoint, weights=weights)


def write(
    checkpoint: Checkpoint, tokenizer: Any, image_processor: Any, folder: Path,
    *, dtype: torch.dtype | None, shard_bytes: int,
) -> None:  # fmt: skip
    """config.json, weights (in `dtype` if given), tokenizer, processor, generation settings."""
    writer = ShardWriter(folder, limit=shard_bytes)
    writer.add(hub_tensors(checkpoint.config, checkpoint.weights, dtype))
    writer.finish()
    own = dtype or checkpoint.weights[EMBEDDING].read().dtype
    config = hub_config(checkpoint.config, own)
    config.save_pretrained(folder)
    save_processor(folder, config, tokenizer, image_processor)
    if (checkpoint.text_folder / "generation_config.json").is_file():
        shutil.copy(checkpoint.text_folder / "generation_config.json", folder)
    else:
        GenerationConfig.from_model_config(config.text_config).save_pretrained(folder)


def compare(source: Mapping[str, Any], written: Path, device: torch.device) -> float:
    """Largest difference of the logits of both for one random input, as a share of the largest.

    `source` are the arguments of `Llava.from_pretrained`. The result is loaded by transformers
    itself, which must find every weight and no other; an mlpNx_gelu, which it does not know, by
    this repository. Raises UserError when they differ.
    """
    config = open_checkpoint(written).config
    dtype = torch.float32 if config.dtype in (torch.float32, "float32") else torch.bfloat16
    model = Llava.from_pretrained(**source, dtype=dtype, device=device)
    model.config.image_token_index = config.image_token_index
    inputs = random_input(config, model.config.text_config.vocab_size)
    before = logits(model, inputs, device)
    del model
    if config.projector_type in IN_TRANSFORMERS:
        result, found = LlavaForConditionalGeneration.from_pretrained(
            written, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        wrong = found["missing_keys"] | found["unexpected_keys"]
        if wrong:
            raise UserError(f"{written}: transformers misses or does not know {sorted(wrong)[:8]}")
        result = result.to(device).eval()
    else:
        result = Llava.from_pretrained(written, dtype=dtype, device=device)
    after = logits(result, inputs, device)[..., : before.shape[-1]]
    difference = float((before - after).abs().max() / before.abs().max())
    if not difference <= TOLERANCE[dtype]:
        raise UserError(
            f"the logits of {source['folder']} and of the result differ by {difference:.1e} of the "
            f"largest one (allowed {TOLERANCE[dtype]:.0e}); nothing was written"
        )
    return difference


def random_input(config: LlavaConfig, vocabulary: int) -> dict[str, Tensor]:
    """One row of random words, none of them `<image>`, around one random picture."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, vocabulary, (1, 24), generator=generator)
    words[words == config.image_token_index] = (config.image_token_index + 1) % vocabulary
    picture = torch.full((1, n_image_tokens(config)), config.image_token_index)
    size = config.vision_config.image_size
    return {
        "input_ids": torch.cat([words[:, :8], picture, words[:, 8:]], dim=1),
        "pixel_values": torch.randn(1, 3, size, size, generator=generator),
    }


def logits(model: Any, inputs: Mapping[str, Tensor], device: Any) -> Tensor:
    with torch.no_grad():
        output = model(
            input_ids=inputs["input_ids"].to(device),
            pixel_values=inputs["pixel_values"].to(device, model.dtype),
        )
    return output.logits.float().cpu()
