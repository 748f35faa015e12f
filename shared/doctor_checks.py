"""The checks behind `python -m shared.doctor`: facts in, one line with its mend out.

Each function judges one thing from facts that `shared/machine.py` gathered (or a test made up) and
returns a `Result` in both languages. Nothing is read from the machine here but files under `root`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared import machine
from shared.datasets_index import Archive, ByHand, picture_count
from shared.fetch import human_size
from shared.options import portable_path

GB = 10**9
MIN_PYTHON = (3, 11)
WHEELS = "https://download.pytorch.org/whl"
# torch wheels need a driver of the same CUDA major version or newer (minor version compatibility,
# https://docs.nvidia.com/deploy/cuda-compatibility/); the oldest wheel of each major serves most.
WHEEL_OF_CUDA = {12: "cu126", 13: "cu130"}


BUSY_ZH = "检查超时，请稍后重试（机器是否繁忙？）"


@dataclass(frozen=True)
class Result:
    """One line: `key` is what `NEEDS` names it by, `mend` the command that puts it right."""

    key: str
    status: Literal["ok", "warning", "missing"]
    detail: str
    detail_zh: str
    mend: str = ""
    absent: bool = False  # of data and models: nothing of it is on this machine


@dataclass(frozen=True)
class ModelMemory:
    """Bytes of a model's weights; what a run needs beside them is added in `check_memory`."""

    name: str
    float32: float
    bfloat16: float
    nf4: float  # with the language model's linear layers in 4 bits


def check_python(version: tuple[int, ...]) -> Result:
    shown = ".".join(map(str, version))
    if version[:2] >= MIN_PYTHON:
        return Result("python", "ok", shown, shown)
    needed = ".".join(map(str, MIN_PYTHON))
    return Result(
        "python",
        "missing",
        f"{shown}; {needed} or newer is needed",
        f"{shown}；需要 {needed} 或更新版本",
        "conda create -n vlm python=3.12 && conda activate vlm && make setup",
    )


def check_packages(requirements: Sequence[str], installed: Mapping[str, str]) -> Result:
    """`requirements` as in pyproject.toml, `installed` name (lower case) -> version."""
    mend = "python -m pip install -r requirements.txt" if os.name == "nt" else "make setup"
    absent, wrong = [], []
    for text in requirements:
        name = re.match(r"[\w.-]+", text)[0]
        version = installed.get(name.lower().replace("_", "-"))
        if version is None:
            absent.append(name)
        elif not machine.satisfies(version, text):
            wrong.append(f"{name} {version} ({text.removeprefix(name)})")
    if not absent and not wrong:
        shown = f"all {len(requirements)} in their ranges"
        return Result("packages", "ok", shown, f"{len(requirements)} 个，版本均符合")
    said, said_zh = [], []
    if absent:
        said.append("not installed: " + ", ".join(absent))
        said_zh.append("未安装：" + "、".join(absent))
    if wrong:
        said.append("other version than needed: " + ", ".join(wrong))
        said_zh.append("版本不符：" + "、".join(wrong))
    return Result("packages", "missing", "; ".join(said), "；".join(said_zh), mend)


def check_torch(
    facts: Mapping[str, Any], driver: Mapping[str, str] | None, torch_range: str
) -> Result:
    """`facts` from `probe`, `driver` from `read_driver` (None: no NVIDIA driver answers)."""
    if "torch" not in facts and "timeout" in facts:
        return Result("torch", "warning", facts["timeout"], BUSY_ZH)
    if "torch" not in facts:
        reason = facts.get("error") or "not installed"
        return Result(
            "torch", "missing", f"cannot be imported: {reason}", f"无法导入：{reason}", "make setup"
        )
    build = f"torch {facts['torch']}"
    if facts.get("available"):
        cards = ", ".join(f"{d['name']} {human_size(d['total'])}" for d in facts["devices"])
        if facts.get("gpu_error"):
            said = f"{build} sees {cards} but cannot compute on it: {facts['gpu_error']}"
            said_zh = f"{build} 看得到 {cards}，但无法在其上计算：{facts['gpu_error']}"
            return Result("torch", "missing", said, said_zh, torch_install("cu126", torch_range))
        return Result("torch", "ok", f"{build}, {cards}", f"{build}，{cards}")
    if driver is None:
        if facts.get("cuda") or facts.get("hip"):
            return Result(
                "torch",
                "warning",
                f"{build} is a GPU build, but no driver answers (nvidia-smi): the CPU is used",
                f"{build} 为 GPU 版，但没有驱动响应（nvidia-smi）：将使用 CPU",
                "nvidia-smi   # install the NVIDIA driver from https://www.nvidia.com/drivers",
            )
        return Result(
            "torch", "ok", f"{build}, CPU; no NVIDIA GPU here", f"{build}，CPU；无 NVIDIA GPU"
        )
    has = f"driver {driver['driver']}, CUDA up to {driver['cuda']}"
    major = int(driver["cuda"].split(".")[0])
    if major < min(WHEEL_OF_CUDA):
        said = f"{build}: {has}, too old for every torch {torch_range}"
        said_zh = f"{build}：驱动 {driver['driver']}（CUDA {driver['cuda']}）过旧"
        mend = "update the NVIDIA driver to 525 or newer: https://www.nvidia.com/drivers"
        return Result("torch", "warning", said, said_zh, mend)
    mend = torch_install(WHEEL_OF_CUDA[min(major, max(WHEEL_OF_CUDA))], torch_range)
    if facts.get("cuda") is None:
        said = f"{build} is a CPU build, but there is a GPU ({has})"
        said_zh = (
            f"{build} 为 CPU 版，但本机有 GPU（驱动 {driver['driver']}，CUDA {driver['cuda']}）"
        )
    elif int(facts["cuda"].split(".")[0]) > major:
        said = f"{build} is built for CUDA {facts['cuda']}, newer than the driver allows ({has})"
        said_zh = f"{build} 按 CUDA {facts['cuda']} 构建，驱动仅支持到 {driver['cuda']}"
    else:
        said = f"{build} (CUDA {facts['cuda']}) sees no GPU although there is one ({has})"
        said_zh = f"{build}（CUDA {facts['cuda']}）看不到 GPU，但驱动正常（{driver['driver']}）"
        mend = (
            "echo $CUDA_VISIBLE_DEVICES   # must be unset or name the GPU; then restart the machine"
        )
    return Result("torch", "warning", said + ": the CPU is used", said_zh + "：将使用 CPU", mend)


def torch_install(wheel: str, torch_range: str) -> str:
    pip = machine.pip_command()
    return (
        f"{pip} uninstall {'' if pip.startswith('uv') else '-y '}torch && "
        f'{pip} install "torch{torch_range}" --index-url {WHEELS}/{wheel}'
    )


def check_torchvision(
    torch_version: str | None, version: str | None, requires: Sequence[str], error: str | None
) -> Result:
    """torchvision is not needed, but one made for another torch breaks importing the models."""
    if version is None:
        return Result("torchvision", "ok", "not installed, not needed", "未安装，也不需要")
    pip = machine.pip_command()
    mend = f"{pip} uninstall {'' if pip.startswith('uv') else '-y '}torchvision"
    pins = [re.sub(r"[ ()]", "", r) for r in requires if re.match(r"torch\b(?![\w-])[^;]*$", r)]
    if torch_version and not all(
        machine.satisfies(torch_version.split("+")[0], pin) for pin in pins
    ):
        said = f"{version} is made for {', '.join(pins)}, here is torch {torch_version}"
        said_zh = f"{version} 对应 {'、'.join(pins)}，而本机为 torch {torch_version}"
    elif error:
        said = f"{version} cannot be imported ({error})"
        said_zh = f"{version} 无法导入（{error}）"
    else:
        return Result("torchvision", "ok", version, version)
    return Result(
        "torchvision",
        "missing",
        said + ": importing the models fails with it; nothing here needs it",
        said_zh + "：会使模型无法导入；本项目不需要它",
        mend,
    )


def check_bitsandbytes(facts: Mapping[str, Any], version_range: str) -> Result:
    """Whether a 4-bit layer computes, on the GPU if there is one."""
    version = facts.get("bitsandbytes")
    if facts.get("nf4"):
        device = "GPU" if facts.get("available") else "CPU"
        said = f"bitsandbytes {version}, NF4 computes on the {device}"
        return Result(
            "bitsandbytes", "ok", said, f"bitsandbytes {version}，NF4 可在 {device} 上计算"
        )
    if "timeout" in facts and "nf4_error" not in facts:
        return Result("bitsandbytes", "warning", facts["timeout"], BUSY_ZH)
    reason = facts.get("nf4_error") or facts.get("error") or "the GPU does not compute"
    mend = f'{machine.pip_command()} install --upgrade "bitsandbytes{version_range}"'
    if not facts.get("nf4_error"):
        mend = "python -m shared.doctor   # again, once torch works"
    said, said_zh = f"no 4-bit layer works: {reason}", f"4-bit 层不可用：{reason}"
    return Result("bitsandbytes", "missing", said, said_zh, mend)


def check_memory(
    available: int | None, gpus: Sequence[int], model: ModelMemory | None, toy_command: str
) -> Result:
    """`available` RAM and the total of each GPU, in bytes; `model` None asks for the toy's 2 GB.

    A GPU computes in bfloat16, a CPU in float32; half a gigabyte of activations is added on a
    GPU, one on a CPU.
    """
    if available is None:
        return Result("memory", "warning", "cannot be read", "无法读取", "make setup")
    best = max(gpus, default=0)
    shown = f"{human_size(available)} free RAM"
    shown_zh = f"可用内存 {human_size(available)}"
    if gpus:
        shown += ", GPU " + ", ".join(human_size(g) for g in gpus)
        shown_zh += "，GPU " + "、".join(human_size(g) for g in gpus)
    if available < 2 * GB:
        said, said_zh = "; 2 GB are needed even for the toy", "；玩具模型也需要 2 GB"
        return Result("memory", "missing", shown + said, shown_zh + said_zh, "close other programs")
    if (
        model is None
        or best >= model.bfloat16 + GB / 2
        or (not gpus and available >= model.float32 + GB)
    ):
        return Result("memory", "ok", shown, shown_zh)
    in_nf4 = human_size(model.nf4)
    if best < model.nf4 and available < model.nf4 + GB:
        return Result(
            "memory",
            "missing",
            f"{shown}; {model.name} needs about {in_nf4} even in 4 bits",
            f"{shown_zh}；{model.name} 即使 4-bit 也需约 {in_nf4}",
            toy_command,
        )
    in_bf16 = human_size(model.bfloat16)
    return Result(
        "memory",
        "warning",
        f"{shown}; {model.name} is {in_bf16} in bfloat16, about {in_nf4} in 4 bits",
        f"{shown_zh}；{model.name} 在 bfloat16 下 {in_bf16}，4-bit 下约 {in_nf4}",
        "add --quantization nf4 to the scripts",
    )


def check_disk(free: int, folder: Path, to_fetch: int) -> Result:
    shown, shown_zh = f"{human_size(free)} free in {folder}", f"{folder} 可用 {human_size(free)}"
    if free >= to_fetch + GB:
        return Result("disk", "ok", shown, shown_zh)
    status = "missing" if free < GB else "warning"
    need = human_size(to_fetch + GB)
    mend = f"make room, or make {folder} a link to a folder on a bigger disk"
    return Result("disk", status, f"{shown}; {need} needed", f"{shown_zh}；需要 {need}", mend)


def check_split(
    key: str, archives: Sequence[Archive], root: Path, command: str, sample_absent: int | None
) -> Result:
    """A split of a data set. `sample_absent`: pictures of the default sample that are not here
    (None: there is no sample of it, or its questions are not here)."""
    lacking = [n for a in archives for n in a.files if not (root / n).is_file()]
    said, said_zh = [], []
    whole, some = True, len(lacking) < sum(len(a.files) for a in archives)
    for pictures in [a.pictures for a in archives if a.pictures]:
        have = picture_count(root / pictures.folder)
        whole, some = whole and have >= pictures.count, some or have > 0
        said.append(f"{pictures.folder}/ {have:,} of {pictures.count:,} pictures")
        said_zh.append(f"{pictures.folder}/ 图片 {have:,} / {pictures.count:,}")
    root_shown = portable_path(root)
    if not lacking and (whole or sample_absent == 0):
        if not whole:
            said.append("the default sample is complete")
            said_zh.append("默认样本齐全")
        return Result(key, "ok", ", ".join([root_shown, *said]), "，".join([root_shown, *said_zh]))
    if lacking:
        more = f" (+{len(lacking) - 1})" if len(lacking) > 1 else ""
        said.insert(0, f"not there: {lacking[0]}{more}")
        said_zh.insert(0, f"缺少：{lacking[0]}{more}")
    elif sample_absent:
        said.append(f"{sample_absent:,} of the default sample's are missing")
        said_zh.append(f"默认样本还缺 {sample_absent:,} 张")
    return Result(key, "missing", "; ".join(said), "；".join(said_zh), command, absent=not some)


def check_by_hand(dataset: ByHand, data: Path) -> Result:
    """A data set that comes by other programs, below the folder `data`."""
    absent = dataset.absent(data)
    where = portable_path(data / Path(dataset.files[0]).parent)
    if not absent:
        return Result(dataset.name, "ok", where, where)
    more = f" (+{len(absent) - 1})" if len(absent) > 1 else ""
    said, said_zh = f"not there: {absent[0]}{more}", f"缺少：{absent[0]}{more}"
    mend = f"python -m shared.download {dataset.name}   # prints the commands"
    nothing = len(absent) == len(dataset.files) + len(dataset.pictures)
    return Result(dataset.name, "missing", said, said_zh, mend, absent=nothing)


def check_model(key: str, folder: Path | None, problems: Sequence[str], mend: str) -> Result:
    """`folder` where the scripts would load it from, `problems` with what is in it."""
    if folder is None:
        return Result(key, "missing", "not on this machine", "本机没有", mend, absent=True)
    said = "; ".join([portable_path(folder), *problems])
    return Result(key, "missing" if problems else "ok", said, said, mend if problems else "")


def check_browser(playwright: bool, browser: str | None) -> Result:
    if playwright and browser:
        return Result("browser", "ok", browser, browser)
    lacking = "playwright" if not playwright else "Chromium"
    commands = [] if playwright else [f"{machine.pip_command()} install playwright"]
    commands += [] if browser else ["python -m playwright install --with-deps chromium"]
    return Result(
        "browser",
        "warning",
        f"{lacking} is not installed: the tests that open pages are skipped",
        f"未安装 {lacking}：打开网页的测试会被跳过",
        " && ".join(commands),
    )


def check_meteor(problem: str | None, has_java: bool) -> Result:
    """`problem`: what `caption_extras.meteor_problem` says."""
    commands = [] if has_java else ["sudo apt-get install default-jre-headless"]
    commands.append(f'{machine.pip_command()} install "pycocoevalcap>=1.2"')
    return _caption_program("meteor", problem, " && ".join(commands))


def check_spice(problem: str | None) -> Result:
    """`problem`: what `caption_extras.spice_problem` says."""
    mend = f'{machine.pip_command()} install "pycocoevalcap>=1.2"'
    if problem and "corenlp" in problem:  # 384 MB, which pycocoevalcap fetches at the first use
        mend = 'python -c "from pycocoevalcap.spice.spice import Spice; Spice()"'
    elif problem and "Java" in problem:
        mend = "sudo apt-get install openjdk-11-jre-headless"
    elif problem and "pycocoevalcap" not in problem:
        mend = "leave it out: evaluate.py and shared.caption_score run without it"
    return _caption_program("spice", problem and problem.removeprefix("SPICE: "), mend)


def _caption_program(key: str, problem: str | None, mend: str) -> Result:
    if problem is None:
        return Result(key, "ok", "can run", "可以运行")
    return Result(key, "missing", problem, f"不能运行：{problem}", mend, absent=True)


def check_font(font: str | None) -> Result:
    if font:
        return Result("font", "ok", font, font)
    return Result(
        "font",
        "warning",
        "none found: labels in pictures stay English with --language zh",
        "未找到：使用 --language zh 时图中文字仍为英文",
        "sudo apt-get install fonts-noto-cjk",
    )
