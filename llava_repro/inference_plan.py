"""What --dry_run prints of a script that asks a LLaVA: shapes, one prompt, memory; no weights.

Used by predict.py, chat.py and demo.py. Reads config.json and the tokenizer where they are, the
published numbers of architectures.json where they are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llava_repro.asking import AskingOptions, Decoding
from llava_repro.settings import ARCHITECTURES, TOY_LLAVA, TOY_QWEN2, template_name
from shared.conversations import prompt_ids
from shared.loading import GIB, MemoryEstimate, check_adapter_folder, model_folder, weight_bytes
from shared.options import MissingError, portable_path

if TYPE_CHECKING:
    from transformers import LlavaConfig

# Published LLaVAs as vision tower and language model of architectures.json
PUBLISHED = {
    f"llava-hf/llava-1.5-{size}-hf": (
        "openai/clip-vit-large-patch14-336",
        f"lmsys/vicuna-{size}-v1.5",
    )
    for size in ("7b", "13b")
}


def read_config(options: AskingOptions) -> tuple[LlavaConfig, str, str]:
    """(configuration, projector type, where it comes from). Raises MissingError."""
    from llava_repro.layouts import open_checkpoint
    from shared.llava_parts import llava_config, part_config, vision_part

    try:
        config = open_checkpoint(model_folder(options.model, options.revision)).config
        return config, config.projector_type, f"{portable_path(options.model)} (on disk)"
    except MissingError:
        if options.model not in PUBLISHED:
            raise
    vision, text = (part_config(part, ARCHITECTURES)[0] for part in PUBLISHED[options.model])
    config = llava_config(
        vision_part(vision), text, image_token_index=text.vocab_size - 1, vision_feature_layer=-2
    )
    return config, "mlp2x_gelu", f"{options.model} (not on disk: published numbers)"


def inference_plan(
    options: AskingOptions,
    decoding: Decoding,
    text: str = "<image>\nWhat is in the picture?",
    batch: int = 1,
) -> list[str]:
    """Lines about the model, one prompt (the human turn `text`, with an `<image>` a picture) and
    the memory. Raises UserError."""
    from llava_repro.model import n_image_tokens
    from llava_repro.planning import meta_model

    config, projector_type, source = read_config(options)
    tokens, size = n_image_tokens(config), config.vision_config.image_size
    n_prompt, prompt, whose = shown_prompt(options, text, tokens)
    model = meta_model(config, projector_type)
    dtype = torch.bfloat16 if options.dtype == "auto" else getattr(torch, options.dtype)
    sizes = config.text_config
    head = getattr(sizes, "head_dim", None) or sizes.hidden_size // sizes.num_attention_heads
    cache = 2 * sizes.num_hidden_layers * sizes.num_key_value_heads * head * dtype.itemsize
    language = sum(p.numel() for p in model.language_model.model.parameters())
    counts = {"packed": language, "rest": sum(p.numel() for p in model.parameters()) - language}
    memory = MemoryEstimate(
        weights=weight_bytes(counts, ("packed",), options.quantization, dtype.itemsize) / GIB,
        trainable=0.0,
        activations=batch * decoding.num_beams * (n_prompt + decoding.max_new_tokens) * cache / GIB,
    )
    lines = [
        f"model:    {source}, quantization {options.quantization}",
        f"pictures: (n, 3, {size}, {size}) -> {tokens} image tokens each",
        f"prompt:   {prompt!r}{whose}",
        f"decoding: {decoding}",
        f"memory:   {memory}",
    ]
    if options.adapter:
        parts = check_adapter_folder(Path(options.adapter)).get("parts", {})
        named = ", ".join(f"{name} {part}" for name, part in parts.items()) or "not said"
        lines.append(f"adapter:  {portable_path(options.adapter)}, trained on: {named}")
    return lines


def shown_prompt(options: AskingOptions, text: str, n_image_tokens: int) -> tuple[int, str, str]:
    """Length of the prompt in tokens, the prompt with each picture's tokens counted, and whose
    tokenizer it is by: the model's, else the toy's."""
    from llava_repro.training_data import named_template
    from shared.llava_parts import load_tokenizer, prepare_tokenizer

    name, whose = options.template, ""
    try:
        folder = model_folder(options.model, options.revision)
        name = template_name(name, options.adapter, folder)
    except MissingError:
        folder = next(f for f in (TOY_LLAVA, TOY_QWEN2) if (f / "tokenizer.json").is_file())
        whose = " (by the toy's tokenizer: the model's is not on disk)"
        name = name or "vicuna_v1"  # of the published ones
    tokenizer: Any = load_tokenizer(folder)
    prepare_tokenizer(tokenizer)
    ids = prompt_ids([("human", text)], tokenizer, named_template(name), n_image_tokens)
    written = tokenizer.decode(ids)
    counted = written.replace("<image>" * n_image_tokens, f"<image> x {n_image_tokens}")
    return len(ids), counted, whose
