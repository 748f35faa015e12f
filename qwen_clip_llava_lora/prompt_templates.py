"""Prompt templates of describe_images.py: the data files, the prompts, how answers are read.

A template is a YAML file of `description_prompts/` or one's own:

    language: en                       # or zh
    steps:                             # asked one after another
      - name: objects
        prompt: What is to be seen?    # or a list of wordings: sample k takes wording k, in turn
      - name: description
        prompt: "Describe it. You have seen: {objects}"   # answers of earlier steps by their name
    instructions: [Describe the image.]   # what the trained model is asked instead
    aspects: {colour: [red, green]}       # what it should cover, and words that show it
    max_new_tokens: 256                   # of each step's answer
    parse: json                           # text (default) or json: of the last step's answer
    fields: {caption: text, objects: list}   # that the JSON object must have; a list may be empty
    description: "{caption}"              # the text to train on; default: the last step's answer
    correction: "It was {problem}. Again: ..."   # put behind a prompt whose answer was unusable
    examples:                             # few-shot: texts stand in the prompt at {examples},
      - answer: A dog runs on grass.      # those with a picture (a path beside the file) are
        picture: dog.jpg                  # earlier turns of the chat

    python -m pytest tests/qwen_clip_llava_lora/test_describe.py

Reads the template files; writes nothing. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shared.options import UserError

FOLDER = Path(__file__).parent / "description_prompts"
PLACEHOLDER = re.compile(r"\{(\w+)\}")
FENCE = re.compile(r"```(?:json)?\s*\n?(.*?)```", re.DOTALL | re.IGNORECASE)
THOUGHT = "</think>"  # ends what a model thinks; its beginning may stand in the prompt
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # of an emoji cut in two: no text
KEYS = (
    "language", "steps", "instructions", "aspects", "max_new_tokens", "parse", "fields",
    "description", "correction", "examples",
)  # fmt: skip
FIELD_KINDS = ("text", "list")
LANGUAGES = ("en", "zh")
COMMA = {"en": ", ", "zh": "、"}
CORRECTION = {
    "en": "Your last answer could not be used: {problem}. Answer again, in the form asked for.",
    "zh": "上一个回答无法使用：{problem}。请按要求的格式重新回答。",
}

Values = dict[str, str | list[str]]  # of a picture: answers by step, the JSON answer's by field


class Malformed(Exception):
    """An answer that cannot be used; the message says why, in English."""


@dataclass(frozen=True)
class Step:
    name: str
    wordings: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    answer: str
    picture: Path | None = None


@dataclass(frozen=True)
class PromptTemplate:
    """One template; `content` is the file as it stands, which runs record."""

    name: str
    language: str
    steps: tuple[Step, ...]
    instructions: tuple[str, ...]
    aspects: Mapping[str, tuple[str, ...]]
    max_new_tokens: int
    parse: str
    fields: Mapping[str, str]
    description: str
    correction: str
    examples: tuple[Example, ...]
    content: Mapping[str, Any]

    @property
    def n_wordings(self) -> int:
        """How many samples of a picture differ in their prompts."""
        return max(len(step.wordings) for step in self.steps)

    @cached_property
    def shown(self) -> tuple[Example, ...]:
        """The examples that are turns with a picture of their own."""
        return tuple(example for example in self.examples if example.picture is not None)

    def prompt(self, step: int, sample: int, values: Values, problem: str | None = None) -> str:
        """What is asked; `problem` is why the last answer to it could not be used."""
        texts = [example.answer for example in self.examples if example.picture is None]
        known = {**self.texts(values), "examples": "\n".join(f"- {text}" for text in texts)}
        wordings = self.steps[step].wordings
        text = filled(wordings[sample % len(wordings)], known).strip()
        if problem is None:
            return text
        return f"{text}\n\n{filled(self.correction, {'problem': problem})}"

    def read(self, step: int, answer: str) -> Values:
        """The values that a step's answer gives. Raises Malformed."""
        text = answer.rpartition(THOUGHT)[2].strip()
        if "<think>" in text:
            raise Malformed("the thinking has no end")
        if not text:
            raise Malformed("the answer is empty")
        name = self.steps[step].name
        if self.parse == "text" or step + 1 < len(self.steps):
            return {name: text}
        return {name: text, **self._fields(text)}

    def _fields(self, text: str) -> Values:
        fenced = FENCE.search(text)
        body = fenced[1] if fenced else text
        start = body.find("{")
        if start < 0:
            raise Malformed("it holds no JSON object")
        try:
            found, _ = json.JSONDecoder().raw_decode(body[start:])
        except ValueError as error:
            raise Malformed(f"not valid JSON ({error})") from error
        values: Values = {}
        for field, kind in self.fields.items():
            value = found.get(field)
            if value is None:
                raise Malformed(f"the field {field!r} is missing")
            if kind == "text" and _is_text(value):
                values[field] = value.strip()
            elif kind == "list" and isinstance(value, list) and all(map(_is_text, value)):
                values[field] = [item.strip() for item in value]
            else:
                expected = "a text" if kind == "text" else "a list of texts"
                raise Malformed(f"the field {field!r} is not {expected}")
        return values

    def describe(self, values: Values) -> str:
        """The text to train on, on one line where the template's own is."""
        return filled(self.description, self.texts(values)).strip()

    def texts(self, values: Values) -> dict[str, str]:
        comma = COMMA[self.language]
        return {k: comma.join(v) if isinstance(v, list) else v for k, v in values.items()}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not HALF_CHARACTER.search(value)


def filled(text: str, known: Mapping[str, str]) -> str:
    """`{name}` replaced once: braces in what is put in stay as they are."""
    return PLACEHOLDER.sub(lambda match: known.get(match[1], match[0]), text)


# Reading


def template_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_templates(names: Sequence[str]) -> list[PromptTemplate]:
    """Templates by name, or by the path of a .yaml file. Raises UserError for one that is not there
    or wrong, and for two of the same name."""
    found: dict[str, PromptTemplate] = {}
    for name in names:
        own = name.endswith((".yaml", ".yml"))
        path = Path(name) if own else FOLDER / f"{name}.yaml"
        if not own and not path.is_file():
            raise UserError(
                f"--prompts {name}: no such template; there are {', '.join(template_names())}, or "
                "give the path of a .yaml file"
            )
        if path.stem in found:
            raise UserError(f"--prompts: {path.stem} is named twice")
        found[path.stem] = read_template(path)
    return list(found.values())


def read_template(path: Path) -> PromptTemplate:
    """Raises UserError with the file and the key at fault."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    try:
        return make_template(path.stem, content, path.parent)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {error}") from error


def make_template(name: str, content: Any, folder: Path) -> PromptTemplate:
    """A template from a file's content; pictures of examples are found in `folder`.

    Raises ValueError naming the key at fault.
    """
    if not isinstance(content, dict):
        raise ValueError("expected keys and values, as description_prompts/plain_en.yaml has them")
    unknown = sorted(set(content) - set(KEYS))
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; known: {', '.join(KEYS)}")
    language = content.get("language")
    if language not in LANGUAGES:
        raise ValueError(f"language: {language!r}, expected {' or '.join(LANGUAGES)}")
    steps = tuple(_step(step, i) for i, step in enumerate(_list(content, "steps")))
    names = [step.name for step in steps]
    if not steps or len(set(names)) < len(names):
        raise ValueError("steps: at least one, each with a name of its own")
    parse = content.get("parse", "text")
    if parse not in ("text", "json"):
        raise ValueError(f"parse: {parse!r}, expected text or json")
    fields = content.get("fields") or {}
    wrong = not isinstance(fields, dict) or any(kind not in FIELD_KINDS for kind in fields.values())
    if wrong or bool(fields) != (parse == "json"):
        raise ValueError("fields: with parse: json, and each is `text` or `list`")
    examples = tuple(_example(one, i, folder) for i, one in enumerate(_list(content, "examples")))
    if len(steps) > 1 and any(example.picture for example in examples):
        raise ValueError("examples: with pictures they need a template of a single step")
    instructions = tuple(map(str, _list(content, "instructions")))
    if not instructions:
        raise ValueError("instructions: at least one, what the trained model will be asked")
    max_new_tokens = content.get("max_new_tokens", 256)
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: {max_new_tokens!r}, expected a whole number from 1")
    template = PromptTemplate(
        name=name,
        language=language,
        steps=steps,
        instructions=instructions,
        aspects=_aspects(content.get("aspects") or {}),
        max_new_tokens=max_new_tokens,
        parse=parse,
        fields=fields,
        description=str(content.get("description") or f"{{{names[-1]}}}"),
        correction=str(content.get("correction") or CORRECTION[language]),
        examples=examples,
        content=content,
    )
    _check_placeholders(template)
    return template


def _list(content: Mapping[str, Any], key: str) -> list[Any]:
    value = content.get(key) or []
    if not isinstance(value, list):
        raise ValueError(f"{key}: expected a list, found {value!r:.40}")
    return value


def _step(content: Any, i: int) -> Step:
    if not isinstance(content, dict) or set(content) != {"name", "prompt"}:
        raise ValueError(f"steps[{i}]: expected `name` and `prompt`")
    prompts = content["prompt"]
    wordings = prompts if isinstance(prompts, list) else [prompts]
    if not wordings or not all(map(_is_text, wordings)):
        raise ValueError(f"steps[{i}].prompt: expected a text, or a list of wordings")
    if not re.fullmatch(r"\w+", str(content["name"])):
        raise ValueError(f"steps[{i}].name: letters, digits and _ only")
    return Step(str(content["name"]), tuple(wordings))


def _example(content: Any, i: int, folder: Path) -> Example:
    known = isinstance(content, dict) and set(content) <= {"answer", "picture"}
    if not known or not _is_text(content.get("answer")):
        raise ValueError(f"examples[{i}]: expected `answer`, and `picture` where it has one")
    picture = content.get("picture")
    if picture is not None and not (folder / str(picture)).is_file():
        raise ValueError(f"examples[{i}].picture: no such file: {folder / str(picture)}")
    return Example(content["answer"].strip(), folder / str(picture) if picture else None)


def _aspects(content: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(content, dict):
        raise ValueError("aspects: expected a list of words for each name")
    for name, words in content.items():
        if not isinstance(words, list) or not words or not all(map(_is_text, words)):
            # YAML 1.1 reads a bare `no` or `on` as true or false
            raise ValueError(f"aspects.{name}: expected a list of words, those like `no` in quotes")
    return {str(name): tuple(words) for name, words in content.items()}


def _check_placeholders(template: PromptTemplate) -> None:
    earlier: list[str] = []
    texts = any(example.picture is None for example in template.examples)
    for step in template.steps:
        for wording in step.wordings:
            _check_text(f"steps: {step.name}", wording, [*earlier, *["examples"] * texts])
        earlier.append(step.name)
    if texts and not any("{examples}" in w for step in template.steps for w in step.wordings):
        raise ValueError("examples: no prompt has {examples}, where they should stand")
    _check_text("description", template.description, [*earlier, *template.fields])
    _check_text("correction", template.correction, ["problem"])


def _check_text(where: str, text: str, known: Collection[str]) -> None:
    for name in PLACEHOLDER.findall(text):
        if name not in known:
            there = ", ".join(f"{{{one}}}" for one in known) or "nothing"
            raise ValueError(f"{where}: {{{name}}} is not known there; known: {there}")
