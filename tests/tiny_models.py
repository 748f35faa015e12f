"""Tiny random model folders of every family that is trained here, in the Hub layout, offline.

`tiny_folder(kind, path)` writes weights, tokenizer with chat template, image processor; equal seeds
give equal folders. The tokenizers have one token a byte, the chat templates are the published ones
cut down to text and pictures. Weights are large, so that each picture and word changes the answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

KINDS = ("llava", "llava_siglip", "qwen2_vl", "qwen2_5_vl")
VISION_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
# Qwen/Qwen2-VL-7B-Instruct, without video and tools: takes a text or a list of parts
QWEN2_VL_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_folder(kind: str, path: Path, seed: int = 0) -> Path:
    """Write the model folder of a kind (`KINDS`) at `path`, which is made, and return it."""
    if kind.startswith("llava"):
        return write_llava(path, "siglip" if kind == "llava_siglip" else "clip", seed)
    return write_qwen_vl(path, kind, seed)


def write_llava(folder: Path, vision: str, seed: int = 0) -> Path:
    """LLaVA of Qwen2 and CLIP or SigLIP: 32 pixels are 16 image tokens."""
    from shared.llava_parts import save_processor
    from tests.conftest import tiny_image_processor, tiny_reference, tiny_tokenizer

    model = tiny_reference(vision, "qwen2", seed=seed)
    model.save_pretrained(folder)
    save_processor(folder, model.config, tiny_tokenizer("qwen2"), tiny_image_processor(vision))
    return folder


def write_qwen_vl(folder: Path, kind: str, seed: int = 0) -> Path:
    """Qwen2-VL or Qwen2.5-VL: 56 pixels are 4 image tokens."""
    import transformers

    from tests.conftest import tiny_tokenizer

    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.add_tokens(VISION_TOKENS, special_tokens=True)
    tokenizer.chat_template = QWEN2_VL_TEMPLATE
    start, end, image, video = tokenizer.convert_tokens_to_ids(VISION_TOKENS)
    vision = {
        "qwen2_vl": {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        "qwen2_5_vl": {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64,
                       "window_size": 56, "fullatt_block_indexes": [1]},
    }[kind]  # fmt: skip
    config = transformers.AutoConfig.for_model(
        kind,
        text_config={
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
            "max_position_embeddings": 1024, "bos_token_id": None, "eos_token_id": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                "mrope_section": [2, 3, 3]},
        },
        vision_config={"depth": 2, "num_heads": 2, "patch_size": 14, **vision},
        image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end, tie_word_embeddings=False,
    )  # fmt: skip
    save_model(folder, config, seed)
    tokenizer.save_pretrained(folder)
    transformers.Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=112 * 112).save_pretrained(
        folder
    )
    return folder


def save_model(folder: Path, config: Any, seed: int) -> None:
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.data.normal_(std=0.1 if "visual" in name else 0.2)
    # what the published folders say: an evaluation must not sample
    model.generation_config.update(do_sample=True, temperature=2.0, repetition_penalty=1.5)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = [2, 0], 0
    model.save_pretrained(folder)
