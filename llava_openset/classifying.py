"""Any pictures, asked by one protocol: answer, scores, and known or unknown at a threshold.

Used by predict.py, and by whatever shows single pictures. A protocol is named by its key (course,
freetext-VARIANT, likelihood); two_query needs the right class and so cannot be asked here.

    for picture in classify(model, "likelihood", ["a.jpg"], ["dog", "cat"], "What is it?"):
        print(verdict(picture.outcome, "max_softmax", 0.6))

`check_classes` refuses a list that cannot be told apart; `run_basis` reads what a finished run's
thresholds belong to, and `refuse_contradiction` refuses another wish beside it.

Reads the pictures, and config.json and metrics.json of a run; writes nothing. No torch: the model
brings it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llava_openset.matching import match_answer
from llava_openset.prompts import PLAIN_FORM, TEMPLATES
from llava_openset.protocols import (
    CHOICE_PROTOCOLS,
    UNKNOWN,
    Outcome,
    Query,
    choices_of,
    job_of,
    outcome_of,
)
from llava_openset.samples import Sample
from shared.answering import answer_batch, score_batch
from shared.comparison import locate
from shared.images import open_image
from shared.options import UserError, read_json

if TYPE_CHECKING:
    from PIL.Image import Image

    from shared.vision_language import VisionLanguage

KEYS = tuple(key for key in TEMPLATES if key != "two_query")
Verdict = Literal["known", "unknown"]


@dataclass(frozen=True)
class Classified:
    """A picture's record (with status and error) and what it says."""

    name: str
    record: Mapping[str, Any]
    outcome: Outcome


def classify(
    model: VisionLanguage,
    key: str,
    pictures: Sequence[str],
    classes: Sequence[str],
    question: str,
    *,
    form: str = PLAIN_FORM,
    normalisation: Literal["mean", "sum"] = "mean",
    batch_size: int = 8,
    open_picture: Callable[[str], Image] = open_image,
) -> Iterator[Classified]:
    """Each picture in order; one that cannot be read has a record with status "error"."""
    protocol, _, variant = key.partition("-")
    queries = [
        Query(protocol, variant or None,
              Sample(sample_id=str(i), path=Path(name), file=name, label="", known=False,
                     part="test"))
        for i, name in enumerate(pictures)
    ]  # fmt: skip
    for start in range(0, len(queries), batch_size):
        batch = queries[start : start + batch_size]
        jobs = [job_of(query, classes, question, form) for query in batch]
        if protocol in CHOICE_PROTOCOLS:
            records = score_batch(
                model, jobs, choices_of, lambda q: open_picture(q.image_name), "mean", batch_size,
            )  # fmt: skip
        else:
            records = answer_batch(model, jobs, lambda q: open_picture(q.image_name))
        for query, record in zip(batch, records, strict=True):
            outcome = outcome_of(query, record, classes, normalisation)
            yield Classified(query.sample.file, record, outcome)


def verdict(outcome: Outcome, score: str, threshold: float | None) -> Verdict | None:
    """Known when a class is predicted and its score reaches the threshold.

    Without a threshold the answer alone decides; a likelihood, which always predicts some class,
    then decides nothing: None, as for an error.
    """
    if outcome.prediction is None:
        return None
    if outcome.prediction == UNKNOWN:
        return "unknown"
    if threshold is None:
        return None if outcome.class_probabilities is not None else "known"
    return "known" if outcome.scores[score] >= threshold else "unknown"


def run_basis(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the thresholds of a finished run belong to, as options (model, question, classes, ...),
    and its protocols as metrics.json has them. Raises UserError."""
    for name in ("config.json", "metrics.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: no {name} in it, so it is no finished run of evaluate.py")
    config, metrics = read_json(folder / "config.json"), read_json(folder / "metrics.json")
    try:
        taken: dict[str, Any] = {
            name: config[name]
            for name in ("model", "adapter", "revision", "quantization", "image_handling",
                         "question", "max_new_tokens")
        }  # fmt: skip
        taken["classes"] = metrics["split"]["known"]
        taken["length_normalisation"] = metrics["scoring"]["length_normalisation"]
        protocols = metrics["protocols"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}: not a run of llava_openset/evaluate.py (no {error})") from error
    for name in ("model", "adapter"):
        if taken[name] is not None:
            taken[name] = str(locate(taken[name]))
    return taken, protocols


def check_classes(classes: Sequence[str]) -> None:
    """Raises UserError for an empty list, one with a name twice, or a name like "unknown"."""
    try:
        match_answer("", classes)
    except ValueError as error:
        raise UserError(f"--classes: {error}") from error


def refuse_contradiction(
    options: Any, taken: Mapping[str, Any], toy_defaults: Mapping[str, Any]
) -> None:
    """Raises UserError where an option was set to something else than what a run brings.

    Set is what is not the default; a default that was spelled out cannot be told from it.
    """
    defaults = {f.name: f.default for f in fields(options) if f.default is not MISSING}
    made = {
        f.name: f.default_factory() for f in fields(options) if f.default_factory is not MISSING
    }
    for name, of_run in taken.items():
        value = getattr(options, name)
        default = {**defaults, **made, **toy_defaults}[name]
        same = value == of_run
        if name in ("model", "adapter") and value and of_run:
            same = Path(value).resolve() == Path(of_run).resolve()
        if value != default and not same:
            shown = ", ".join(of_run) if isinstance(of_run, list) else of_run
            raise UserError(
                f"--{name} is another than the run's ({shown}), and its threshold belongs to that: "
                f"leave out --{name}, or --run"
            )
