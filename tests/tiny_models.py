"""Tiny random model folders of every family that is trained here, in the Hub layout, offline.

`tiny_folder(kind, path)` writes weights, tokenizer with chat template, image processor; equal seeds
give equal folders. The tokenizers have one token a byte, the chat templates are the published ones
cut down to text and pictures. Weights are large, so that each picture and word changes the answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

KINDS = ("llava", "llava_siglip", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "minicpmv4_6")
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


# Qwen/Qwen3-VL-8B-Instruct: no default system text. Behind it what its Thinking folder has more: a
# thought is opened in front of each answer, and written around the last finished one alone.
QWEN3_VL_TEMPLATE = (
    "{% macro shown(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% for item in content %}{% if 'image' in item or item.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in item %}{{ item.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endmacro %}{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' }}THOUGHT{{ shown(message.content) }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\nOPEN{% endif %}"
)
EMPTY_THOUGHT = (
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
INSTRUCT_TEMPLATE = QWEN3_VL_TEMPLATE.replace("THOUGHT", "").replace("OPEN", "")
THINKING_TEMPLATE = QWEN3_VL_TEMPLATE.replace("THOUGHT", EMPTY_THOUGHT).replace(
    "OPEN", "{{ '<think>\n' }}"
)
# openbmb/MiniCPM-V-4.6: parts are joined by line breaks, a turn's text is stripped, the prompt has
# an empty thought in it
MINICPM_TEMPLATE = (
    "{% macro shown(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% set ns = namespace(parts=[]) %}{% for item in content %}"
    "{% if 'image' in item or item.type == 'image' %}"
    "{% set ns.parts = ns.parts + ['<|image_pad|>'] %}"
    "{% else %}{% set ns.parts = ns.parts + [item.text] %}{% endif %}{% endfor %}"
    "{{ ns.parts | join('\n') }}{% endif %}{% endmacro %}{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' }}" + EMPTY_THOUGHT
    + "{{ shown(message.content) | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)  # fmt: skip


def tiny_folder(kind: str, path: Path, seed: int = 0) -> Path:
    """Write the model folder of a kind (`KINDS`) at `path`, which is made, and return it."""
    if kind.startswith("llava"):
        return write_llava(path, "siglip" if kind == "llava_siglip" else "clip", seed)
    if kind == "minicpmv4_6":
        return write_minicpm(path, seed)
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
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL: 56 x 56 (64 x 64) pixels are 4 image tokens."""
    import transformers

    tokenizer = vision_tokenizer(VISION_TOKENS)
    tokenizer.chat_template = INSTRUCT_TEMPLATE if kind == "qwen3_vl" else QWEN2_VL_TEMPLATE
    start, end, image, video = tokenizer.convert_tokens_to_ids(VISION_TOKENS)
    vision = {
        "qwen2_vl": {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "patch_size": 14},
        "qwen2_5_vl": {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64,
                       "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]},
        "qwen3_vl": {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64,
                     "patch_size": 16, "num_position_embeddings": 36,
                     "deepstack_visual_indexes": [0, 1]},
    }[kind]  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
        "max_position_embeddings": 1024, "bos_token_id": None, "eos_token_id": 2,
    }  # fmt: skip
    if kind == "qwen3_vl":
        text |= {"head_dim": 16}
        rope |= {"mrope_interleaved": True}
    config = transformers.AutoConfig.for_model(
        kind, text_config={**text, "rope_parameters": rope},
        vision_config={"depth": 2, "num_heads": 2, **vision},
        image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end, tie_word_embeddings=False,
    )  # fmt: skip
    save_model(folder, config, seed)
    tokenizer.save_pretrained(folder)
    side = 4 * vision["patch_size"]
    transformers.Qwen2VLImageProcessorPil(
        min_pixels=side**2, max_pixels=4 * side**2, patch_size=vision["patch_size"]
    ).save_pretrained(folder)
    return folder


def write_minicpm(folder: Path, seed: int = 0) -> Path:
    """MiniCPM-V 4.6 with two of three layers of linear attention: 64 x 64 pixels are 4 image
    tokens, larger pictures up to four slices more."""
    import transformers
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import (
        MiniCPMV4_6ImageProcessorPil,
    )

    names = {
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
        "image_start_token": "<image>", "image_end_token": "</image>",
        "slice_start_token": "<slice>", "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
    }  # fmt: skip
    tokenizer = vision_tokenizer(list(names.values()), names)
    tokenizer.chat_template = MINICPM_TEMPLATE
    config = transformers.AutoConfig.for_model(
        "minicpmv4_6",
        text_config={
            "model_type": "qwen3_5_text", "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 16, "vocab_size": 320, "max_position_embeddings": 1024,
            "bos_token_id": None, "eos_token_id": 2,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
            "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                "partial_rotary_factor": 0.5},
        },
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                       "num_attention_heads": 2, "image_size": 128, "patch_size": 8},
        insert_layer_id=0, image_size=64, tie_word_embeddings=False,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
    )  # fmt: skip
    save_model(folder, config, seed)
    tokenizer.save_pretrained(folder)
    MiniCPMV4_6ImageProcessorPil(
        scale_resolution=64, patch_size=8, max_slice_nums=4
    ).save_pretrained(folder)
    return folder


def vision_tokenizer(specials: list[str], named: dict[str, str] | None = None) -> Any:
    """Qwen's with more special tokens; `named` become attributes, kept in the tokenizer's file."""
    from transformers import PreTrainedTokenizerFast

    from tests.conftest import byte_tokenizer

    first = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer([*first, *specials]), eos_token="<|im_end|>",
        pad_token="<|endoftext|>", extra_special_tokens=named or {},
    )  # fmt: skip
    tokenizer.add_tokens(["<think>", "</think>"])  # words, not special, as in the published ones
    return tokenizer


def save_model(folder: Path, config: Any, seed: int) -> None:
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.data.normal_(std=0.1 if "visual" in name or "vision" in name else 0.2)
    # what the published folders say: an evaluation must not sample
    model.generation_config.update(do_sample=True, temperature=2.0, repetition_penalty=1.5)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = [2, 0], 0
    model.save_pretrained(folder)


def tiny_adapter(
    base: Path, folder: Path, *, seed: int = 1, lora: bool = True, projector: bool = True,
    layers: str = "q_proj,v_proj", rank: int = 4, **manifest: Any,
) -> Path:  # fmt: skip
    """What train.py leaves in `folder`, with weights that matter: LoRA, projector, manifest."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file

    from qwen_clip_llava_lora.components import PROJECTOR, component_of
    from shared.loading import fingerprint
    from shared.options import write_json

    model = transformers.AutoModelForImageTextToText.from_pretrained(base)
    kind = model.config.model_type
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    if projector:
        trained = {
            name: p.detach() + 0.3 * p.std() * torch.randn(p.shape, generator=generator)
            for name, p in model.named_parameters()
            if component_of(kind, name) == PROJECTOR and p.dim() > 1
        }
        save_file(trained, folder / "projector.safetensors")
    if lora:
        targets = rf"model\.language_model\..*\.({layers.replace(',', '|')})"
        view = get_peft_model(
            model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
        )
        for name, weight in view.named_parameters():
            if ".lora_" in name:
                weight.data.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        view.save_pretrained(folder)
    write_json(folder / "manifest.json", {
        "base_model": str(base), "base_fingerprint": fingerprint(base), "family": kind,
        "parts": {"model": str(base)}, "preset": "course" if lora else "align", "seed": seed,
        "train_type": "lora" if lora else "projector", "synthetic": True,
    } | manifest)  # fmt: skip
    return folder


def tiny_blip(kind: str, folder: Path, seed: int = 0) -> Path:
    """BLIP of kind caption, vqa or matching: 32 pixels are 17 image tokens, words of two layers.

    The vocabulary is BERT's in small: letters as word pieces, [DEC] and [ENC] last.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = [
        *["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        *"abcdefghijklmnopqrstuvwxyz0123456789?'-,",
    ]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    words += [
        "a",
        "picture",
        "of",
        "the",
        "red",
        "blue",
        "star",
        "square",
        "two",
        "is",
        "there",
        "what",
        "color",
        "##s",
    ]
    ids = {word: number for number, word in enumerate(dict.fromkeys([*words, "[DEC]", "[ENC]"]))}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(t, ids[t]) for t in ("[CLS]", "[SEP]")]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_max_length=64,
        extra_special_tokens=["[DEC]", "[ENC]"],
    )  # fmt: skip
    text = {
        "vocab_size": len(ids), "hidden_size": 48, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
        "bos_token_id": ids["[DEC]"], "eos_token_id": ids["[SEP]"], "sep_token_id": ids["[SEP]"],
        "pad_token_id": ids["[PAD]"],
    }  # fmt: skip
    vision = {
        # the answer decoder attends to the question's states by layers made for the tower's width
        "hidden_size": 48 if kind == "vqa" else 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "initializer_range": 0.2,
    }  # fmt: skip
    config = transformers.BlipConfig(
        text_config=text, vision_config=vision, image_text_hidden_size=16, projection_dim=16
    )
    torch.manual_seed(seed)
    name = {
        "caption": "BlipForConditionalGeneration",
        "vqa": "BlipForQuestionAnswering",
        "matching": "BlipForImageTextRetrieval",
    }[kind]
    model = getattr(transformers, name)(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(std=0.2)
    model.save_pretrained(folder)
    transformers.BlipProcessor(
        transformers.BlipImageProcessorPil(size={"height": 32, "width": 32}), fast
    ).save_pretrained(folder)
    return folder


def tiny_blip2(folder: Path, seed: int = 0) -> Path:
    """BLIP-2's first stage (ITC, ITM): `tiny_blip`'s tokenizer and pictures, 4 queries."""
    import torch
    import transformers

    tiny_blip("matching", folder)
    vocabulary = transformers.AutoTokenizer.from_pretrained(folder)
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    qformer = {
        "vocab_size": len(vocabulary), "hidden_size": 48, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
        "encoder_hidden_size": 32, "cross_attention_frequency": 2, "pad_token_id": 0,
        "use_qformer_text_input": True,
    }  # fmt: skip
    config = transformers.Blip2Config(
        vision_config=vision, qformer_config=qformer, num_query_tokens=4, image_text_hidden_size=16
    )
    torch.manual_seed(seed)
    model = transformers.Blip2ForImageTextRetrieval(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder
