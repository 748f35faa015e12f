"""Descriptions of a folder of pictures by prompt templates, as training data.

Asks a local vision-language model, or any server that speaks the OpenAI chat protocol (Qwen-VL on
vLLM, a hosted one), every template's prompts about every picture: plain, with all aspects named, as
a JSON object, as a chain of questions, with examples, in English or Chinese
(`description_prompts/`). Answers are kept as they come and the same command goes on; unusable ones
are asked for again, counted, and never used. Then compare_prompts.py tells the templates apart,
and train.py --data RUN learns from them.

    python qwen_clip_llava_lora/describe_images.py --toy
    python qwen_clip_llava_lora/describe_images.py --images my_pictures \
        --prompts plain_en multi_aspect_zh --model Qwen/Qwen2.5-VL-3B-Instruct
    python qwen_clip_llava_lora/describe_images.py --images my_pictures \
        --prompts structured_json_en question_chain_en --n 2 --temperature 0.7 \
        --endpoint http://localhost:8000/v1 --endpoint_model Qwen/Qwen2.5-VL-7B-Instruct \
        --price_in 0.2 --price_out 0.6

Writes to outputs/qwen_clip_llava_lora/describe_.../: config.json, environment.json, answers.jsonl
(every request), descriptions.jsonl (one a picture, template and sample), train.json,
validation.json, dataset.json (`data_formats.py` reads them), metrics.json (counts, tokens, cost and
time by template).
"""

from __future__ import annotations

import time
from pathlib import Path

from qwen_clip_llava_lora.describe_settings import (
    DescribeOptions,
    prepare_toy,
    run_folder,
    toy_defaults,
)
from qwen_clip_llava_lora.describing import Task, broken_pictures, describe, find_pictures
from qwen_clip_llava_lora.description_askers import EndpointAsker, LocalAsker, unanswered
from qwen_clip_llava_lora.description_data import (
    template_figures,
    write_lines,
    write_training_data,
)
from qwen_clip_llava_lora.description_run import (
    check_samples,
    is_synthetic,
    print_plan,
    print_summary,
    run_config,
)
from qwen_clip_llava_lora.prompt_templates import read_templates
from shared.options import (
    UserError,
    guarded,
    parse_options,
    portable_path,
    start_run,
    write_json,
)


def main(options: DescribeOptions) -> None:
    # Data
    templates = read_templates(options.prompts)
    check_samples(options, templates)
    pictures, root, problems, synthetic = find_pictures(
        Path(str(options.images)), options.limit, options.seed
    )
    tasks = [
        Task(picture, template, sample)
        for picture in pictures
        for template in templates
        for sample in range(options.n)
    ]
    folder = run_folder(options)
    if options.dry_run:
        print_plan(options, templates, pictures, problems)
        return

    # Ask
    model_is_synthetic = is_synthetic(options)
    if start_run(folder, run_config(options, templates, synthetic, model_is_synthetic)):
        print(f"continuing {portable_path(folder)}")
    answers = folder / "answers.jsonl"
    broken = broken_pictures(
        pictures, decoded={task.picture.name for task in unanswered(tasks, answers)}
    )
    for task in tasks:
        if task.picture.name in broken:
            task.status, task.problem = "skipped", broken[task.picture.name]
    problems += broken.values()
    for problem in problems:
        print(f"skipped: {problem}")
    started = time.perf_counter()
    ask = (EndpointAsker if options.endpoint else LocalAsker)(options, answers)
    describe(tasks, ask, options.malformed_retries)
    seconds = time.perf_counter() - started

    # Save
    write_lines(folder / "descriptions.jsonl", (task.record() for task in tasks))
    counts = write_training_data(
        folder, tasks, root, model=portable_path(options.model_name),
        source=portable_path(str(options.images)),
        synthetic=synthetic or bool(model_is_synthetic), share=options.validation_share,
        seed=options.seed,
    )  # fmt: skip
    metrics = {
        "version": 1,
        "script": "describe_images",
        "synthetic": {"data": synthetic, "model": model_is_synthetic},
        "model": portable_path(options.model_name),
        "pictures": len(pictures),
        "image_root": portable_path(root),
        "data_problems": {"count": len(problems), "first": problems[:20]},
        "rows": counts,
        "complete": all(task.status != "missing" for task in tasks),
        "seconds_of_this_start": round(seconds, 3),
        "templates": {
            template.name: template_figures(
                [task for task in tasks if task.template is template],
                options.price_in, options.price_out,
            )
            for template in templates
        },
    }  # fmt: skip
    write_json(folder / "metrics.json", metrics)
    print_summary(metrics, folder)
    gave_up = getattr(ask, "gave_up", None)
    if gave_up:
        raise UserError(f"{gave_up}\nWhat is there is saved; the same command goes on.")
    if not counts["train"] + counts["validation"]:
        raise UserError(f"no description could be used; {folder / 'metrics.json'} says why")


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                DescribeOptions,
                description=__doc__.split("\n")[0],
                toy_defaults=toy_defaults(),
                prepare_toy=prepare_toy,
            )
        )
    )
