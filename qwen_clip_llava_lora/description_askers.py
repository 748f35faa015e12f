"""Who is asked for descriptions: a model on this machine, or an OpenAI-compatible server.

A local model gets a round in batches by picture, each picture encoded once for all templates
(`shared.answering`), a server with bounded concurrency (`shared.endpoint`). Every answer is a line
of `answers.jsonl`, flushed as it comes, by which a later start goes on: it replays what is there
and asks what is missing.

    python -m pytest tests/qwen_clip_llava_lora/test_describe.py

Appends to `answers.jsonl`. No torch but with a local model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qwen_clip_llava_lora.describe_settings import DescribeOptions
from qwen_clip_llava_lora.describing import Reply, Task
from shared.images import open_image
from shared.options import UserError

SEED_STEP = 1_000  # seeds of a picture's samples and tries lie between two values of --seed


def unanswered(tasks: Sequence[Task], path: Path) -> list[Task]:
    """Those whose next prompt has no usable record yet."""
    from shared.answering import read_records

    records = read_records(path)
    return [task for task in tasks if records.get(task.request_key, {}).get("status") != "ok"]


class LocalAsker:
    """A model on this machine, loaded when the first prompt is to be answered. Greedy."""

    def __init__(self, options: DescribeOptions, path: Path) -> None:
        self.options = options
        self.path = path
        self.model: Any = None

    def __call__(self, tasks: Sequence[Task]) -> dict[str, Reply]:
        from shared.answering import answer_questions, read_records

        # together what is answered alike: tokens of the answer, and pictures shown before
        groups: dict[Any, list[Task]] = defaultdict(list)
        for task in unanswered(tasks, self.path):
            shown = tuple(example.picture for example in task.template.shown)
            groups[task.template.max_new_tokens, shown].append(task)
        for (max_new_tokens, shown), own in groups.items():
            model = self.load()
            model.max_new_tokens = max_new_tokens
            model.tags_are_meant = bool(shown)  # else a tag in an answer to an earlier step is text
            answer_questions(
                model,
                [local_job(task) for task in own],
                self.path,
                batch_size=self.options.batch_size,
                **({"open_picture": _with_examples(shown)} if shown else {}),
            )
        records = read_records(self.path)
        return {task.request_key: _local_reply(records[task.request_key]) for task in tasks}

    def load(self) -> Any:
        if self.model is None:
            from shared.vision_language import load_vision_language

            options = self.options
            self.model = load_vision_language(
                str(options.model), options.quantization, options.device, options.dtype,
                options.adapter, options.revision, options.image_handling,
                min_pixels=options.min_pixels, max_pixels=options.max_pixels,
            )  # fmt: skip
            for note in self.model.notes:
                print(f"note: {note}")
        return self.model


def local_job(task: Task) -> Any:
    from shared.answering import Job
    from shared.vqav2 import Question

    prompt: str = task.prompt
    if task.template.shown:
        from shared.vision_language import Turns

        turns = [
            turn
            for example in task.template.shown
            for turn in (("human", f"<image>\n{_first_prompt(task)}"), ("gpt", example.answer))
        ]
        prompt = Turns((*turns, ("human", f"<image>\n{prompt}")))
    question = Question(
        sample_id=task.request_key,
        image=task.picture.path,
        image_name=task.picture.name,
        image_id=task.picture.name,
        question=task.prompt,
    )
    return Job(question, prompt, task.details)


def _first_prompt(task: Task) -> str:
    """The prompt that examples are shown with: a correction is not part of them."""
    return task.template.prompt(task.step, task.sample, task.values)


def _with_examples(shown: Sequence[Path]) -> Callable[[Any], Any]:
    examples = [open_image(path) for path in shown]
    return lambda question: [*examples, open_image(question.image)]


def _local_reply(record: dict[str, Any]) -> Reply:
    return Reply(
        text=record["answer"],
        finish_reason=record["finish_reason"],
        error=record["error"],
        prompt_tokens=None,
        answer_tokens=record["n_tokens"],
        seconds=record["seconds"],
        retries=0,
    )


class EndpointAsker:
    """A server; `gave_up` holds the reason once it no longer answers."""

    def __init__(self, options: DescribeOptions, path: Path) -> None:
        from shared.endpoint import Endpoint

        self.options = options
        self.path = path
        self.gave_up: str | None = None
        self.endpoint = Endpoint(
            base_url=str(options.endpoint),
            model=str(options.endpoint_model),
            parameters={"temperature": options.temperature},
            concurrency=options.concurrency,
            timeout=options.timeout,
            retries=options.retries,
        )

    def __call__(self, tasks: Sequence[Task]) -> dict[str, Reply]:
        from shared.answering import read_records
        from shared.endpoint import ask

        todo = unanswered(tasks, self.path)
        cached: dict[str, dict[str, Any]] = {}  # the same request under another name
        if todo and self.gave_up is None:
            was_there = len(todo) < len(tasks) or any(task.replies for task in tasks)
            requests = (self.request(task) for task in todo)
            try:
                cached = ask(self.endpoint, requests, self.path, progress=True, was_there=was_there)
            except UserError as error:
                self.gave_up = str(error)
        records = read_records(self.path) | cached
        return {
            task.request_key: _endpoint_reply(records[task.request_key])
            for task in tasks
            if task.request_key in records
        }

    def request(self, task: Task) -> Any:
        from shared.endpoint import Request, image_part

        def turn(picture: Path, prompt: str) -> dict[str, Any]:
            part = image_part(picture, self.options.image_side)
            return {"role": "user", "content": [part, {"type": "text", "text": prompt}]}

        messages: list[dict[str, Any]] = []
        for example in task.template.shown:
            assert example.picture is not None
            messages.append(turn(example.picture, _first_prompt(task)))
            messages.append({"role": "assistant", "content": example.answer})
        messages.append(turn(task.picture.path, task.prompt))
        parameters: dict[str, Any] = {"max_tokens": task.template.max_new_tokens}
        if self.options.temperature > 0 or task.attempt:
            # also makes the same words asked again another request, not one to answer from the file
            number = task.sample * (self.options.malformed_retries + 1) + task.attempt
            parameters["seed"] = self.options.seed * SEED_STEP + number
        return Request(task.request_key, messages, parameters, task.details)


def _endpoint_reply(record: dict[str, Any]) -> Reply:
    usage = record.get("usage") or {}
    return Reply(
        text=record["text"],
        finish_reason=record["finish_reason"],
        error=record["error"],
        prompt_tokens=usage.get("prompt_tokens"),
        answer_tokens=usage.get("completion_tokens"),
        seconds=record["seconds"],
        retries=record["retries"] or 0,
    )
