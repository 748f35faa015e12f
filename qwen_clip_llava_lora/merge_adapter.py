"""A trained adapter merged into its base: one whole model folder that needs no PEFT.

LoRA (rsLoRA and DoRA too) and what else was trained go into the base's weights one shard at a time,
for every family that train.py trains. Then base with adapter and merged folder answer the same
questions about the same pictures: the largest difference of their logits is printed, and above a
bound nothing is written. A quantised base is refused: W + BA would be rounded to 4 or 8 bits. The
folder loads in plain transformers and in vLLM as its base does.

    python qwen_clip_llava_lora/merge_adapter.py --adapter RUN/adapter --output_dir merged
    python qwen_clip_llava_lora/merge_adapter.py --toy        (after train.py --toy)

Reads the adapter folder and its base; writes the base's files with merged weights, and
manifest.json, to --output_dir.
"""

from __future__ import annotations

from pathlib import Path

from qwen_clip_llava_lora.merge_settings import MergeAdapterOptions, toy_adapter_defaults
from shared.options import (
    MissingError,
    UserError,
    environment,
    guarded,
    parse_options,
    portable_path,
    write_json,
)


def main(options: MergeAdapterOptions) -> None:
    import torch
    from transformers import AutoConfig

    from qwen_clip_llava_lora import adapter_merging, merging
    from shared.llava_parts import write_whole
    from shared.loading import model_folder, quiet_libraries

    quiet_libraries()
    if options.adapter is None:
        raise UserError("give --adapter, the adapter/ folder of a run, or --toy")
    folder = Path(options.adapter)
    if not (folder / "manifest.json").is_file() and (folder / "adapter").is_dir():
        folder = folder / "adapter"
    if not folder.is_dir():
        raise MissingError(
            f"{portable_path(folder)} is not there yet; qwen_clip_llava_lora/train.py makes one "
            "(with --toy the toy's)"
        )
    adapter = adapter_merging.read_adapter(folder)
    base_name = options.model or adapter.manifest.get("base_model")
    if base_name is None:
        raise UserError(f"{folder}: nothing says which model it was trained on: give --model")
    base = model_folder(from_root(base_name))
    for note in adapter_merging.check_belongs(adapter, base):
        print(f"note:       {note}")
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    dtype = None if options.dtype == "keep" else getattr(torch, options.dtype)
    weights = adapter_merging.merged_weights(adapter, base, config, dtype)
    print(f"base:       {portable_path(base)} ({config.model_type})")
    print(
        f"adapter:    {portable_path(folder)}: {len(adapter.layers)} layers with LoRA, "
        f"{len(adapter.replaced)} other parameters"
    )
    if options.dry_run:
        return
    if options.output_dir is None:
        raise UserError("give --output_dir, the new folder")
    output = Path(options.output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output_dir {output}: exists and is not empty; choose a new folder")
    content = adapter_merging.manifest(
        adapter, base, portable_path(base_name), portable_path(folder)
    )

    def fill(staging: Path) -> None:
        merging.write_weights(staging, weights, dtype, int(options.shard_gb * 1e9))
        adapter_merging.copy_settings(staging, base, adapter, dtype)
        if not options.no_check:
            found = adapter_merging.compare(
                base,
                folder,
                staging,
                dtype or merging.stored_dtype(weights),
                options.device,
                options.max_difference,
            )
            content["largest_logit_difference"] = found.difference
            print(
                f"check:      largest logit difference {found.difference:.3g}, {found.share:.2g} "
                f"of the largest logit (allowed: {found.allowed:g}); first tokens "
                + ("the same" if found.same_tokens else "NOT all the same")
            )
        write_json(staging / "manifest.json", content | {"environment": environment()})

    write_whole(output, fill)
    print(f"written to {portable_path(output)}")


def from_root(name: str) -> str:
    """A manifest's path is relative to the repository, wherever the script is started."""
    from shared.options import REPO_ROOT

    at_root = REPO_ROOT / name
    return str(at_root) if not Path(name).exists() and at_root.is_dir() else name


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                MergeAdapterOptions,
                description=__doc__.split("\n")[0],
                toy_defaults=toy_adapter_defaults(),
            )
        )
    )
