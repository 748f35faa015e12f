"""The table of GPU memory per model family, for 1, 2, 4 and 8 GPUs: computed, not measured.

Each model's architecture (a folder's, or published numbers of `architectures.json`) is opened
without weights as train.py would open it; memory is computed as its --dry_run does (memory.py), for
one sample on each GPU with activation checkpointing. ZeRO stages and offload are DeepSpeed's.

    python qwen_clip_llava_lora/memory_table.py
    python qwen_clip_llava_lora/memory_table.py --language zh
    python qwen_clip_llava_lora/memory_table.py --models Qwen/Qwen2.5-VL-3B-Instruct --lora_rank 16

Prints Markdown; writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from shared.options import UserError, guarded, parse_options

if TYPE_CHECKING:
    from qwen_clip_llava_lora.memory import Needs, Strategy

MODELS = (
    "Qwen/Qwen1.5-4B-Chat+openai/clip-vit-large-patch14-336",
    "Qwen/Qwen2-VL-7B-Instruct",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen/Qwen3-VL-8B-Instruct",
    "openbmb/MiniCPM-V-4.6",
)
GPUS = (1, 2, 4, 8)
COLUMNS: dict[Strategy, tuple[str, str]] = {
    "ddp": ("DDP", "DDP"),
    "zero2": ("ZeRO-2", "ZeRO-2"),
    "zero2_offload": ("ZeRO-2, optimizer in RAM", "ZeRO-2，优化器放内存"),
    "zero3": ("ZeRO-3", "ZeRO-3"),
    "zero3_offload": ("ZeRO-3, weights and optimizer in RAM", "ZeRO-3，权重与优化器放内存"),
}
ABOVE = (
    "GiB on each GPU, computed, not measured, for 1 / 2 / 4 / 8 GPUs: bfloat16, activation "
    "checkpointing, one sample on each GPU with a picture of {picture} and {text} tokens of text, "
    "{learned} of them learned; LoRA of rank {rank} on all linear layers of the language model; "
    "the vision tower is frozen; 1 GiB of CUDA overhead is in it.",
    "每张 GPU 的显存（GiB），由公式计算，未经实测，依次为 1 / 2 / 4 / 8 张 GPU："
    "bfloat16，激活重计算，"
    "每张 GPU 一个样本，含一张 {picture} 的图片和 {text} 个文本 token（{learned} 个参与学习）；"
    "LoRA 秩 {rank}，作用于语言模型的全部线性层；视觉塔冻结；已含 1 GiB CUDA 开销。",
)
BELOW = (
    "DDP on several GPUs keeps the gradients twice (its buckets). What DeepSpeed allocates beyond "
    "its default buckets comes on top. LoRA with ZeRO-3 is reported to fail for MiniCPM-V "
    "(https://github.com/OpenBMB/MiniCPM-V/issues/651): take ZeRO-2.",
    "多卡 DDP 会多存一份梯度（通信桶）。DeepSpeed 在默认通信桶之外的开销另计。"
    "据报告，MiniCPM-V 的 LoRA 在 ZeRO-3 下会失败"
    "（https://github.com/OpenBMB/MiniCPM-V/issues/651），请使用 ZeRO-2。",
)
NAMES = {"lora": ("LoRA", "LoRA"), "full": ("full", "全参数")}


@dataclass
class TableOptions:
    """Which models, and the sample that is counted with"""

    models: list[str] = field(
        default_factory=lambda: list(MODELS),
        metadata={"help": "folders, names of architectures.json, or LANGUAGE_MODEL+VISION_TOWER"},
    )
    picture: list[int] = field(
        default_factory=lambda: [640, 480], metadata={"help": "width and height of the picture"}
    )
    text_tokens: int = field(default=512, metadata={"help": "tokens of a sample's text"})
    answer_tokens: int = field(default=256, metadata={"help": "how many of them are learned"})
    lora_rank: int = field(default=64, metadata={"help": "LoRA on every linear layer but the head"})
    language: Literal["en", "zh"] = field(default="en", metadata={"help": "of the table"})

    def __post_init__(self) -> None:
        if len(self.picture) != 2 or min(self.picture) < 1:
            raise UserError(f"--picture {self.picture}: width and height in pixels")
        if not 1 <= self.answer_tokens <= self.text_tokens or self.lora_rank < 1:
            raise UserError("--answer_tokens: from 1 to --text_tokens; --lora_rank: at least 1")


def main(options: TableOptions) -> None:
    print("\n".join(table(options)))


def table(options: TableOptions) -> list[str]:
    """Markdown, with what it was computed for above."""
    chinese = options.language == "zh"
    width, height = options.picture
    said = {
        "picture": f"{width} x {height}",
        "text": options.text_tokens,
        "learned": options.answer_tokens,
        "rank": options.lora_rank,
    }
    heads = [("model", "模型"), ("trains", "训练方式"), *COLUMNS.values()]
    lines = [
        ABOVE[chinese].format(**said),
        "",
        row([head[chinese] for head in heads]),
        row(["---"] * len(heads)),
    ]
    for name in options.models:
        for train_type, names in NAMES.items():
            needs = needs_of_model(name, train_type, options)
            cells = [cell(needs, strategy, chinese) for strategy in COLUMNS]
            lines.append(row([name.replace("+", " + "), names[chinese], *cells]))
    return [*lines, "", BELOW[chinese]]


def needs_of_model(name: str, train_type: str, options: TableOptions) -> Needs:
    """What one GPU holds. Raises MissingError for a model of which nothing is known."""
    from qwen_clip_llava_lora.planning import Sample, needs_of, opened, read_config, tokens_of
    from qwen_clip_llava_lora.train_settings import TrainOptions

    training = TrainOptions(
        model=name,
        data=["none"],
        train_type=train_type,
        lora_rank=options.lora_rank,
        lora_layers="all",
    )
    config, _ = read_config(name)
    width, height = options.picture
    picture = tokens_of(config, (width, height), training)
    sample = Sample(options.text_tokens + picture, options.answer_tokens, picture, "")
    return needs_of(opened(config, training), training, sample, samples=1, recomputed=True)


def cell(needs: Needs, strategy: Strategy, chinese: bool) -> str:
    """The figures for `GPUS`; dividing by one GPU is none, and offload names the RAM it takes."""
    from qwen_clip_llava_lora.memory import in_ram, on_each_gpu

    shown = [
        "–" if gpus == 1 and strategy in ("zero2", "zero3") else
        figure(on_each_gpu(needs, strategy, gpus).total)
        for gpus in GPUS
    ]  # fmt: skip
    ram = in_ram(needs, strategy)
    behind = f"{'；内存' if chinese else '; RAM'} {figure(ram)}" if ram else ""
    return " / ".join(shown) + behind


def figure(gib: float) -> str:
    return f"{gib:.0f}" if gib >= 10 else f"{gib:.1f}"


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    guarded(lambda: main(parse_options(TableOptions, description=__doc__.split("\n")[0])))
