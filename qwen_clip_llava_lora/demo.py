"""The page: base and tuned side by side, about a sample of the data or own pictures.

One base is loaded; behind each question its adapters are switched (contrast.py), so that the
comparison fits where one model fits. Answers are streamed, differences marked; a sample of the data
is scored as evaluate.py scores it, with the log-likelihood of its reference under both.

    python qwen_clip_llava_lora/demo.py --toy
    python qwen_clip_llava_lora/demo.py --model MERGED --adapter RUN/adapter --data test.json
    python qwen_clip_llava_lora/demo.py --model MERGED --adapter A/adapter B/adapter --language zh
    python qwen_clip_llava_lora/demo.py --toy --dry_run

Reads a model folder (LLaVA, Qwen-VL, MiniCPM-V), adapters of train.py, rows in any format of
data_formats.py. Writes nothing; uploads lie in the system's temporary folder for at most an hour
or two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_clip_llava_lora.data_formats import Data, open_data
from qwen_clip_llava_lora.demo_pages import Page, draw_page, sample_at
from qwen_clip_llava_lora.demo_texts import TEXTS, TITLE
from qwen_clip_llava_lora.evaluation_settings import TOY_DATA, prepare_toy
from qwen_clip_llava_lora.evaluation_setup import adapter_fingerprint, base_folder
from qwen_clip_llava_lora.settings import RUNS, TOY_MERGED
from shared.gradio_parts import LaunchOptions, bilingual_page, check_address, serve
from shared.images import ImageHandling
from shared.loading import GIB, weight_files
from shared.options import (
    MissingError,
    ModelOptions,
    ToyOptions,
    UserError,
    guarded,
    manifest_value,
    parse_options,
    portable_path,
    read_json,
)

CSS_FILE = Path(__file__).with_name("demo.css")
# adapter -> the command that trains it
TOY_ADAPTERS = {
    str(RUNS / "toy_align" / "adapter"): "train.py --toy --preset align",
    str(RUNS / "toy_course" / "adapter"): "train.py --toy",
}


@dataclass
class DemoOptions(ModelOptions, LaunchOptions, ToyOptions):
    """What the page starts with"""

    model: str = field(
        default="", metadata={"help": "folder in the Hub layout (merge_model.py writes one), or a "
                              "downloaded id"},
    )  # fmt: skip
    adapter: list[str] = field(
        default_factory=list, metadata={"help": "one or more adapter/ folders of train.py"}
    )
    data: str | None = field(
        default=None,
        metadata={"help": "rows to look at: a file or folder in any format that train.py reads"},
    )
    image_root: str | None = field(
        default=None, metadata={"help": "where the rows' picture paths start (default: the data's)"}
    )
    image_handling: ImageHandling = field(
        default="model",
        metadata={"help": "pictures that are no square: as the model was trained, or pad, crop, "
                  "resize"},
    )  # fmt: skip
    min_pixels: int | None = field(
        default=None, metadata={"help": "Qwen-VL: pictures of fewer pixels are enlarged"}
    )
    max_pixels: int | None = field(
        default=None, metadata={"help": "Qwen-VL: pictures of more pixels are made smaller"}
    )
    max_new_tokens: int = field(default=128, metadata={"help": "longest answer in tokens"})
    temperature: float = field(default=0.0, metadata={"help": "0 = greedy, above 0 = sampling"})
    top_p: float = field(default=1.0, metadata={"help": "share of the probability sampled from"})
    seed: int = field(default=0, metadata={"help": "of sampling"})

    def __post_init__(self) -> None:
        if not self.model:
            raise UserError("which model? --model FOLDER, or --toy")


def main(options: DemoOptions) -> None:
    # Data
    base_folder(options)
    check_adapters(options.adapter)
    data = None if options.data is None else open_data(options.data, options.image_root)
    if options.dry_run:
        print_plan(options, data)
        return
    check_address(options)

    # Model
    from qwen_clip_llava_lora.contrast import Decoding, load_contrast
    from shared.vision_families_adapters import adapter_manifest

    decoding = Decoding(
        options.max_new_tokens, options.temperature, options.top_p, seed=options.seed
    )
    contrast = load_contrast(
        options.model, options.adapter, min_pixels=options.min_pixels,
        max_pixels=options.max_pixels, quantization=options.quantization, device=options.device,
        dtype=options.dtype, revision=options.revision, image_handling=options.image_handling,
        max_new_tokens=options.max_new_tokens,
    )  # fmt: skip
    for note in dict.fromkeys(n for side in contrast.sides.values() for n in side.asker.notes):
        print(f"note: {note}")
    common = Page(
        contrast=contrast,
        name=portable_path(options.model),
        synthetic=is_synthetic([options.model, *options.adapter], data),
        data=data,
        decoding=decoding,
        manifests={n: adapter_manifest(s.folder) for n, s in contrast.sides.items() if s.folder},
    )

    # Page
    page = bilingual_page(
        TITLE, lambda page, language: draw_page(page, language, common), options.language
    )
    serve(page, options, css=CSS_FILE.read_text(encoding="utf-8"))


def check_adapters(adapters: Sequence[str]) -> None:
    """Raises MissingError with the commands where there is none to contrast, UserError for a folder
    that is none."""
    if not adapters:
        raise MissingError(
            "which adapter? --adapter RUN/adapter; train.py writes one:\n"
            "  python qwen_clip_llava_lora/train.py --model MODEL --data DATA"
        )
    absent = [name for name in adapters if not Path(name).is_dir()]
    commands = [TOY_ADAPTERS[name] for name in absent if name in TOY_ADAPTERS]
    if commands:
        made = "\n".join(f"  python qwen_clip_llava_lora/{command}" for command in commands)
        raise MissingError(f"no toy adapter is there yet; they are made by\n{made}")
    for name in adapters:
        if not Path(name).is_dir():
            raise MissingError(f"--adapter {name}: no such folder; train.py writes RUN/adapter")
        adapter_fingerprint(name)


def toy_adapters() -> list[str]:
    """Those that are there; where none is, all of them, whose commands `check_adapters` names."""
    return [name for name in TOY_ADAPTERS if Path(name).is_dir()] or list(TOY_ADAPTERS)


def is_synthetic(folders: Sequence[str], data: Data | None) -> bool:
    """Whether model, adapter or data is a toy's, by manifest and dataset.json."""
    if any(manifest_value(folder, "synthetic") for folder in folders):
        return True
    if data is None:
        return False
    folder = data.source if data.source.is_dir() else data.source.parent
    described = folder / "dataset.json"
    said: Any = read_json(described) if described.is_file() else {}
    own = isinstance(said, Mapping) and bool(said.get("synthetic"))
    return own or bool(manifest_value(folder, "synthetic"))


def print_plan(options: DemoOptions, data: Data | None) -> None:
    """--dry_run: address, what is compared, the first sample, the weights' size."""
    from qwen_clip_llava_lora.contrast import named_adapters, trained_of

    folder = base_folder(options)
    kind = read_json(folder / "config.json").get("model_type")
    size = sum(file.stat().st_size for file in weight_files(folder)) / GIB
    print(f"page:     http://{options.host}:{options.port}/ in {options.language}")
    print(f"model:    {options.model} ({kind}), {size:.2f} GiB of weights on disk, loaded once")
    for name, adapter in named_adapters(options.adapter).items():
        parts = "; ".join(
            f"{part}: {trained.lora:,} in LoRA, {trained.whole:,} of its own"
            for part, trained in trained_of(Path(adapter), kind).items()
        )
        print(f"adapter:  {name}: {parts}")
    if data is None:
        print("data:     none; tab 1 needs --data")
        return
    sample = sample_at(data, 0, TEXTS["en"])
    print(f"data:     {data.name} ({data.format}), {len(data.rows):,} rows")
    print(f"sample 0: {' / '.join(f'{role}: {text!r}' for role, text in sample.turns)}")


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                DemoOptions,
                description=__doc__.split("\n")[0],
                toy_defaults={
                    "model": str(TOY_MERGED),
                    "adapter": toy_adapters(),
                    "data": str(TOY_DATA),
                    "max_new_tokens": 32,
                },
                prepare_toy=prepare_toy,
            )
        )
    )
