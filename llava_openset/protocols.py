"""The four protocols: which prompts a sample gets, and what its record says of known and unknown.

`course`: the course's instruction, a free answer, keyword match. `freetext`: a free answer to one
of four prompts, our matcher. `likelihood`: no answer, but how likely each class name is behind the
question. `two_query`: the same with the class list in the prompt, and for a known sample once more
with its own class in neither prompt nor choices (Miller et al. 2024, "Open-Set Recognition in the
Age of Vision-Language Models", ECCV, arXiv 2403.16528): then every class is wrong.

Scores of free answers, higher = more known: probabilities of the answer's tokens where it names a
known class, 0 where it names none. Scores of class likelihoods: a class's is that of its likeliest
name, `mean` log-probability of a token or the names' `sum`; of the softmax over the classes offered
`max_softmax`, `margin` (first minus second) and `entropy` (negated, nats); `energy` is the
logarithm of the summed exponentials of the class scores.

    python -m pytest tests/llava_openset/test_protocols.py

Reads and writes nothing. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from llava_openset.matching import (
    ABSTAIN,
    AMBIGUOUS,
    UNKNOWN,
    keyword_match,
    match_answer,
    synonyms,
)
from llava_openset.prompts import PLAIN_FORM, prompt_text
from llava_openset.samples import Sample
from shared.answering import Job
from shared.options import UserError
from shared.vqav2 import Question

FULL, LEFT_OUT = "full", "left_out"  # the queries of two_query
CHOICE_PROTOCOLS = ("likelihood", "two_query")
ANSWER_SCORES = ("mean_probability", "first_token_probability", "answer")
CHOICE_SCORES = ("max_softmax", "margin", "entropy", "energy")
# Scores that are probabilities of the prediction being right; ECE and Brier score mean something.
PROBABILITIES = ("mean_probability", "first_token_probability", "max_softmax")
DECIMALS = 9

KEYWORD_RULE = (
    "The answer is free text. Prediction: the first class of the list whose name is part of it, "
    "else unknown."
)
MATCH_RULE = (
    "The answer is free text. Prediction: the class that it names, by names, plurals and synonyms; "
    "unknown where it names none or withholds; where it names two (ambiguous), the one named first."
)
CHOICE_RULE = (
    "Every class name is scored by its log-likelihood behind the prompt. A class scores as its "
    "likeliest name; prediction: the class that scores highest, unknown below the threshold."
)
TWO_QUERY_RULE = (
    f"{CHOICE_RULE} Known: the known samples with the full list. Unknown: the same samples with "
    "their own class taken out of prompt and choices, and the split's unknown samples with the "
    "full list. All are kept; the rows that only hold correct ones stand beside them."
)


@dataclass(frozen=True)
class Query:
    """One prompt about one sample. `known`: whether its right class is among those offered."""

    protocol: str
    variant: str | None
    sample: Sample

    @property
    def key(self) -> str:
        """Of its record in the protocol's file."""
        return "#".join(filter(None, (self.sample.sample_id, self.variant)))

    @property
    def protocol_key(self) -> str:
        """What its figures stand under: protocol, of freetext with the variant."""
        return f"freetext-{self.variant}" if self.protocol == "freetext" else self.protocol

    @property
    def known(self) -> bool:
        return self.sample.known and self.variant != LEFT_OUT

    def offered(self, classes: Sequence[str]) -> list[str]:
        """The classes in its prompt and choices."""
        return [c for c in classes if self.variant != LEFT_OUT or c != self.sample.label]


@dataclass(frozen=True)
class Outcome:
    """What a record says, before any threshold.

    `match` is "class", "unknown", "abstain", "ambiguous" or "error"; `prediction` is a class,
    "unknown" or None (error).
    """

    answer: str | None
    match: str
    prediction: str | None
    scores: dict[str, float] = field(default_factory=dict)
    class_probabilities: dict[str, float] | None = None


def queries(protocol: str, samples: Iterable[Sample], variants: Sequence[str] = ()) -> list[Query]:
    """Every prompt of a protocol; `variants` are those of freetext."""
    found = []
    for sample in samples:
        if protocol == "freetext":
            found += [Query(protocol, variant, sample) for variant in variants]
        elif protocol == "two_query":
            asked = (FULL, LEFT_OUT) if sample.known else (FULL,)
            found += [Query(protocol, variant, sample) for variant in asked]
        else:
            found.append(Query(protocol, None, sample))
    return found


def rule_of(protocol: str) -> str:
    """How its records become predictions, in words."""
    rules = {"course": KEYWORD_RULE, "freetext": MATCH_RULE, "two_query": TWO_QUERY_RULE}
    return rules.get(protocol, CHOICE_RULE)


def job_of(query: Query, classes: Sequence[str], question: str, form: str = PLAIN_FORM) -> Job:
    """The query as `shared.answering` asks it; its record holds what scoring needs."""
    sample = query.sample
    details: dict[str, Any] = {
        "sample": sample.sample_id,
        "variant": query.variant,
        "sample_known": sample.known,
        "label": sample.label,
        "part": sample.part,
        "present": list(sample.present),
    }
    offered = query.offered(classes)
    if query.protocol in CHOICE_PROTOCOLS:
        if len(offered) < 2:
            raise UserError(
                f"--protocol {query.protocol}: {len(offered)} class to choose from; it takes two "
                f"known classes{' beside the own one' if query.variant == LEFT_OUT else ''}"
            )
        details["choice_classes"] = [owner for owner, _ in names_of(tuple(offered))]
    return Job(
        Question(
            sample_id=query.key,
            image=sample.path,
            image_name=sample.file,
            image_id=picture_of(sample),
            question=question,
            references=(sample.label,),
        ),
        prompt_text(query.protocol_key, offered, question, form),
        details,
    )


def picture_of(sample: Sample) -> int | str:
    """The picture that a sample is (part of): crops of one picture share it."""
    return sample.file if sample.image_id is None else sample.image_id


@lru_cache(maxsize=256)
def names_of(classes: tuple[str, ...]) -> list[tuple[str, str]]:
    """(class, name) of all names that are scored. A name of two classes is neither's synonym."""
    own = {c.casefold() for c in classes}
    named = [(c, name) for c in classes for name in synonyms(c)]
    owners: dict[str, set[str]] = {}
    for owner, name in named:
        owners.setdefault(name.casefold(), set()).add(owner)
    return [
        (owner, name)
        for owner, name in named
        if name == owner or (name.casefold() not in own and len(owners[name.casefold()]) == 1)
    ]


def choices_of(job: Job) -> list[str]:
    """The names that `score_choices` scores for a job of `job_of`."""
    return [name for _, name in names_of(tuple(dict.fromkeys(job.details["choice_classes"])))]


def outcome_of(
    query: Query, record: Mapping[str, Any] | None, classes: Sequence[str], normalisation: str
) -> Outcome:
    """Prediction and scores of a record; None stands for one that is not there."""
    if record is None or record["status"] != "ok":
        return Outcome(None, "error", None)
    if query.protocol in CHOICE_PROTOCOLS:
        return choice_outcome(record, normalisation)
    return answer_outcome(record, classes, by_keyword=query.protocol == "course")


def answer_outcome(
    record: Mapping[str, Any], classes: Sequence[str], *, by_keyword: bool = False
) -> Outcome:
    """Of a free answer; `record` needs answer, confidence and first_token_confidence."""
    text = record["answer"] or ""
    keyword = keyword_match(text, classes) or UNKNOWN if by_keyword else None
    match = keyword or match_answer(text, classes)
    prediction = match if match in classes else UNKNOWN
    if match == AMBIGUOUS:
        prediction = first_named(text, classes)
    named = prediction != UNKNOWN
    scores = {
        "mean_probability": record["confidence"] or 0.0 if named else 0.0,
        "first_token_probability": record["first_token_confidence"] or 0.0 if named else 0.0,
        "answer": float(named),
    }
    kind = match if match in (UNKNOWN, ABSTAIN, AMBIGUOUS) else "class"
    return Outcome(text, kind, prediction, scores)


def first_named(text: str, classes: Sequence[str]) -> str:
    """Of an ambiguous answer the class named first: that of its shortest beginning which names
    one; unknown where no beginning does (one name that two classes share)."""
    words = text.split()
    for n in range(1, len(words) + 1):
        match = match_answer(" ".join(words[:n]), classes)
        if match in classes:
            return match
    return UNKNOWN


def choice_outcome(record: Mapping[str, Any], normalisation: str) -> Outcome:
    """Of a record of `score_choices` with `choice_classes` beside it."""
    values: dict[str, float] = {}
    for owner, log_prob, n_tokens in zip(
        record["choice_classes"],
        record["choice_log_probs"],
        record["choice_n_tokens"],
        strict=True,
    ):
        value = log_prob / n_tokens if normalisation == "mean" else log_prob
        values[owner] = max(value, values.get(owner, -math.inf))
    best = max(values, key=values.__getitem__)
    energy = values[best] + math.log(sum(math.exp(v - values[best]) for v in values.values()))
    probabilities = {name: math.exp(value - energy) for name, value in values.items()}
    first, second = sorted(probabilities.values(), reverse=True)[:2]
    scores = {
        "max_softmax": first,
        "margin": first - second,
        "entropy": sum(p * math.log(p) for p in probabilities.values() if p > 0),
        "energy": energy,
    }
    return Outcome(
        best,
        "class",
        best,
        {name: round(min(score, 1.0) if name in PROBABILITIES else score, DECIMALS)
         for name, score in scores.items()},
        {name: round(p, 6) for name, p in probabilities.items()},
    )  # fmt: skip
