"""One picture or a folder: the class, or unknown, with the scores that say so.

    python llava_openset/predict.py --toy                                # pictures of the toy split
    python llava_openset/predict.py --toy --run outputs/llava_openset/toy
    python llava_openset/predict.py --image photo.jpg --classes dog cat "hot dog" --threshold 0.6
    python llava_openset/predict.py --image photo.jpg --run outputs/llava_openset/RUN
    python llava_openset/predict.py --images folder/ --protocol freetext-list_unknown --json

`--run` takes a finished run's model, prompts, class list and threshold, which belong together:
another --model, --question or --classes beside it is refused.
Without `--run` and `--threshold` a free answer decides by itself and a likelihood decides nothing.
With `--json` one JSON line a picture: `image_path, protocol, answer, prediction, verdict, class,
score, threshold, scores, class_probabilities`, `synthetic` where the model is a toy, and `error`
where the picture cannot be read. Writes no file.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llava_openset.classifying import (
    KEYS,
    Classified,
    check_classes,
    classify,
    refuse_contradiction,
    run_basis,
    verdict,
)
from llava_openset.evaluation_setup import form_of
from llava_openset.prompts import prompt_text
from llava_openset.protocols import ANSWER_SCORES, CHOICE_PROTOCOLS, CHOICE_SCORES
from llava_openset.samples import read_split
from llava_openset.settings import TOY_DEFAULTS, AskingOptions, prepare_toy
from llava_openset.split_settings import TOY_SPLIT
from llava_openset.splitting import COURSE_CLASSES
from shared.images import list_images
from shared.options import (
    ToyOptions,
    UserError,
    guarded,
    manifest_value,
    parse_options,
)

N_TOY = 4  # known and unknown pictures each


@dataclass
class PredictOptions(AskingOptions, ToyOptions):
    """What to look at"""

    image: list[str] = field(default_factory=list, metadata={"help": "one picture or several"})
    images: str | None = field(default=None, metadata={"help": "folder of pictures"})
    classes: list[str] = field(
        default_factory=lambda: list(COURSE_CLASSES),
        metadata={"help": "known classes, those of two words in quotes; default: the course's 12"},
    )
    protocol: str = field(default="likelihood", metadata={"help": f"one of {', '.join(KEYS)}"})
    score: str | None = field(
        default=None,
        metadata={"help": f"what the threshold is of: {', '.join(CHOICE_SCORES)} (first: default); "
                  f"of free answers {', '.join(ANSWER_SCORES)} (last: default)"},
    )  # fmt: skip
    threshold: float | None = field(
        default=None, metadata={"help": "known from this score on; --run has its own"}
    )
    run: str | None = field(
        default=None,
        metadata={"help": "finished run of evaluate.py: its model, question, classes, threshold"},
    )
    json: bool = field(default=False, metadata={"help": "JSON lines instead of text"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol not in KEYS:
            raise UserError(f"--protocol {self.protocol}: one of {', '.join(KEYS)}")
        scores = CHOICE_SCORES if self.protocol in CHOICE_PROTOCOLS else ANSWER_SCORES
        self.score = self.score or (scores[0] if scores is CHOICE_SCORES else "answer")
        if self.score not in scores:
            raise UserError(f"--score {self.score}: {self.protocol} has {', '.join(scores)}")
        if self.run and self.threshold is not None:
            raise UserError("--run has its own threshold: give that or --threshold")
        if self.image and self.images:
            raise UserError("give --image or --images, not both")


def main(options: PredictOptions) -> None:
    if options.run:
        options = of_run(options, Path(options.run))
    check_classes(options.classes)
    pictures = pictures_of(options)
    form = form_of(options)
    if options.dry_run:
        print(f"pictures:  {len(pictures)}, first: {pictures[0]}")
        print(
            f"prompt:    {prompt_text(options.protocol, options.classes, options.question, form)!r}"
        )
        print(f"threshold: {options.score} {options.threshold}")
        return
    from shared.vision_language import load_vision_language

    model = load_vision_language(
        options.model, options.quantization, options.device, options.dtype, options.adapter,
        options.revision, options.image_handling, options.max_new_tokens,
    )  # fmt: skip
    synthetic = any(manifest_value(m, "synthetic") for m in (options.model, options.adapter) if m)
    n_errors = 0
    for picture in classify(
        model, options.protocol, pictures, options.classes, options.question, form=form,
        normalisation=options.length_normalisation, batch_size=options.batch_size,
    ):  # fmt: skip
        line = line_of(picture, options, synthetic)
        n_errors += "error" in line
        print(json.dumps(line, ensure_ascii=False) if options.json else text_of(line))
    if synthetic and not options.json:
        print("SYNTHETIC toy model: this says nothing about a real one", file=sys.stderr)
    if n_errors == len(pictures):
        raise UserError("no picture could be answered; see above")


def pictures_of(options: PredictOptions) -> list[str]:
    """--image, those of --images, or of the toy split known and unknown ones of several classes."""
    if options.images:
        return [str(path) for path in list_images(Path(options.images))]
    if options.image:
        return options.image
    if not options.toy:
        raise UserError("which picture? Give --image FILE, --images FOLDER, or --toy")
    split = read_split(TOY_SPLIT)
    return [str(s.path) for known in (True, False) for s in split.examples(known, N_TOY)]


def of_run(options: PredictOptions, folder: Path) -> PredictOptions:
    """The options with all that a finished run's threshold belongs to. Raises UserError."""
    taken, protocols = run_basis(folder)
    refuse_contradiction(options, taken, toy_defaults() if options.toy else {})
    if options.protocol not in protocols:
        raise UserError(
            f"{folder}: no protocol {options.protocol} in it; --protocol "
            f"{', '.join(key for key in protocols if key in KEYS)}"
        )
    try:
        chosen = protocols[options.protocol]["scores"][options.score]["threshold"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}: not a run of llava_openset/evaluate.py (no {error})") from error
    if chosen["value"] is None:
        raise UserError(
            f"{folder}: it has no threshold of {options.score} ({'; '.join(chosen['notes'])}); run "
            "evaluate.py with --part all, or give --threshold without --run"
        )
    return replace(options, **taken, run=None, threshold=chosen["value"])


def line_of(picture: Classified, options: PredictOptions, synthetic: bool) -> dict[str, Any]:
    outcome = picture.outcome
    decided = verdict(outcome, options.score or "", options.threshold)
    line = {
        "image_path": picture.name,
        "protocol": options.protocol,
        "answer": outcome.answer,
        "prediction": outcome.prediction,
        "verdict": decided,
        "class": outcome.prediction if decided == "known" else None,
        "score": options.score,
        "threshold": options.threshold,
        "scores": outcome.scores,
        "class_probabilities": outcome.class_probabilities,
    }
    if synthetic:
        line["synthetic"] = True
    if picture.record["error"]:
        line["error"] = picture.record["error"]
    return line


def text_of(line: dict[str, Any]) -> str:
    if "error" in line:
        return f"{line['image_path']}: error: {line['error']}"
    value = line["scores"][line["score"]]
    is_likeliest = line["class_probabilities"] is not None
    if line["verdict"] is None:
        said = f"{line['prediction']} is likeliest; no threshold, so known or unknown is open"
    elif line["verdict"] == "known":
        said = line["class"]
    else:
        said = f"unknown ({'likeliest' if is_likeliest else 'said'}: {line['answer']!r})"
    threshold = "" if line["threshold"] is None else f", threshold {line['threshold']:.4g}"
    return f"{line['image_path']}: {said}   [{line['score']} {value:.4g}{threshold}]"


def toy_defaults() -> dict[str, Any]:
    from shared.toy_world.shapes import KNOWN_SHAPES

    return {**TOY_DEFAULTS, "classes": list(KNOWN_SHAPES)}


if __name__ == "__main__":
    guarded(
        lambda: main(
            parse_options(
                PredictOptions,
                description=__doc__.split("\n")[0],
                toy_defaults=toy_defaults(),
                prepare_toy=prepare_toy,
            )
        )
    )
