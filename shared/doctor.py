"""What this machine has, what is missing for an experiment, and the command that mends it.

    python -m shared.doctor                                the machine, and what data is here
    python -m shared.doctor --for blip2_qlora --toy        what the toy run needs (no data, no GPU)
    python -m shared.doctor --for llava_repro              what the real experiment needs
    python -m shared.doctor --json --language zh

`shared/machine.py` gathers facts (torch and bitsandbytes in a process of their own, which may crash
without harm), `shared/doctor_checks.py` judges them. With `--for` the exit status is 1 when
something is missing that the experiment cannot do without: the packages; for the toy run its
committed checkpoints; for the real one the model that predict.py and evaluate.py take by default
and, of VQAv2's validation split, the questions, annotations and the default sample's pictures; for
llava_openset COCO 2017's instances and val pictures; for qwen_clip_llava_lora the two models that
the course experiment merges; for lavis_apps the captioner, the other BLIPs and CLIP being loaded
by their tasks alone. blip2_qlora also needs 4-bit layers that work.
The rest is a warning: what train.py reads (the training split; for llava_repro the parts and data
of its small English presets; CC3M for the course), COCO's train pictures, the other benchmarks,
METEOR 1.5 and SPICE (Java and jars), a GPU that torch does not see. Writes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import hub_models, machine
from shared.caption_extras import meteor_problem, spice_problem
from shared.datasets_index import absent_from_sample, load_index
from shared.doctor_checks import (
    MIN_PYTHON,
    ModelMemory,
    Result,
    check_bitsandbytes,
    check_browser,
    check_by_hand,
    check_disk,
    check_font,
    check_memory,
    check_meteor,
    check_model,
    check_packages,
    check_python,
    check_spice,
    check_split,
    check_torch,
    check_torchvision,
)
from shared.fetch import free_bytes
from shared.options import DATA_ROOT, MissingError, UserError, guarded, portable_path

DEFAULT_LIMIT = 1000  # of VQAv2, in both evaluate.py that ask it


@dataclass(frozen=True)
class Needs:
    """Keys of the results without which an experiment cannot run, and of those that it can use."""

    required: frozenset[str]
    useful: frozenset[str]
    toy_models: tuple[str, ...] = ()
    memory: ModelMemory | None = None  # of the model that a real run loads by default


BASE = frozenset({"python", "packages", "torch", "torchvision", "memory", "disk"})
PAGES = frozenset({"browser", "font"})
CAPTIONS = frozenset({"meteor", "spice"})  # of evaluate.py --task caption: the extra `captions`
BLIP2, LLAVA = "Salesforce/blip2-opt-2.7b", "llava-hf/llava-1.5-7b-hf"
ENGLISH_PARTS = frozenset({"meta-llama/Llama-3.2-1B-Instruct", "google/siglip-so400m-patch14-384"})
COURSE_PARTS = frozenset({"Qwen/Qwen1.5-4B-Chat", "openai/clip-vit-large-patch14-336"})
BLIP_CAPTION = "Salesforce/blip-image-captioning-base"
BLIP_OTHERS = {  # each loaded by its tasks alone
    "Salesforce/blip-vqa-base": ("for --task vqa", "--task vqa 使用"),
    "Salesforce/blip-itm-base-coco": (
        "for matching, classification, features, localization and search",
        "图文匹配、分类、特征、定位与搜索使用",
    ),
    "openai/clip-vit-base-patch32": ("for CLIP in place of BLIP", "以 CLIP 代替 BLIP 时使用"),
}
LLAVA_DATA = frozenset({"pope", "gqa", "textvqa", "scienceqa", "llava_pretrain", "llava_mix665k"})
# 3.745e9 weights, 2.5e9 of them in linear layers of the language model
BLIP2_MEMORY = ModelMemory("BLIP-2 OPT-2.7B", float32=15e9, bfloat16=7.5e9, nf4=4e9)
# 2.47e8 weights as its file has them
BLIP_MEMORY = ModelMemory("BLIP base", float32=0.99e9, bfloat16=0.5e9, nf4=0.5e9)
# 7.06e9 weights, 6.48e9 of them in linear layers of the language model's blocks
LLAVA_MEMORY = ModelMemory("LLaVA-1.5-7B", float32=28.3e9, bfloat16=14.1e9, nf4=4.5e9)
# 4.26e9 weights, 3.17e9 of them in linear layers of the language model's blocks
COURSE_MEMORY = ModelMemory("Qwen1.5-4B with CLIP", float32=17.1e9, bfloat16=8.5e9, nf4=3.8e9)
NEEDS = {
    ("blip2_qlora", True): Needs(
        BASE | {"bitsandbytes", "toy_models"}, PAGES | CAPTIONS, ("blip2_opt",)
    ),
    ("blip2_qlora", False): Needs(
        BASE | {"bitsandbytes", "vqav2_val", BLIP2},
        PAGES | CAPTIONS | {"vqav2_train"},
        memory=BLIP2_MEMORY,
    ),
    ("llava_repro", True): Needs(
        BASE | {"toy_models"}, PAGES | CAPTIONS | {"bitsandbytes"}, ("clip", "qwen2", "llava")
    ),
    ("llava_repro", False): Needs(
        BASE | {"vqav2_val", LLAVA},
        PAGES | CAPTIONS | {"bitsandbytes"} | ENGLISH_PARTS | LLAVA_DATA,
        memory=LLAVA_MEMORY,
    ),
    ("qwen_clip_llava_lora", True): Needs(
        BASE | {"toy_models"}, PAGES | CAPTIONS | {"bitsandbytes"}, ("clip", "qwen2")
    ),
    ("qwen_clip_llava_lora", False): Needs(
        BASE | COURSE_PARTS,
        PAGES | CAPTIONS | {"bitsandbytes", "cc3m_595k"},
        memory=COURSE_MEMORY,
    ),
    ("lavis_apps", True): Needs(
        BASE | {"toy_models"}, PAGES | CAPTIONS, ("blip_caption", "blip_vqa", "blip_itm", "clip")
    ),
    ("lavis_apps", False): Needs(
        BASE | {BLIP_CAPTION},
        PAGES | CAPTIONS | set(BLIP_OTHERS) | {"vqav2_val", "vqav2_train", "coco2014"},
        memory=BLIP_MEMORY,
    ),
    ("llava_openset", True): Needs(BASE | {"toy_models"}, PAGES | {"bitsandbytes"}, ("llava",)),
    ("llava_openset", False): Needs(
        BASE | {"coco2017_val", LLAVA},
        PAGES | {"bitsandbytes", "coco2017_train"},
        memory=LLAVA_MEMORY,
    ),
}
TO_TRAIN = ("to train the small English model", "训练英文小模型时使用")
PURPOSES = {
    LLAVA: ("what predict.py, demo.py and evaluate.py load", "推理与评测默认加载"),
    "coco2017_train": ("for a split with --split train2017", "--split train2017 的划分使用"),
    "meteor": ("without it captions get nltk's METEOR, another metric", "否则使用 nltk 的 METEOR"),
    "spice": ("for shared.caption_score --spice", "shared.caption_score --spice 使用"),
    **dict.fromkeys(COURSE_PARTS, ("merged by merge_model.py", "由 merge_model.py 合并")),
    **BLIP_OTHERS,
    "cc3m_595k": ("what the course experiment trains on", "课程实验的训练数据"),
    **dict.fromkeys([*ENGLISH_PARTS, "llava_pretrain", "llava_mix665k"], TO_TRAIN),
}
EXPERIMENTS = sorted({experiment for experiment, _ in NEEDS})
ALL = Needs(
    frozenset(),
    frozenset().union(*(n.required | n.useful for n in NEEDS.values())) | {"coco2014"},
    tuple(dict.fromkeys(name for n in NEEDS.values() for name in n.toy_models)),
)
TITLES = {
    "python": ("Python", "Python"),
    "packages": ("packages", "软件包"),
    "torch": ("torch and GPU", "torch 与 GPU"),
    "torchvision": ("torchvision", "torchvision"),
    "bitsandbytes": ("4-bit layers", "4-bit 层"),
    "memory": ("memory", "内存"),
    "disk": ("disk", "磁盘"),
    "toy_models": ("toy models", "玩具模型"),
    "vqav2_val": ("VQAv2 val", "VQAv2 val"),
    "vqav2_train": ("VQAv2 train", "VQAv2 train"),
    "coco2014": ("COCO 2014", "COCO 2014"),
    "coco2017_val": ("COCO 2017 val", "COCO 2017 val"),
    "coco2017_train": ("COCO 2017 train", "COCO 2017 train"),
    "pope": ("POPE", "POPE"),
    "gqa": ("GQA", "GQA"),
    "textvqa": ("TextVQA", "TextVQA"),
    "scienceqa": ("ScienceQA", "ScienceQA"),
    "llava_pretrain": ("LLaVA stage 1 data", "LLaVA 第一阶段数据"),
    "llava_mix665k": ("LLaVA stage 2 data", "LLaVA 第二阶段数据"),
    "cc3m_595k": ("CC3M 595K", "CC3M 595K"),
    "not_here": ("not here", "本机没有"),
    "meteor": ("METEOR 1.5", "METEOR 1.5"),
    "spice": ("SPICE", "SPICE"),
    "browser": ("browser (tests)", "浏览器（测试）"),
    "font": ("Chinese font", "中文字体"),
}


def examine(experiment: str | None, toy: bool, data_root: Path) -> list[Result]:
    """The lines about this machine that an experiment's run needs or can use, or all of them."""
    needs = NEEDS[experiment, toy] if experiment else ALL
    index = load_index()
    requirements = machine.project_requirements()
    ranges = {re.match(r"[\w.-]+", r)[0]: re.sub(r"^[\w.-]+", "", r) for r in requirements}
    installed = machine.installed_packages()
    facts = machine.run_probe()
    gpus = [device["total"] for device in facts.get("devices", [])]
    results = [
        check_python(sys.version_info[:3]),
        check_packages(requirements, installed),
        check_torch(facts, machine.read_driver(), ranges["torch"]),
        check_torchvision(
            facts.get("torch") or installed.get("torch"),
            installed.get("torchvision"),
            machine.requirements_of("torchvision"),
            facts.get("torchvision_error"),
        ),
        check_bitsandbytes(facts, ranges["bitsandbytes"]),
        check_memory(
            machine.available_memory(),
            gpus,
            needs.memory,
            f"python {experiment or EXPERIMENTS[0]}/predict.py --toy",
        ),
    ]
    data = [toy_models_result(needs.toy_models)] if needs.toy_models else []
    data += dataset_results(index, data_root)
    data += [check_by_hand(dataset, DATA_ROOT) for dataset in index["by_hand"].values()]
    data += model_results(index, needs)
    known = {entry["id"]: entry["bytes"] for entry in index["models"].values()}
    to_fetch = sum(
        known.get(r.key, 0) for r in data if r.status == "missing" and r.key in needs.required
    )
    results.append(check_disk(free_bytes(DATA_ROOT), DATA_ROOT, to_fetch))
    results += data
    playwright = importlib.util.find_spec("playwright") is not None
    results += [
        check_meteor(meteor_problem(), shutil.which("java") is not None),
        check_spice(spice_problem()),
        check_browser(playwright, machine.find_browser()),
        check_font(machine.find_cjk_font()),
    ]
    return results


def collapse_absent(results: Sequence[Result]) -> list[Result]:
    """Data and models of which nothing is here as one line: the list of everything fits a screen.

    None of them is needed by all; `--for` tells what an experiment needs and how it comes.
    """
    absent = [r for r in results if r.absent]
    kept = [r for r in results if not r.absent]
    if not absent:
        return kept
    shown = [", ".join(title(r.key, language) for r in absent) for language in ("en", "zh")]
    mend = f"python -m shared.doctor --for {'|'.join(EXPERIMENTS)}"
    return [*kept, Result("not_here", "warning", *shown, mend)]


def as_needed(result: Result, needs: Needs) -> Result:
    """What an experiment can do without is a warning at most; what is absent says its purpose."""
    if result.absent and result.key in PURPOSES:
        said, said_zh = (
            f"{detail} ({purpose})"
            for detail, purpose in zip(
                (result.detail, result.detail_zh), PURPOSES[result.key], strict=True
            )
        )
        result = dataclasses.replace(result, detail=said, detail_zh=said_zh)
    if result.status == "missing" and result.key not in needs.required:
        return dataclasses.replace(result, status="warning")
    return result


def toy_models_result(names: Sequence[str]) -> Result:
    """One line for all of an experiment's committed checkpoints."""
    root = DATA_ROOT / "toy_models"
    problems = [f"{n}: {p}" for n in names for p in hub_models.folder_problems(root / n)]
    broken = [n for n in names if any(p.startswith(f"{n}: ") for p in problems)]
    mend = "git checkout -- " + " ".join(portable_path(root / n) for n in broken)
    said = "; ".join([f"{portable_path(root)}: {', '.join(names)}", *problems])
    status = "missing" if broken else "ok"
    return Result("toy_models", status, said, said, mend if broken else "")


def dataset_results(index: Mapping[str, Any], vqav2_root: Path) -> list[Result]:
    """One line for each split that an experiment reads on its own, else one for the data set."""
    results = []
    for key, dataset, splits, flags in (
        ("vqav2_val", "vqav2", ["val"], "--limit 1000"),
        ("vqav2_train", "vqav2", ["train"], "--splits train"),
        ("coco2014", "coco2014", ["train", "val"], ""),
        ("coco2017_val", "coco2017", ["val"], "--splits val"),
        ("coco2017_train", "coco2017", ["train"], "--splits train"),
    ):
        entry = index["datasets"][dataset]
        root = vqav2_root if entry["folder"] == "vqav2" else DATA_ROOT / entry["folder"]
        names = dict.fromkeys(name for split in splits for name in entry["splits"][split])
        archives = [index["archives"][name] for name in names]
        command = f"python -m shared.download {dataset} {flags}".rstrip()
        if root != DATA_ROOT / entry["folder"]:
            command += f" --data_root {root}"
        try:
            sampled = key == "vqav2_val"
            absent = absent_from_sample(archives, root, DEFAULT_LIMIT, 0) if sampled else None
            results.append(check_split(key, archives, root, command, absent))
        except UserError as error:  # a question file that is not the published one
            results.append(Result(key, "missing", str(error), str(error), command))
    return results


def model_results(index: Mapping[str, Any], needs: Needs) -> list[Result]:
    """The models that are needed or can be used, and the others of the index that are here."""
    from shared.loading import model_folder

    results = []
    for entry in index["models"].values():
        model_id = entry["id"]
        try:
            folder = model_folder(model_id)
        except (MissingError, ImportError):  # or huggingface_hub itself is not installed yet
            folder = None
        if folder or model_id in needs.required | needs.useful:
            problems = hub_models.folder_problems(folder) if folder else []
            mend = f"python -m shared.download {model_id}"
            results.append(check_model(model_id, folder, problems, mend))
    return results


def title(key: str, language: str) -> str:
    return TITLES.get(key, (key, key))[language == "zh"]


def table(results: Sequence[Result], language: str) -> str:
    chinese = language == "zh"
    words = {
        "ok": ("ok", "正常"),
        "warning": ("warning", "注意"),
        "missing": ("missing", "缺少"),
        "mend": ("mend:", "处理："),
    }
    names = {r.key: title(r.key, language) for r in results}
    width = max(map(display_width, names.values()))
    lines = []
    for r in results:
        lead = pad(words[r.status][chinese], 9) + pad(names[r.key], width + 2)
        lines.append(lead + (r.detail_zh if chinese else r.detail))
        if r.mend:
            lines.append(" " * display_width(lead) + f"{words['mend'][chinese]} {r.mend}")
    return "\n".join(lines)


def display_width(text: str) -> int:
    """Columns in a terminal, where a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def pad(text: str, width: int) -> str:
    return text + " " * (width - display_width(text))


def verdict(lacking: Sequence[str], experiment: str, toy: bool, language: str) -> str:
    run = f"{experiment} --toy" if toy else experiment
    names = [title(key, language) for key in lacking]
    if language == "zh":
        return f"{run}：不能运行，缺少 {'、'.join(names)}" if lacking else f"{run}：可以运行"
    return f"{run} cannot run: {', '.join(names)}" if lacking else f"{run} can run"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m shared.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--for", dest="experiment", choices=EXPERIMENTS, help="what it needs only")
    parser.add_argument("--toy", action="store_true", help="with --for: its toy run")
    parser.add_argument("--data_root", help="where VQAv2 lies (default data/vqav2)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--language", choices=("en", "zh"), default="en")
    options = parser.parse_args(argv)
    if options.toy and not options.experiment:
        parser.error("--toy goes with --for EXPERIMENT")
    needs = NEEDS[options.experiment, options.toy] if options.experiment else None
    if sys.version_info[:2] < MIN_PYTHON:
        results = [check_python(sys.version_info[:3])]  # the rest does not run on it
    else:
        root = Path(options.data_root) if options.data_root else DATA_ROOT / "vqav2"
        results = examine(options.experiment, options.toy, root)
    if needs:
        results = [as_needed(r, needs) for r in results if r.key in needs.required | needs.useful]
    lacking = [
        r.key for r in results if needs and r.key in needs.required and r.status == "missing"
    ]
    if options.json:
        content = {
            "experiment": options.experiment,
            "toy": options.toy,
            "can_run": not lacking if needs else None,
            "results": [dataclasses.asdict(r) for r in results],
        }
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        print(table(results if needs else collapse_absent(results), options.language))
        if needs:
            print(verdict(lacking, options.experiment, options.toy, options.language))
    sys.exit(1 if lacking else 0)


if __name__ == "__main__":
    guarded(main)
