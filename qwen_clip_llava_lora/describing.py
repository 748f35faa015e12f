"""Descriptions asked for in rounds: one task for each picture, template and sample.

A round asks every unfinished task's next prompt: the first step, the next one with the answers to
the earlier ones in it, or the same again where an answer was unusable: it is counted, never used.
`description_askers.py` has who is asked.

    python -m pytest tests/qwen_clip_llava_lora/test_describe.py

Used by describe_images.py; reads the pictures' folder or a data file, writes nothing. No torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_clip_llava_lora.prompt_templates import Malformed, PromptTemplate, Values
from shared.images import ImageError, header_size, list_images, open_image
from shared.options import UserError

CUT = "the answer was cut at {n} tokens, it must be shorter"
NOT_ASKED = "not asked: the server did not answer"


@dataclass(frozen=True)
class Picture:
    name: str  # below the picture folder, forward slashes
    path: Path


@dataclass(frozen=True)
class Reply:
    """What came back for one prompt, from either kind of model; None where it is not known."""

    text: str | None
    finish_reason: str | None
    error: str | None
    prompt_tokens: int | None
    answer_tokens: int | None
    seconds: float | None
    retries: int  # of the connection


@dataclass
class Task:
    """One description in the making. `status` is None as long as something is to be asked, then
    ok, malformed, error (of the model or server), skipped (the picture) or missing (not asked)."""

    picture: Picture
    template: PromptTemplate
    sample: int
    step: int = 0
    attempt: int = 0
    status: str | None = None
    problem: str | None = None  # of the last answer, or why there is no description
    values: Values = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # of every unusable answer
    replies: list[Reply] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"{self.picture.name}|{self.template.name}|{self.sample}"

    @property
    def request_key(self) -> str:
        return f"{self.key}|{self.template.steps[self.step].name}|{self.attempt}"

    @property
    def prompt(self) -> str:
        problem = self.problem if self.attempt else None
        return self.template.prompt(self.step, self.sample, self.values, problem)

    @property
    def details(self) -> dict[str, Any]:
        """What stands in the records of its answers."""
        return {
            "image": self.picture.name,
            "template": self.template.name,
            "sample": self.sample,
            "step": self.template.steps[self.step].name,
            "attempt": self.attempt,
            "prompt": self.prompt,
        }

    def take(self, reply: Reply | None, malformed_retries: int) -> None:
        """Go on by what came back: to the next step, to the same again, or to the end."""
        if reply is None:
            self.status, self.problem = "missing", NOT_ASKED
            return
        self.replies.append(reply)
        if reply.error is not None or reply.text is None:
            self.status, self.problem = "error", reply.error
            return
        try:
            if reply.finish_reason == "length":
                raise Malformed(CUT.format(n=self.template.max_new_tokens))
            values = self.template.read(self.step, reply.text)
        except Malformed as problem:
            self.problem = str(problem)
            self.problems.append(self.problem)
            if self.attempt < malformed_retries:
                self.attempt += 1
            else:
                self.status = "malformed"
            return
        self.values |= values
        self.step, self.attempt, self.problem = self.step + 1, 0, None
        if self.step == len(self.template.steps):
            self.step -= 1
            self.status = "ok"

    def record(self) -> dict[str, Any]:
        """Its line of `descriptions.jsonl`."""
        return {
            "sample_id": self.key,
            "image": self.picture.name,
            "template": self.template.name,
            "language": self.template.language,
            "sample": self.sample,
            "status": self.status,
            "description": self.template.describe(self.values) if self.status == "ok" else None,
            "values": self.values,
            "error": self.problem,
            "unusable_answers": self.problems,
            "requests": len(self.replies),
            "retries": sum(reply.retries for reply in self.replies),
            "prompt_tokens": total([r.prompt_tokens for r in self.replies if r.error is None]),
            "answer_tokens": total([r.answer_tokens for r in self.replies if r.error is None]),
            "seconds": total([reply.seconds for reply in self.replies]),
        }


def total(values: Sequence[float | None]) -> Any:
    """The sum; None where a part is not known, or there is none."""
    known = [value for value in values if value is not None]
    return round(sum(known), 6) if known and len(known) == len(values) else None


Asker = Callable[[Sequence[Task]], dict[str, Reply]]  # request_key -> what came back


def describe(tasks: Sequence[Task], ask: Asker, malformed_retries: int) -> None:
    """Ask round by round until every task has a status."""
    while waiting := [task for task in tasks if task.status is None]:
        replies = ask(waiting)
        for task in waiting:
            task.take(replies.get(task.request_key), malformed_retries)


# Pictures


def find_pictures(
    source: Path, limit: int, seed: int
) -> tuple[list[Picture], Path, list[str], bool]:
    """The pictures of a folder or of a data file's rows, their folder, what is wrong with some, and
    whether they are synthetic. `limit` of them are drawn with the seed and stay in order.

    Raises UserError where there is none.
    """
    from shared.options import manifest_value

    problems: list[str] = []
    if source.is_dir():
        root, paths = source, list_images(source)
    else:
        root, paths = _pictures_of_rows(source, problems)
    found = [
        Picture(path.relative_to(root).as_posix(), path) for path in dict.fromkeys(paths)
    ]  # two rows may show one picture
    if not found:
        raise UserError(
            f"{source}: no row has a picture ({'; '.join(problems[:1]) or 'text only'})"
        )
    if limit and limit < len(found):
        chosen = set(random.Random(seed).sample(range(len(found)), limit))
        found = [picture for i, picture in enumerate(found) if i in chosen]
    places = {root, root.parent, source.parent}
    synthetic = any(bool(manifest_value(place, "synthetic")) for place in places)
    return found, root, problems, synthetic


def _pictures_of_rows(source: Path, problems: list[str]) -> tuple[Path, list[Path]]:
    import os

    from qwen_clip_llava_lora.data_formats import open_data
    from shared.conversation_files import RowError, row_images

    data = open_data(source)
    root, paths = Path(os.path.abspath(data.image_root)), []
    for i in range(len(data.rows)):
        try:
            shown = row_images(data.rows[i], root)
        except RowError as error:
            problems.append(f"{source} row {i}: {error}")
            continue
        except UserError as error:
            problems.append(str(error))
            continue
        paths += [picture for picture in shown if isinstance(picture, Path)]
        if any(not isinstance(picture, Path) for picture in shown):
            problems.append(f"{source} row {i}: its picture is inside the row; write it as a file")
    return root, paths


def broken_pictures(
    pictures: Sequence[Picture], decoded: Collection[str] = (), progress: bool = True
) -> dict[str, str]:
    """Picture -> what is wrong with it. The `decoded` ones are read whole, of the others the
    header alone."""
    from tqdm import tqdm

    broken = {}
    for picture in tqdm(pictures, desc="checking pictures", disable=None if progress else True):
        try:
            if picture.name in decoded:
                open_image(picture.path)
            else:
                header_size(picture.path)
        except ImageError as error:
            broken[picture.name] = str(error)
    return broken
