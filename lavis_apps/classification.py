"""Zero-shot classification: which of any number of classes is in a picture.

    classifier = Classifier.open("Salesforce/blip-itm-base-coco")
    (found,) = classifier.classify(["dog.jpg"], ["dog", "cat", "horse"])
    found.label, found.probability, found.top

Each class becomes a sentence: "A picture of {}" for BLIP and BLIP-2, the bare word for CLIP, as in
LAVIS (https://github.com/salesforce/LAVIS/blob/main/app/classification.py), or as many as
`templates` says.

    scoring    score of a class                       softmax over the classes of
    cosine     cosine of picture and class (ITC;      cosine / temperature
               ALBEF and CLIP do the same)
    itm        probability that picture and           the matching head's logit of "they match"
               sentence match

The temperature is the model's where it has one (CLIP 0.01; train.py's BLIPs), else 0.07, LAVIS'
initial value: the published BLIP folders are without the learned one, so their probabilities are
flatter or steeper than LAVIS', never in another order. `temperature` sets another.

Of several templates the normalised text features are averaged and normalised again (CLIP's prompt
ensembles, arXiv 2103.00020, section 3.1.4); with itm the logits and the probabilities are averaged.

"None of these": the softmax shares 1.0 among the classes even where none fits (of one class it is
always 1.0), so the threshold is on the score of the best class: the cosine, or the ITM probability.
Below `none_threshold` the label is None. Cosines of what fits are far below 1 and lie elsewhere in
each model: find the threshold on pictures of your own. An ITM probability of 0.5 means itself.

Reads model folders, pictures and a file of classes; `write_csv` writes answers to a table.

    python lavis_apps/predict.py --task classification --image photos/ --classes dog cat [--toy]
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lavis_apps.features import (
    BATCH_SIZE,
    Family,
    as_family,
    as_list,
    batches,
    checked_texts,
    open_family,
)
from lavis_apps.matching import match_logits, text_features
from lavis_apps.pictures import as_rgb
from lavis_apps.settings import default_model
from shared.images import ImageError
from shared.options import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from lavis_apps.blip import Blip
    from lavis_apps.features import Embedder

Scoring = Literal["cosine", "itm", "itc", "clip"]  # itc, clip: the cosine by its families' names
BLIP_TEMPLATE, CLIP_TEMPLATE = "A picture of {}", "{}"
ONE_CLASS = "one class: its probability is 1.0 for any picture; look at the score"


@dataclass(frozen=True)
class ClassScore:
    """A class: its share of the softmax, and its raw score (cosine or ITM probability)."""

    label: str
    probability: float
    score: float


@dataclass(frozen=True)
class Classification:
    """A picture's classes, likeliest first. `label` is None for "none of these"."""

    label: str | None
    top: tuple[ClassScore, ...]
    note: str = ""  # what to know before the probability is believed

    @property
    def probability(self) -> float:
        """Of the likeliest class, also where it is below the threshold."""
        return self.top[0].probability

    @property
    def score(self) -> float:
        """Of the likeliest class: what the threshold is compared with."""
        return self.top[0].score

    @property
    def probabilities(self) -> dict[str, float]:
        return {c.label: c.probability for c in self.top}


@dataclass(frozen=True)
class Prepared:
    """Classes as the model gets them."""

    asked: tuple[tuple[str, ...], tuple[str, ...]]  # classes, templates
    sentences: list[list[str]]  # of each class
    features: Tensor | None  # (C, P) for the cosine
    note: str


@dataclass(frozen=True)
class ClassList:
    """The classes of a file, and a line for each that stood there twice."""

    classes: tuple[str, ...]
    duplicates: tuple[str, ...]


class Classifier:
    """A model and the way it scores."""

    def __init__(
        self,
        model: Blip | Family | Embedder,
        scoring: Scoring = "cosine",
        *,
        temperature: float | None = None,
    ) -> None:
        """Of a loaded model. Raises UserError for a scoring that it has not."""
        self.family = as_family(model)
        if scoring not in ("cosine", "itm", "itc", "clip"):
            raise UserError(f"scoring {scoring!r}: cosine (also called itc and clip) or itm")
        self.scoring = "itm" if scoring == "itm" else "cosine"
        if self.scoring == "itm" and not self.family.fuses:
            raise UserError(
                f"{self.family.folder}: a CLIP has no matching head, so no scoring itm; take "
                "scoring cosine, or a BLIP for matching such as Salesforce/blip-itm-base-coco"
            )
        if temperature is not None and not temperature > 0:
            raise UserError(f"temperature {temperature}: a number above 0")
        if temperature is not None and self.scoring == "itm":
            raise UserError("temperature: of the cosine alone; scoring itm has the head's logits")
        self.temperature = self.family.temperature if temperature is None else temperature
        self.prepared: Prepared | None = None

    @classmethod
    def open(
        cls,
        model: str | Path = "",
        scoring: Scoring = "cosine",
        *,
        temperature: float | None = None,
        device: str = "auto",
        dtype: str = "auto",
        adapter: str | Path | None = None,
    ) -> Classifier:
        """Of a model folder or a downloaded Hub id. Raises MissingError, UserError."""
        name = model or default_model("classification")
        family = open_family(name, device=device, dtype=dtype, adapter=adapter)
        return cls(family, scoring, temperature=temperature)

    @property
    def default_template(self) -> str:
        return BLIP_TEMPLATE if self.family.fuses else CLIP_TEMPLATE

    def classify(
        self,
        images: Sequence[Image | Path | str] | Image | Path | str,
        classes: Sequence[str],
        *,
        templates: Sequence[str] | None = None,
        none_threshold: float | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[Classification]:
        """A `Classification` a picture (PIL or file).

        `templates`: sentences with {} where the class goes. Raises UserError for no class, an empty
        one, one that stands twice, or a template without {}; ImageError for a broken file.
        """
        import torch

        lowest = 0 if self.scoring == "itm" else -1
        if none_threshold is not None and not lowest <= none_threshold <= 1:
            kind = "an ITM probability" if self.scoring == "itm" else "a cosine"
            raise UserError(f"none_threshold {none_threshold}: {kind} is between {lowest} and 1")
        found = []
        with torch.no_grad():
            ready = self.prepare(classes, templates)
            for batch in batches(as_list(images), batch_size):
                logits, scores = self.score([as_rgb(picture) for picture in batch], ready)
                for row, raw in zip(logits.softmax(-1).tolist(), scores.tolist(), strict=True):
                    found.append(classification(classes, row, raw, none_threshold, ready.note))
        return found

    def prepare(self, classes: Sequence[str], templates: Sequence[str] | None) -> Prepared:
        """Sentences and features of the classes; those of the last call are kept, so that a folder
        or a data set can be asked batch by batch. Raises UserError as `classify` does."""
        check_classes(classes)
        chosen = [self.default_template] if templates is None else as_list(templates)
        asked = (tuple(classes), tuple(chosen))
        if self.prepared is not None and self.prepared.asked == asked:
            return self.prepared
        if not chosen:
            raise UserError("no template given: leave templates out for the default")
        for template in chosen:
            if "{}" not in template:
                raise UserError(f"template {template!r}: it needs {{}} where the class goes")
        raw = [[t.replace("{}", name.strip()) for t in chosen] for name in classes]
        sentences = [checked_texts(own, self.family.process) for own in raw]
        # a class without a word, inside its sentence
        checked_texts(classes, self.family.process, what="class")
        first: dict[str, int] = {}
        for number, own in enumerate(sentences, start=1):
            before = first.setdefault("\n".join(own), number)
            if before != number:
                raise UserError(
                    f"classes {before} and {number} ({classes[before - 1]}, {classes[number - 1]}) "
                    f"are the same to this model: {own[0]!r}"
                )
        notes = [ONE_CLASS] if len(classes) == 1 else []
        cut = [n for n, own in zip(classes, raw, strict=True) if any(self.family.cut_texts(own))]
        if cut:
            notes.append(f"{len(cut)} classes are longer than the model reads ({cut[0][:40]}...)")
        features = self.class_features(sentences) if self.scoring == "cosine" else None
        self.prepared = Prepared(asked, sentences, features, "; ".join(notes))
        return self.prepared

    def class_features(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        """(C, P) of length one: the mean over a class's sentences."""
        import torch

        flat = text_features(self.family, [text for own in sentences for text in own])
        mean = flat.view(len(sentences), -1, flat.shape[-1]).mean(1)
        return torch.nn.functional.normalize(mean, dim=-1)

    def score(self, images: Sequence[Image], ready: Prepared) -> tuple[Tensor, Tensor]:
        """(B, C) of what goes into the softmax, and (B, C) raw scores; float32 on the CPU."""
        read = self.family.read_images(images)
        if ready.features is not None:
            cosines = self.family.cosines(read, ready.features).float().cpu()
            return cosines / self.temperature, cosines
        assert read.states is not None
        flat = [text for own in ready.sentences for text in own]
        logits = match_logits(self.family, read.states, flat)  # (B, C x templates, 2)
        logits = logits.view(len(images), len(ready.sentences), -1, 2)
        return logits[..., 1].mean(-1), logits.softmax(-1)[..., 1].mean(-1)


def classification(
    classes: Sequence[str],
    probabilities: Sequence[float],
    scores: Sequence[float],
    none_threshold: float | None,
    note: str,
) -> Classification:
    """The classes by probability, of equals in the order given; None below the threshold."""
    order = sorted(range(len(classes)), key=lambda i: -probabilities[i])
    top = tuple(ClassScore(classes[i], probabilities[i], scores[i]) for i in order)
    fits = none_threshold is None or top[0].score >= none_threshold
    return Classification(top[0].label if fits else None, top, note)


def check_classes(classes: Sequence[str]) -> None:
    """Raises UserError for no class, an empty one, or one that stands twice (case and blanks
    around it don't count)."""
    if isinstance(classes, str):
        raise UserError(f"classes {classes!r}: a list of names, one a class")
    if not classes:
        raise UserError("no class given: at least one is needed")
    seen: dict[str, int] = {}
    for number, name in enumerate(classes, start=1):
        if not name.strip():
            raise UserError(f"class {number} of {len(classes)} is empty")
        first = seen.setdefault(name.strip().lower(), number)
        if first != number:
            raise UserError(
                f"class {number} ({name.strip()}) is the same as class {first}: leave one out"
            )


def read_classes(path: Path) -> ClassList:
    """The classes of a file: one a line; blank lines and those that begin with # are passed over.

    A class that stands twice is taken once and reported. Raises UserError for an unreadable file or
    one without a class.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    first: dict[str, tuple[int, str]] = {}
    duplicates = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        before, _ = first.setdefault(name.lower(), (number, name))
        if before != number:
            duplicates.append(f"{path} line {number}: {name!r} stands in line {before} already")
    if not first:
        raise UserError(f"{path}: no class in it; expected one a line (# begins a comment)")
    return ClassList(tuple(name for _, name in first.values()), tuple(duplicates))


def write_csv(
    path: Path, answers: Iterable[tuple[str, Classification | ImageError]], k: int = 5
) -> Mapping[str, str]:
    """Write a row a picture: `image`, `label` ("none of these" below the threshold), then `k` times
    class, probability and score, likeliest first, and `error`. Returns picture -> error.

    The file is whole or not there. Raises UserError where it cannot be written.
    """
    header = ["image", "label"]
    for rank in range(1, k + 1):
        header += [f"class_{rank}", f"probability_{rank}", f"score_{rank}"]
    errors: dict[str, str] = {}
    written = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            rows = csv.writer(file)
            rows.writerow([*header, "error"])
            for name, answer in answers:
                if isinstance(answer, ImageError):
                    errors[name] = str(answer)
                    rows.writerow([name, *[""] * (len(header) - 1), errors[name]])
                    continue
                cells = [name, answer.label or "none of these"]
                for own in answer.top[:k]:
                    cells += [own.label, f"{own.probability:.6f}", f"{own.score:.6f}"]
                rows.writerow([*cells, *[""] * (len(header) - len(cells)), ""])
        os.replace(written, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        written.unlink(missing_ok=True)
    return errors
