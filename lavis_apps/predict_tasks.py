"""What predict.py does for each task: opens the model, yields one result (a dict) after another.

Every function takes the options and the pictures and yields rows for `--json` and `--output`: each
has `image` (the path as given; of a search, inside the index's folder), what the task found, and
`synthetic` where the model or the index is a toy's. A
picture that cannot be opened is a row with `error`, in its place, and the rest goes on.

Used by predict.py. Reads pictures and models; writes what `--output_dir` and the outputs that are
no JSON lines (.csv, .npz, .parquet) name.

    python -m pytest tests/lavis_apps/test_predict.py
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis_apps.evaluation_settings import read_lines
from lavis_apps.pictures import opened
from lavis_apps.predict_settings import PredictOptions
from lavis_apps.processors import blip_question
from shared.images import ImageError
from shared.options import UserError, check_output_folder

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Row = dict[str, Any]


def where(options: PredictOptions) -> dict[str, Any]:
    return {"device": options.device, "dtype": options.dtype, "adapter": options.adapter}


def given(options: PredictOptions, *names: str) -> dict[str, Any]:
    """Those options by name that are not None: the others are the task's own defaults."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def rows_of(
    options: PredictOptions,
    paths: Sequence[Path],
    synthetic: bool,
    ask: Callable[[list[tuple[Path, Image]]], list[list[Row]]],
) -> Iterator[Row]:
    """`ask` is given each batch's readable pictures and answers with the rows of each."""
    mark = {"synthetic": True} if synthetic else {}
    for start in range(0, len(paths), options.batch_size):
        batch = list(opened(paths[start : start + options.batch_size]))
        good = [(path, image) for path, image in batch if not isinstance(image, ImageError)]
        found = iter(ask(good) if good else [])
        for path, image in batch:
            if isinstance(image, ImageError):
                yield {"image": str(path), "error": str(image)}
                continue
            for row in next(found):
                yield {"image": str(path)} | row | mark


def numbers(grid: np.ndarray) -> list[list[float]]:
    """A grid for JSON, six digits of each number, as a map without a unit may be small all over."""
    return [[float(f"{value:.6g}") for value in row] for row in grid.tolist()]


def tell(note: str) -> None:
    print(note, file=sys.stderr)


class Drawer:
    """Saves PNG files NUMBER_NAME.png into --output_dir; without one it draws nothing."""

    def __init__(self, folder: str | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.count = 0
        if self.folder is not None:
            check_output_folder(self.folder)

    def save(self, path: Path, grid: np.ndarray, image: Image) -> Row:
        """The grid over its picture; {"drawing": the file}, or nothing."""
        if self.folder is None:
            return {}
        from lavis_apps.heat_maps import heat_map

        return self.write(path, heat_map(grid, image))

    def write(self, path: Path, drawn: Image) -> Row:
        self.count += 1
        content = io.BytesIO()
        drawn.save(content, format="png")
        return {"drawing": self.put(f"{self.count:04d}_{path.stem[:80]}.png", content.getvalue())}

    def put(self, name: str, content: bytes) -> str:
        assert self.folder is not None
        target = self.folder / name
        try:
            target.write_bytes(content)
        except OSError as error:
            raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
        return str(target)


def caption_rows(options: PredictOptions, paths: Sequence[Path]) -> Iterator[Row]:
    from lavis_apps.captioning import Captioner

    captioner = Captioner.open(
        str(options.model), quantization=options.quantization, **where(options)
    )
    settings = given(
        options, "n", "method", "num_beams", "max_length", "min_length", "top_p", "temperature",
        "length_penalty", "repetition_penalty", "prompt", "seed",
    )  # fmt: skip

    def ask(batch: list[tuple[Path, Image]]) -> list[list[Row]]:
        found = captioner.caption([image for _, image in batch], **settings)
        return [
            [{"rank": i, "caption": c.text, "score": c.score} for i, c in enumerate(own, start=1)]
            for own in found
        ]

    return rows_of(options, paths, captioner.synthetic, ask)


def vqa_rows(options: PredictOptions, paths: Sequence[Path]) -> Iterator[Row]:
    from lavis_apps.blip import Blip
    from lavis_apps.vqa import Answerer

    candidates = options.candidates or None
    if options.candidates_file is not None:
        candidates = read_lines(options.candidates_file)
    answerer = Answerer.open(
        str(options.model), quantization=options.quantization, **where(options)
    )
    cut: set[str] = set()
    if isinstance(answerer.model, Blip):
        processed = [blip_question(question, max_words=10**9) for question in options.question]
        flags = answerer.model.cut_texts(processed)
        cut = {q for q, is_cut in zip(options.question, flags, strict=True) if is_cut}
        for question in cut:
            tell(f"note: the model sees the first 35 tokens of the question {question[:40]!r}...")
    drawer = Drawer(options.output_dir)
    settings = given(
        options, "n", "num_beams", "max_length", "min_length", "ranked", "attention"
    ) | {
        "candidates": candidates,
        "history": list(zip(options.history[::2], options.history[1::2], strict=True)),
    }

    def ask(batch: list[tuple[Path, Image]]) -> list[list[Row]]:
        pairs = [(image, question) for _, image in batch for question in options.question]
        found = iter(answerer.answer(*map(list, zip(*pairs, strict=True)), **settings))
        return [
            [row(path, image, question, next(found)) for question in options.question]
            for path, image in batch
        ]

    def row(path: Path, image: Image, question: str, answer: Any) -> Row:
        made: Row = {
            "question": question,
            "answer": answer.answer,
            "confidence": answer.confidence,
            "top": [
                {"answer": a.answer, "probability": a.probability, "score": a.log_likelihood}
                for a in answer.top
            ],
        }
        if question in cut:
            made["cut"] = True
        if answer.attention is not None:
            made["attention"] = numbers(answer.attention)
            made |= drawer.save(path, answer.attention, image)
        return made

    return rows_of(options, paths, answerer.synthetic, ask)


def matching_rows(options: PredictOptions, paths: Sequence[Path]) -> Iterator[Row]:
    from lavis_apps.matching import Matcher

    matcher = Matcher.open(str(options.model), **where(options))

    def ask(batch: list[tuple[Path, Image]]) -> list[list[Row]]:
        found = matcher.match([image for _, image in batch], options.text)
        return [
            [
                {"text": text}
                | ({} if found.itm is None else {"itm": float(found.itm[i, j])})
                | {"itc": float(found.itc[i, j])}
                | ({"cut": True} if j in found.cut_texts else {})
                for j, text in enumerate(options.text)
            ]
            for i in range(len(batch))
        ]

    return rows_of(options, paths, matcher.family.synthetic, ask)


def classification_rows(options: PredictOptions, paths: Sequence[Path]) -> Iterator[Row]:
    from lavis_apps.classification import Classifier, check_classes, read_classes, write_csv

    classes: Sequence[str] = options.classes
    if options.classes_file is not None:
        listed = read_classes(Path(options.classes_file))
        classes = listed.classes
        for duplicate in listed.duplicates:
            tell(f"note: {duplicate}")
    check_classes(classes)
    if options.output is not None and Path(options.output).suffix == ".csv":
        check_output_folder(Path(options.output).parent)
    classifier = Classifier.open(
        str(options.model), options.scoring, temperature=options.temperature, **where(options)
    )
    answers: list[tuple[str, Any]] = []
    n = options.n or 1

    def ask(batch: list[tuple[Path, Image]]) -> list[list[Row]]:
        found = classifier.classify(
            [image for _, image in batch], classes, templates=options.templates or None,
            none_threshold=options.none_threshold,
        )  # fmt: skip
        answers.extend((str(path), own) for (path, _), own in zip(batch, found, strict=True))
        return [
            [
                {
                    "label": own.label,
                    "probability": own.probability,
                    "score": own.score,
                    "top": [
                        {"label": c.label, "probability": c.probability, "score": c.score}
                        for c in own.top[:n]
                    ],
                }
                | ({"note": own.note} if own.note else {})
            ]
            for own in found
        ]

    for row in rows_of(options, paths, classifier.family.synthetic, ask):
        if "error" in row:
            answers.append((row["image"], ImageError(row["error"])))
        yield row
    if options.output is not None and Path(options.output).suffix == ".csv":
        order = {str(path): place for place, path in enumerate(paths)}
        answers.sort(key=lambda answer: order[answer[0]])
        write_csv(Path(options.output), answers, k=min(n, len(classes)))


def feature_rows(options: PredictOptions, paths: Sequence[Path]) -> Iterator[Row]:
    from lavis_apps.feature_files import write_features
    from lavis_apps.features import FeatureExtractor

    extractor = FeatureExtractor.open(str(options.model), **where(options))
    synthetic = extractor.family.synthetic
    if options.output is not None:  # a row a picture in the file, nothing on the screen
        text = options.text[0] if options.text else None
        written = write_features(
            extractor, paths, Path(options.output), text=text, tokens=options.tokens,
            batch_size=options.batch_size, progress=len(paths) > options.batch_size,
        )  # fmt: skip
        for name, why in written.unreadable.items():
            yield {"image": name, "error": f"{name}: {why}"}
        mark = {"synthetic": True} if synthetic else {}
        yield {"output": options.output, "count": written.count} | mark
        return

    def ask(batch: list[tuple[Path, Image]]) -> list[list[Row]]:
        images = [image for _, image in batch]
        found = extractor.extract(images, options.text * len(images) or None)
        rows: list[Row] = [{"image_features": row.tolist()} for row in found.image_features]
        if found.multimodal_features is not None:
            for row, own in zip(rows, found.multimodal_features, strict=True):
                row |= {"text": options.text[0], "multimodal_features": own.tolist()}
        return [[row] for row in rows]

    if options.text:
        found = extractor.extract(texts=options.text)
        for i, (text, row) in enumerate(zip(options.text, found.text_features, strict=True)):
            yield (
                {"text": text, "text_features": row.tolist()}
                | ({"cut": True} if i in found.cut_texts else {})
                | ({"synthetic": True} if synthetic else {})
            )
    yield from rows_of(options, paths, synthetic, ask)


def localization_rows(options: PredictOptions, paths: Sequence[Path]) -> Iterator[Row]:
    from lavis_apps.heat_maps import words_chart
    from lavis_apps.localization import Localizer

    localizer = Localizer.open(str(options.model), **where(options))
    drawer = Drawer(options.output_dir)

    def ask(batch: list[tuple[Path, Image]]) -> list[list[Row]]:
        pairs = [(image, text) for _, image in batch for text in options.text]
        images, texts = zip(*pairs, strict=True)
        found = iter(
            localizer.localize_pairs(
                images, texts, block=options.block, max_tokens=options.max_tokens,
                batch_size=options.batch_size,
            )
        )  # fmt: skip
        return [
            [row(path, image, text, next(found)) for text in options.text] for path, image in batch
        ]

    def row(path: Path, image: Image, text: str, found: Any) -> Row:
        made: Row = {
            "text": text,
            "probability": found.probability,
            "average": numbers(found.average),
            "words": [{"word": w.word, "grid": numbers(w.grid)} for w in found.words],
        } | ({"cut": True} if found.cut else {})
        made |= drawer.save(path, found.average, image)
        if "drawing" in made:
            name = f"{Path(made['drawing']).stem}_words.png"
            made["words_drawing"] = drawer.put(name, words_chart(image, found))
        return made

    return rows_of(options, paths, localizer.blip.synthetic, ask)


def search_rows(options: PredictOptions, paths: Sequence[Path]) -> Iterator[Row]:
    from lavis_apps.search import Searcher

    drawer = Drawer(options.output_dir)
    searcher = Searcher.open(
        str(options.index), model=options.model, images=options.images, reranker=options.reranker,
        **where(options),
    )  # fmt: skip
    hits = searcher.search(
        options.query, options.image, options.n or 1, rerank=options.rerank,
        localize=options.localize, text_weight=options.text_weight,
    )  # fmt: skip
    for hit in hits:
        drawn = {} if hit.heat is None else drawer.write(Path(hit.image), hit.heat)
        yield hit.line() | drawn | ({"synthetic": True} if searcher.synthetic else {})


TASK_ROWS: dict[str, Callable[[PredictOptions, Sequence[Path]], Iterator[Row]]] = {
    "caption": caption_rows,
    "vqa": vqa_rows,
    "matching": matching_rows,
    "classification": classification_rows,
    "features": feature_rows,
    "localization": localization_rows,
    "search": search_rows,
}
