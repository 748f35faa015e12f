"""Around a run of describe_images.py: what it is by its options, its plan, its summary.

    python -m pytest tests/qwen_clip_llava_lora/test_describe.py

Reads manifests and a local model folder's fingerprint; prints, writes nothing. No torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_clip_llava_lora.describe_settings import NOT_THE_RUN, DescribeOptions, run_folder
from qwen_clip_llava_lora.describing import Picture, broken_pictures
from qwen_clip_llava_lora.description_data import STATUSES
from qwen_clip_llava_lora.prompt_templates import PromptTemplate
from shared.options import UserError, manifest_value, portable_path, resolved_config


def check_samples(options: DescribeOptions, templates: Sequence[PromptTemplate]) -> None:
    """Samples that would be the same answer twice are refused."""
    for template in templates:
        if options.n > template.n_wordings and not (options.endpoint and options.temperature > 0):
            raise UserError(
                f"--n {options.n}: {template.name} has {template.n_wordings} wording(s), and "
                "without chance a further sample would be the same answer again. Fewer, or a "
                "server with --temperature above 0"
            )


def is_synthetic(options: DescribeOptions) -> bool | None:
    """Whether the model or its adapter is a toy by its manifest; a server does not say."""
    if options.endpoint:
        return None
    parts = filter(None, (options.model, options.adapter))
    return any(bool(manifest_value(part, "synthetic")) for part in parts)


def run_config(
    options: DescribeOptions,
    templates: Sequence[PromptTemplate],
    synthetic: bool,
    model_is_synthetic: bool | None,
) -> dict[str, Any]:
    """`config.json`: what decides the answers. Pictures may be added between starts of a run."""
    config = resolved_config(
        options,
        script="describe_images",
        templates={template.name: dict(template.content) for template in templates},
        synthetic={"data": synthetic, "model": model_is_synthetic},
    )
    if not options.endpoint:
        from qwen_clip_llava_lora.evaluation_setup import adapter_fingerprint
        from shared.loading import fingerprint, model_folder

        config["model_fingerprint"] = fingerprint(
            model_folder(str(options.model), options.revision)
        )
        config["adapter_fingerprint"] = adapter_fingerprint(options.adapter)
    config["prompts"] = [template.name for template in templates]  # wherever the files lie
    return {key: value for key, value in config.items() if key not in NOT_THE_RUN}


def print_plan(
    options: DescribeOptions,
    templates: Sequence[PromptTemplate],
    pictures: Sequence[Picture],
    problems: Sequence[str],
) -> None:
    """Pictures, prompts as they would be asked, and how many requests that makes."""
    broken = broken_pictures(pictures, progress=False).values()
    for problem in [*problems, *broken]:
        print(f"skipped: {problem}")
    for template in templates:
        print(f"\n{template.name} ({template.language}, answers as {template.parse}, at most "
              f"{template.max_new_tokens} tokens)")  # fmt: skip
        for i, step in enumerate(template.steps):
            earlier = {one.name: f"<{one.name}>" for one in template.steps[:i]}
            print(f"  {step.name}: {template.prompt(i, 0, earlier)}")
        print(f"  row asks: {' / '.join(template.instructions)}")
    steps = options.n * sum(len(template.steps) for template in templates)
    who = options.endpoint or portable_path(str(options.model))
    print(f"\n{len(pictures)} pictures x {steps} prompts = {len(pictures) * steps} requests to "
          f"{who}, and up to {options.malformed_retries} more for each unusable answer; "
          f"run folder {portable_path(run_folder(options))}")  # fmt: skip


def print_summary(metrics: Mapping[str, Any], folder: Path) -> None:
    if any(metrics["synthetic"].values()):
        print("SYNTHETIC toy data or model: these descriptions say nothing about a real one")
    for name, figures in metrics["templates"].items():
        counted = ", ".join(f"{figures[s]} {s}" for s in STATUSES if figures[s])
        cost = figures["cost"]
        print(f"{name}: {counted}; {figures['unusable_answers']['count']} unusable answers, "
              f"{figures['request_seconds'] or 0:.1f} s of requests, "
              f"cost {'not known' if cost is None else f'{cost:.4f}'}")  # fmt: skip
    rows = metrics["rows"]
    print(f"{rows['train']} training and {rows['validation']} validation rows in "
          f"{portable_path(folder)} ({rows['duplicates']} repeated texts left out)")  # fmt: skip
    place, validation = (
        shlex.quote(portable_path(path)) for path in (folder, folder / "validation.json")
    )
    held_out = f" --validation_data {validation}" if rows["validation"] else ""
    print(f"next: compare_prompts.py {place}, or train.py --data {place}{held_out}")
