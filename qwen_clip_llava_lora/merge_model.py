"""A language model and a vision tower -> a LLaVA folder that transformers and vLLM load.

Any Qwen (1.5, 2, 2.5, 3), Llama or other model of AutoModelForCausalLM; CLIP, SigLIP or
Chinese-CLIP as tower. The weights are copied one shard at a time, in the dtype they are stored in;
between them stands a projector (two layers and a GELU) drawn from --seed, or an earlier one. The
tokenizer gets `<image>` and, where it needs one, a padding token that is not the end token; the
embeddings grow to a multiple of --pad_to_multiple_of where tokens need rows. At the end the folder
is loaded and held against its sources (`merge_check.py`); it appears whole and checked, or not at
all. Writing needs the memory of a shard and its largest tensors, the check that of one whole model.

    python qwen_clip_llava_lora/merge_model.py --language_model Qwen/Qwen1.5-4B-Chat \\
        --vision_tower openai/clip-vit-large-patch14-336 --output_dir outputs/qwen_clip
    python qwen_clip_llava_lora/merge_model.py --toy
    python qwen_clip_llava_lora/merge_model.py --language_model Qwen/Qwen2.5-0.5B-Instruct \\
        --vision_tower openai/clip-vit-large-patch14-336 --dry_run   (no weights needed)

Reads the two folders; writes config.json, generation_config.json, safetensors, tokenizer,
processor and manifest.json to --output_dir.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen_clip_llava_lora.merge_settings import MergeOptions, toy_defaults
from shared.options import (
    UserError,
    differences,
    environment,
    guarded,
    manifest_value,
    parse_options,
    portable_path,
    read_json,
    write_json,
)

if TYPE_CHECKING:
    from transformers import LlavaConfig

    from qwen_clip_llava_lora.merging import Parts


def main(options: MergeOptions) -> None:
    from qwen_clip_llava_lora import merging
    from shared.llava_parts import load_image_processor
    from shared.loading import quiet_libraries

    quiet_libraries()
    if options.language_model is None or options.vision_tower is None:
        raise UserError("give --language_model and --vision_tower, or --toy")
    parts = merging.read_parts(options.language_model, options.vision_tower)
    tokenizer = image_processor = None
    if parts.text_folder is not None:
        tokenizer, done = merging.ready_tokenizer(parts.text_folder, options.chat_template)
        print("\n".join(f"tokenizer:  {line}" for line in done or ["as it is"]))
    if parts.vision_folder is not None:
        image_processor = load_image_processor(parts.vision_folder)
        merging.check_image_size(image_processor, parts.vision, parts.vision_folder)
    config = merging.plan_config(
        parts, tokenizer, options.vision_feature_layer, options.pad_to_multiple_of
    )
    merging.check_head(parts.text)
    print_plan(options, parts, config)
    if options.dry_run:
        return
    if options.output_dir is None:
        raise UserError("give --output_dir, the new folder")
    content = manifest(options)
    if is_there(Path(options.output_dir), content):
        print(f"{portable_path(options.output_dir)} is already there and up to date")
        return
    write(options, parts, config, tokenizer, image_processor, content)


def manifest(options: MergeOptions) -> dict[str, Any]:
    """What the folder is made of; two merges with equal manifests are the same model."""
    from qwen_clip_llava_lora.merging import file_hash, find_projector
    from shared.loading import fingerprint, model_folder

    folders = {"language_model": options.language_model, "vision_tower": options.vision_tower}
    local = {name: model_folder(given or "") for name, given in folders.items()}  # or MissingError
    projector = None if options.projector is None else find_projector(options.projector)
    beside = "" if projector is None else projector.parent
    return {
        "synthetic": any(bool(manifest_value(f, "synthetic")) for f in (*local.values(), beside)),
        "parts": {name: portable_path(given or "") for name, given in folders.items()},
        "part_fingerprints": {name: fingerprint(folder) for name, folder in local.items()},
        "projector": "fresh" if projector is None else portable_path(projector),
        "projector_hash": file_hash(projector),
        "seed": options.seed,
        "vision_feature_layer": options.vision_feature_layer,
        "pad_to_multiple_of": options.pad_to_multiple_of,
        "dtype": options.dtype,
        "chat_template_hash": file_hash(options.chat_template),
    }


def is_there(folder: Path, content: dict[str, Any]) -> bool:
    """Whether this very merge is in the folder. Raises UserError for anything else in it."""
    from shared.weight_files import read_folder

    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / "manifest.json").is_file() or not (folder / "config.json").is_file():
        raise UserError(f"--output_dir {folder}: exists and is no merged model; give a new folder")
    there = {k: v for k, v in read_json(folder / "manifest.json").items() if k in content}
    # the same files under another path are the same parts
    differing = differences(there | {"parts": content["parts"]}, content)
    if differing:
        raise UserError(
            f"--output_dir {folder} holds another merge ({'; '.join(differing)}). Give another "
            "folder, or delete that one."
        )
    read_folder(folder)  # says what is missing
    return True


def write(
    options: MergeOptions, parts: Parts, config: LlavaConfig, tokenizer: Any,
    image_processor: Any, content: dict[str, Any],
) -> None:  # fmt: skip
    import torch

    from qwen_clip_llava_lora import merging
    from qwen_clip_llava_lora.merge_check import check_merged
    from shared.llava_parts import save_processor, write_whole
    from shared.loading import pick_device
    from shared.weight_files import Weight

    assert parts.text_folder is not None
    device = pick_device(options.device)
    weights = merging.gather(config, parts)
    dtype = None if options.dtype == "keep" else getattr(torch, options.dtype)
    own = {n: w for n, w in weights.items() if n.startswith("language_model.")}
    loaded_as = dtype or merging.stored_dtype(own)
    projector = (
        merging.fresh_projector(config, options.seed)
        if options.projector is None
        else merging.read_projector(config, merging.find_projector(options.projector))
    )
    for name, tensor in projector.items():
        weights[name] = Weight(tuple(tensor.shape), partial(tensor.to, loaded_as))
    generation = merging.generation_settings(parts.text_folder, parts.text, tokenizer)

    def fill(staging: Path) -> None:
        merging.write_weights(staging, weights, dtype, int(options.shard_gb * 1e9))
        merging.write_settings(staging, config, generation, loaded_as)
        save_processor(staging, config, tokenizer, image_processor)
        write_json(staging / "manifest.json", content | {"environment": environment()})
        if not options.no_check:
            for line in check_merged(staging, parts, loaded_as, device):
                print(f"check:      {line}")

    write_whole(Path(options.output_dir or ""), fill)
    print(f"written to {portable_path(options.output_dir or '')}")


def print_plan(options: MergeOptions, parts: Parts, config: LlavaConfig) -> None:
    from qwen_clip_llava_lora.merging import part_sizes, wanted_weights
    from shared.vision_families import llava_image_tokens

    given = {"language model": (options.language_model, parts.text, parts.text_folder),
             "vision tower": (options.vision_tower, parts.vision, parts.vision_folder)}  # fmt: skip
    for name, (path, part, folder) in given.items():
        where = "on disk" if folder is not None else "not on disk: published numbers"
        print(f"{name + ':':<16}{portable_path(path or '')} ({part.model_type}, {where})")
    sizes = part_sizes(wanted_weights(config))
    for name, count in {**sizes, "together": sum(sizes.values())}.items():
        print(f"  {name:<16}{count:>15,} parameters")
    rows, old = config.text_config.vocab_size, parts.text.vocab_size
    print(
        f"picture:        {llava_image_tokens(config)} tokens, hidden state "
        f"{config.vision_feature_layer}, strategy {config.vision_feature_select_strategy}"
    )
    print(
        f"embeddings:     {old:,} rows"
        + (f", grow to {rows:,} (the new ones are the mean)" if rows > old else ", enough for all")
        + (", tied to the head" if config.tie_word_embeddings else "; the head likewise")
    )
    if parts.text_folder is None:
        print("tokenizer:      not on disk; <image> is taken to need no row of its own")
    if config.vision_config.model_type == "chinese_clip_vision_model":
        print("note:           vLLM has no Chinese-CLIP tower; transformers loads this LLaVA")


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                MergeOptions,
                description=__doc__.split("\n")[0],
                toy_defaults=toy_defaults(),
            )
        )
    )
