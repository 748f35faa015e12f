"""Any LLaVA checkpoint layout -> the Hub layout, which plain transformers loads.

Reads transformers' 4.3x, 4.52 and 5 folders and the original repository's full, LoRA and stage-1
folders (`layouts.py` tells them apart by what is in them), writes config.json, safetensors,
tokenizer with `<image>` and a chat template, image processor and processor settings. Weights go
through one shard at a time; a LoRA is merged on the way. Unless `--no_check` says otherwise, both
folders are then loaded, one after the other, and must give the same logits for the same random
input. The output folder appears whole or not at all.

    python llava_repro/convert.py --model llava-v1.5-7b --template vicuna_v1 --output_dir hub/7b
    python llava_repro/convert.py --model llava-v1.5-7b-lora --base vicuna-7b-v1.5 \\
        --vision_tower clip-vit-large-patch14-336 --template vicuna_v1 --output_dir hub/7b-lora
    python llava_repro/convert.py --model data/toy_models/llava --output_dir /tmp/llava   (the toy)
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shared.options import UserError, guarded, parse_options

if TYPE_CHECKING:
    from llava_repro.layouts import Checkpoint


@dataclass
class ConvertOptions:
    """What to convert"""

    model: str = field(metadata={"help": "folder of a LLaVA in any layout"})
    output_dir: str = field(metadata={"help": "new folder in the Hub layout"})
    base: str | None = field(
        default=None, metadata={"help": "language model under a LoRA or stage-1 folder"}
    )
    vision_tower: str | None = field(
        default=None, metadata={"help": "folder of the tower, when it is not inside"}
    )
    template: str | None = field(
        default=None,
        metadata={"help": "named prompt (templates.py) for the tokenizer; none = keep its own"},
    )
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = field(
        default="keep", metadata={"help": "of the written weights"}
    )
    shard_gb: float = field(default=5.0, metadata={"help": "largest size of one weight file"})
    no_check: bool = field(
        default=False,
        metadata={"help": "do not load both and compare their logits on random input"},
    )
    device: str = field(default="auto", metadata={"help": "of the check: auto, cpu, cuda"})
    dry_run: bool = field(
        default=False,
        metadata={"help": "read configs and weights' names, print, write nothing"},
    )

    def __post_init__(self) -> None:
        if self.shard_gb <= 0:
            raise UserError(f"--shard_gb {self.shard_gb}: must be above 0")


def main(options: ConvertOptions) -> None:
    import torch

    from llava_repro import conversion
    from llava_repro.layouts import open_checkpoint
    from shared.loading import pick_device, quiet_libraries

    quiet_libraries()
    device = pick_device(options.device)
    output = Path(options.output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output_dir {output}: exists and is not empty; choose a new folder")
    checkpoint = open_checkpoint(options.model, options.base, options.vision_tower)
    tokenizer = conversion.read_tokenizer(checkpoint, options.template)
    image_processor = conversion.read_image_processor(checkpoint)
    checkpoint = conversion.with_image_token(checkpoint, tokenizer)
    print_plan(checkpoint, options)
    if options.dry_run:
        return
    staging = output.with_name(f".unfinished-{output.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        conversion.write(
            checkpoint,
            tokenizer,
            image_processor,
            staging,
            dtype=None if options.dtype == "keep" else getattr(torch, options.dtype),
            shard_bytes=int(options.shard_gb * 1e9),
        )
        if not options.no_check:
            source = {
                "folder": options.model,
                "base": options.base,
                "vision_tower": options.vision_tower,
            }
            difference = conversion.compare(source, staging, device)
            print(f"check:      same logits on random input (largest difference {difference:.1e})")
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    if output.exists():
        output.rmdir()
    staging.rename(output)
    print(f"written to {output}")


def print_plan(checkpoint: Checkpoint, options: ConvertOptions) -> None:
    from llava_repro.hub_layout import IN_TRANSFORMERS
    from llava_repro.model import n_image_tokens

    config = checkpoint.config
    n_weights = sum(math.prod(weight.shape) for weight in checkpoint.weights.values())
    print(
        f"layout:     {checkpoint.layout}, {len(checkpoint.weights)} tensors, {n_weights:,} weights"
    )
    print(
        f"parts:      {config.vision_config.model_type}, {config.projector_type}, "
        f"{config.text_config.model_type}"
    )
    print(
        f"pictures:   {n_image_tokens(config)} image tokens, <image> is id "
        f"{config.image_token_index}, layer {config.vision_feature_layer}"
    )
    print(
        f"output:     {options.output_dir}, dtype {options.dtype}, {options.shard_gb:g} GB a file"
    )
    if getattr(config, "mm_use_im_start_end", False):
        print(
            "note:       trained with <im_start> and <im_end> around the picture, which no named "
            "template writes"
        )
    if config.projector_type not in IN_TRANSFORMERS:
        print(
            f"note:       transformers has no place for a {config.projector_type} projector: plain "
            "LlavaForConditionalGeneration stops with an error, Llava.from_pretrained loads it"
        )


if __name__ == "__main__":
    guarded(lambda: main(parse_options(ConvertOptions, description=__doc__.split("\n")[0])))
