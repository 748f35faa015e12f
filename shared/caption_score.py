"""BLEU, ROUGE-L, CIDEr-D and METEOR of captions: a pure function of captions and references.

The figures are those of pycocoevalcap 1.2, which papers on captioning report, without its Java, its
temporary files and its habit of scoring only the images that have an answer. Corpus intervals come
from a bootstrap over images: of the sums that BLEU is made of, of the images' scores for the rest.

    python -m shared.caption_score RESULTS ANNOTATIONS [--language zh] [--summary]

Reads COCO's files: RESULTS is [{"image_id": 1, "caption": "a dog"}, ...], ANNOTATIONS
{"annotations": [{"image_id": 1, "caption": "one dog"}, ...]}, as captions_val2014.json. Prints one
JSON object. Scores are 0..1, CIDEr 0..10.

What papers leave open, and how it is here. An image without a candidate counts as an empty caption
and is listed; an empty caption scores 0 (ROUGE-L 1 in the case that a reference is empty too). BLEU
of a corpus is no mean of its images' BLEU. CIDEr depends on which images are scored together: words
are weighed by how many of the images' references have them; of a single image there is none.

`shared/caption_metrics.py` has the metrics themselves, `shared/caption_tokens.py` the words.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, TypedDict

from shared.caption_metrics import ORDERS, Documents, Statistics, Tokens, figures
from shared.caption_tokens import TOKENIZERS, tokenize_caption
from shared.options import UserError, guarded, read_json
from shared.significance import FEW_CLUSTERS, N_FLIPS, N_RESAMPLES, PairedComparison

if TYPE_CHECKING:
    import numpy as np

ImageId = int | str
Tokenize = Callable[[str], Tokens]

SINGLE_IMAGE = (
    "CIDEr weighs words by how many images' references have them; with one image all weights are "
    "0, so there is none (pycocoevalcap prints 0)"
)
_PIECE = 2**22  # numbers of a matrix of resamples at a time (32 MB)


class CaptionScores(TypedDict):
    """Scores of one set of captions. A corpus value is None where `notes` says why."""

    n: int  # images scored: all that have references
    tokenizer: str
    corpus: dict[str, float | None]
    intervals: dict[str, dict[str, Any]]  # metric: low and high (95 %), and a note where needed
    per_image: dict[ImageId, dict[str, float]]
    missing: list[ImageId]  # images without a candidate: scored as empty captions
    empty: list[ImageId]  # images whose candidate has no token
    notes: dict[str, str]  # by metric, and `missing`


def score_captions(
    references: Mapping[ImageId, Sequence[str]],
    candidates: Mapping[ImageId, str],
    tokenize: Tokenize | None = None,
    language: str = "en",
    *,
    meteor: bool = True,
    spice: bool = False,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> CaptionScores:
    """Score one caption an image against the references of all images.

    `tokenize` takes the place of `tokenize_caption(text, language)`; `language` then says which
    stages METEOR has. METEOR is version 1.5 where Java and its jar are present, else `METEOR_nltk`,
    which is another metric (shared/caption_extras.py).
    `spice` asks for SPICE; where that can't run, `notes` says why and the rest stands.

    Raises ValueError, naming the image, for a candidate whose image has no references, an image
    with an empty list of them and a caption that is no string, and for no images at all.
    """
    words, tokenizer = _tokenizer(tokenize, language)
    reference_tokens = _reference_tokens(references, words)
    statistics = Documents(list(reference_tokens.values())).statistics(
        _candidate_tokens(reference_tokens, candidates, words)
    )
    notes = _add_extras(statistics, reference_tokens, language, meteor, spice)
    ids = list(reference_tokens)
    missing = [image_id for image_id in ids if image_id not in candidates]
    if len(ids) == 1:
        notes["CIDEr"] = SINGLE_IMAGE
    if missing:
        notes["missing"] = (
            f"{len(missing)} of {len(ids)} images have no caption and count as empty; "
            "pycocoevalcap refuses such a set"
        )
    return CaptionScores(
        n=len(ids),
        tokenizer=tokenizer,
        corpus=statistics.corpus(),
        intervals=_intervals(statistics, n_resamples, seed),
        per_image={
            image_id: dict(zip(statistics.names, row, strict=True))
            for image_id, row in zip(ids, statistics.images().tolist(), strict=True)
        },
        missing=missing,
        empty=[i for i, tokens in zip(ids, statistics.tokens, strict=True) if not tokens],
        notes=notes,
    )


def compare_captions(
    references: Mapping[ImageId, Sequence[str]],
    base: Mapping[ImageId, str],
    tuned: Mapping[ImageId, str],
    tokenize: Tokenize | None = None,
    language: str = "en",
    *,
    meteor: bool = True,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> dict[str, PairedComparison]:
    """Tuned minus base over the same images, for every metric, in the metric's own unit.

    The interval is the bootstrap of the difference, both sets drawn at the same images. The p-value
    is two-sided and comes from swapping the two captions of images at random and computing the
    corpus figure anew each time (approximate randomisation: Riezler, Maxwell 2005), all swaps where
    there are few images; for a metric that is a mean that is the sign-flip test. Wins and losses
    count images, for BLEU by the images' own BLEU. METEOR is compared by the mean of its images.
    Raises ValueError as `score_captions`.
    """
    words, _ = _tokenizer(tokenize, language)
    reference_tokens = _reference_tokens(references, words)
    documents = Documents(list(reference_tokens.values()))
    both = []
    for candidates in (base, tuned):
        statistics = documents.statistics(_candidate_tokens(reference_tokens, candidates, words))
        _add_extras(statistics, reference_tokens, language, meteor, spice=False)
        both.append(statistics)
    return _compare(both[0], both[1], n_resamples, seed)


# --- Captions to tokens ---------------------------------------------------------------------------


def _tokenizer(tokenize: Tokenize | None, language: str) -> tuple[Tokenize, str]:
    """The function and its name for the record."""
    if tokenize is not None:
        return tokenize, f"given: {getattr(tokenize, '__qualname__', type(tokenize).__name__)}"
    if language not in TOKENIZERS:
        raise ValueError(f"unknown language {language!r}; one of {', '.join(TOKENIZERS)}")
    return (lambda text: tokenize_caption(text, language)), TOKENIZERS[language]


def _reference_tokens(
    references: Mapping[ImageId, Sequence[str]], words: Tokenize
) -> dict[ImageId, list[Tokens]]:
    if not references:
        raise ValueError("no references: there is no image to score")
    tokens: dict[ImageId, list[Tokens]] = {}
    for image_id, captions in references.items():
        if isinstance(captions, str) or not isinstance(captions, Sequence) or not captions:
            raise ValueError(
                f"references of image {image_id!r}: {captions!r:.60}, must be a list of captions"
            )
        for i, caption in enumerate(captions):
            _check_text(caption, f"references of image {image_id!r}, caption {i}")
        tokens[image_id] = [words(caption) for caption in captions]
    return tokens


def _candidate_tokens(
    ids: Mapping[ImageId, Any], candidates: Mapping[ImageId, str], words: Tokenize
) -> list[Tokens]:
    """Tokens in the order of `ids`; an image without a candidate has none."""
    for image_id, caption in candidates.items():
        if image_id not in ids:
            raise ValueError(f"candidate of image {image_id!r}: that image has no references")
        _check_text(caption, f"candidate of image {image_id!r}")
    return [words(candidates[image_id]) if image_id in candidates else [] for image_id in ids]


def _check_text(caption: Any, where: str) -> None:
    if not isinstance(caption, str):
        raise ValueError(f"{where}: {type(caption).__name__} {caption!r:.60}, must be a string")


def _add_extras(
    statistics: Statistics,
    references: Mapping[ImageId, list[Tokens]],
    language: str,
    meteor: bool,
    spice: bool,
) -> dict[str, str]:
    """METEOR's and SPICE's images and corpus values beside the others; returns what they note."""
    import numpy as np

    from shared.caption_extras import meteor_scores, spice_scores

    notes: dict[str, str] = {}
    for scores in [meteor_scores] * meteor + [spice_scores] * spice:
        extra = scores(list(references.values()), statistics.tokens, language)
        notes[extra.name] = extra.note
        if extra.corpus is None:
            statistics.given[extra.name] = None
        else:
            statistics.means[extra.name] = np.array(extra.per_image)
            statistics.given[extra.name] = extra.corpus
    return notes


# --- How sure: intervals and differences ----------------------------------------------------------


def _intervals(statistics: Statistics, n_resamples: int, seed: int) -> dict[str, dict[str, Any]]:
    """95 % percentile intervals of the corpus figures, images drawn with replacement.

    CIDEr's weights stay those of the whole set: an image's CIDEr is what is drawn.
    """
    import numpy as np

    columns = statistics.columns()
    n_images = len(columns)
    note = _sample_note(n_images)
    if n_images == 1:
        return {name: _interval(None, n_images, note) for name in statistics.names}
    drawn = np.concatenate(
        [figures(draws @ columns, n_images) for draws in _draws(n_images, n_resamples, seed)]
    )
    found = {}
    for name, samples in zip(statistics.names, drawn.T, strict=True):
        found[name] = _interval(_limits(samples), n_images, note)
        if name == "CIDEr":
            _add_note(found[name], "the words' weights are this set's, not drawn anew")
        elif name == "METEOR":
            found[name]["mean"] = float(statistics.means[name].mean())
            _add_note(found[name], "of the mean over images, which is not the corpus value")
    return found


def _compare(
    base: Statistics, tuned: Statistics, n_resamples: int, seed: int
) -> dict[str, PairedComparison]:
    import numpy as np

    names = [name for name in base.names if name in tuned.means or name not in base.means]
    columns = [_chosen(base, names), _chosen(tuned, names)]
    n_images = len(columns[0])
    observed = _difference(columns[0].sum(0), columns[1].sum(0), n_images)
    own = _difference(columns[0], columns[1], 1)  # [I, 4 + M]
    own[abs(own) <= 1e-9] = 0.0
    # Without a matched n-gram on either side an image's BLEU differs by its small constants only.
    unmatched = (base.counts[:, -ORDERS:] == 0) & (tuned.counts[:, -ORDERS:] == 0)
    own[:, :ORDERS][unmatched] = 0.0
    note = _sample_note(n_images)
    limits: list[tuple[float, float] | None] = [None] * len(names)
    p_values: list[float | None] = [None] * len(names)
    detectable: list[float | None] = [None] * len(names)
    if n_images > 1:
        drawn = np.concatenate(
            [
                _difference(draws @ columns[0], draws @ columns[1], n_images)
                for draws in _draws(n_images, n_resamples, seed)
            ]
        )
        limits = [_limits(samples) for samples in drawn.T]
        p_values = _swap_test(columns[0], columns[1], seed)
        # Power .8 at two-sided .05, by the spread of the resampled differences.
        powered = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)
        detectable = [
            powered * float(samples.std()) if limit else None
            for samples, limit in zip(drawn.T, limits, strict=True)
        ]
    compared = {}
    for i, name in enumerate(names):
        notes = [note] if note else []
        if n_images > 1 and limits[i] is None:
            notes.append("no image's difference varies: no interval")
        if name == "CIDEr":
            notes.append("the words' weights are this set's, not drawn anew")
        if name == "METEOR":
            notes.append("the mean over images, not the corpus value")
        low, high = limits[i] or (None, None)
        wins, losses = int((own[:, i] > 0).sum()), int((own[:, i] < 0).sum())
        compared[name] = PairedComparison(
            difference=float(observed[i]), low=low, high=high,
            p_value=p_values[i], p_value_mid=None,
            test="captions swapped within images" if n_images > 1 else None,
            n=n_images, n_clusters=n_images,
            wins=wins, ties=n_images - wins - losses, losses=losses,
            minimum_detectable_difference=detectable[i], note="; ".join(notes) or None,
        )  # fmt: skip
    return compared


def _chosen(statistics: Statistics, names: list[str]) -> np.ndarray:
    means = {name: column for name, column in statistics.means.items() if name in names}
    return Statistics(statistics.tokens, statistics.counts, means).columns()


def _difference(base: np.ndarray, tuned: np.ndarray, n_images: int) -> np.ndarray:
    return figures(tuned, n_images) - figures(base, n_images)


def _swap_test(base: np.ndarray, tuned: np.ndarray, seed: int) -> list[float | None]:
    """Two-sided p-values when an image's two captions could as well have changed places.

    All patterns where they are at most `N_FLIPS`, else that many drawn, and the observed one
    counted in. None for a metric in which no image differs.
    """
    import numpy as np

    n_images = len(base)
    sums = base.sum(0), tuned.sum(0)
    observed = abs(_difference(*sums, n_images))
    least = observed * (1 - 1e-9)  # a rounding error below is still as large
    changes = (tuned - base)[(tuned != base).any(1)]
    n_changed = len(changes)
    exhaustive = 2**n_changed <= N_FLIPS
    hits = np.zeros(len(observed))
    for swaps in _all_swaps(n_changed) if exhaustive else _swaps(n_changed, seed):
        moved = swaps @ changes
        hits += (abs(_difference(sums[0] + moved, sums[1] - moved, n_images)) >= least).sum(0)
    p_values = hits / 2**n_changed if exhaustive else (hits + 1) / (N_FLIPS + 1)
    return [float(p) for p in p_values]


def _all_swaps(n: int) -> Iterator[np.ndarray]:
    import numpy as np

    yield (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(float)  # [2**n, n]


def _swaps(n: int, seed: int) -> Iterator[np.ndarray]:
    import numpy as np

    rng = np.random.default_rng(seed)
    for rows in _pieces(N_FLIPS, n):
        packed = rng.integers(0, 256, size=(rows, (n + 7) // 8), dtype=np.uint8)
        yield np.unpackbits(packed, axis=1, count=n).astype(float)  # [rows, n]


def _draws(n_images: int, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often every image is drawn, [rows, I] a piece."""
    import numpy as np

    rng = np.random.default_rng(seed)
    for rows in _pieces(n_resamples, n_images):
        drawn = rng.integers(0, n_images, size=(rows, n_images))
        drawn += n_images * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n_images)
        yield counts.reshape(rows, n_images).astype(float)


def _pieces(total: int, width: int) -> Iterator[int]:
    size = max(1, _PIECE // max(1, width))
    for done in range(0, total, size):
        yield min(size, total - done)


def _limits(samples: np.ndarray) -> tuple[float, float] | None:
    """2.5 and 97.5 % points; None where all samples are alike, which would claim certainty."""
    import numpy as np

    low, high = map(float, np.percentile(samples, [2.5, 97.5]))
    return None if samples.max() - samples.min() <= 1e-12 * max(1.0, abs(high)) else (low, high)


def _sample_note(n_images: int) -> str | None:
    if n_images == 1:
        return "one image: no interval, no test"
    few = f"only {n_images} images: the interval is too narrow"
    return few if n_images < FEW_CLUSTERS else None


def _interval(
    limits: tuple[float, float] | None, n_images: int, note: str | None
) -> dict[str, Any]:
    low, high = limits or (None, None)
    interval: dict[str, Any] = {"low": low, "high": high, "n": n_images}
    if note:
        interval["note"] = note
    elif limits is None:
        interval["note"] = "all images have the same figure: no interval"
    return interval


def _add_note(interval: dict[str, Any], note: str) -> None:
    interval["note"] = f"{interval['note']}; {note}" if "note" in interval else note


# --- COCO's files ---------------------------------------------------------------------------------


def read_references(path: Path) -> dict[ImageId, list[str]]:
    """{image_id: captions} of a captions file in COCO's layout, in its order.

    Raises UserError with file and entry for another kind of file or a wrong entry.
    """
    content = read_json(path)
    rows = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(
            f"{path}: no list under 'annotations'; expected captions in COCO's layout: "
            '{"annotations": [{"image_id": 1, "caption": "a dog"}, ...]}'
        )
    references: dict[ImageId, list[str]] = {}
    for i, row in enumerate(rows):
        image_id, caption = _entry(row, f"{path}: annotations[{i}]")
        references.setdefault(image_id, []).append(caption)
    return references


def read_candidates(path: Path, references: Mapping[ImageId, Any]) -> dict[ImageId, str]:
    """{image_id: caption} of a results file, every entry checked against the images.

    Raises UserError with file and entry for a wrong entry, an image without references, and a
    second caption of one image: which of them would count?
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(
            f"{path}: {type(rows).__name__}, expected a list: "
            '[{"image_id": 1, "caption": "a dog"}, ...]'
        )
    candidates: dict[ImageId, str] = {}
    places: dict[ImageId, int] = {}
    for i, row in enumerate(rows):
        image_id, caption = _entry(row, f"{path}: [{i}]")
        if image_id in candidates:
            raise UserError(
                f"{path}: [{i}]: a second caption of image {image_id!r}, the first is entry "
                f"[{places[image_id]}]; one caption an image is scored"
            )
        if image_id not in references:
            other: ImageId = str(image_id)
            if isinstance(image_id, str) and image_id.isdecimal():
                other = int(image_id)
            hint = f"; the annotations have {other!r}" if other in references else ""
            raise UserError(f"{path}: [{i}]: image {image_id!r} has no references{hint}")
        candidates[image_id] = caption
        places[image_id] = i
    return candidates


def _entry(row: Any, where: str) -> tuple[ImageId, str]:
    if not isinstance(row, dict):
        raise UserError(f"{where}: {type(row).__name__}, expected an object")
    image_id, caption = row.get("image_id"), row.get("caption")
    if type(image_id) not in (int, str):  # True is an int to isinstance
        raise UserError(f"{where}: image_id is {image_id!r}, expected a whole number or a string")
    if not isinstance(caption, str):
        raise UserError(f"{where} (image {image_id!r}): caption is {caption!r:.60}, expected text")
    return image_id, caption


def main(argv: Sequence[str] | None = None) -> None:
    """Raises UserError for files that can't be scored."""
    parser = argparse.ArgumentParser(
        prog="python -m shared.caption_score",
        description="BLEU, ROUGE-L, CIDEr-D and METEOR of a results file, as one JSON object.",
        epilog="Languages: " + "; ".join(f"{name}: {how}" for name, how in TOKENIZERS.items()),
        allow_abbrev=False,
    )
    parser.add_argument("results", type=Path, help="[{image_id, caption}, ...]")
    parser.add_argument("annotations", type=Path, help="{annotations: [{image_id, caption}, ...]}")
    parser.add_argument("--language", choices=list(TOKENIZERS), default="en")
    parser.add_argument("--spice", action="store_true", help="SPICE too, where it can run")
    parser.add_argument("--summary", action="store_true", help="leave out the images' own scores")
    options = parser.parse_args(argv)
    references = read_references(options.annotations)
    candidates = read_candidates(options.results, references)
    try:
        scores = score_captions(
            references, candidates, language=options.language, spice=options.spice
        )
    except ModuleNotFoundError as error:  # jieba
        raise UserError(str(error)) from error
    result = dict(scores)
    if options.summary:
        del result["per_image"]
    print(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    guarded(main)
