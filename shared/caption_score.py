"""BLEU, ROUGE-L, CIDEr-D and METEOR of captions: a pure function of captions and references.

The figures are those of pycocoevalcap 1.2, which papers on captioning report, without its Java, its
temporary files and its habit of scoring only the images that have an answer. Corpus intervals come
from a bootstrap over images: of the sums that BLEU is made of, of the images' scores for the rest.

    python -m shared.caption_score RESULTS ANNOTATIONS [--language zh] [--summary]
    python -m shared.caption_score SAMPLE_RESULTS ANNOTATIONS --answered_only

Reads COCO's files: RESULTS is [{"image_id": 1, "caption": "a dog"}, ...], ANNOTATIONS
{"annotations": [{"image_id": 1, "caption": "one dog"}, ...]}, as captions_val2014.json. Prints one
JSON object. Scores are 0..1, CIDEr 0..10.

What papers leave open, and how it is here. An image without a candidate counts as an empty caption
and is listed; an empty caption scores 0 (ROUGE-L 1 in the case that a reference is empty too). BLEU
of a corpus is no mean of its images' BLEU. CIDEr depends on which images are scored together: words
are weighed by how many of the images' references have them; of a single image there is none.

`shared/caption_metrics.py` has the metrics themselves, `shared/caption_tokens.py` the words,
`shared/caption_intervals.py` intervals and tests, `shared/caption_files.py` the files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from shared.caption_intervals import compare_statistics, corpus_intervals
from shared.caption_metrics import Documents, Statistics, Tokens
from shared.caption_tokens import TOKENIZERS, tokenize_caption
from shared.options import guarded
from shared.significance import N_RESAMPLES, PairedComparison

ImageId = int | str
Tokenize = Callable[[str], Tokens]

SINGLE_IMAGE = (
    "CIDEr weighs words by how many images' references have them; with one image all weights are "
    "0, so there is none (pycocoevalcap prints 0)"
)


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
        intervals=corpus_intervals(statistics, n_resamples, seed),
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
    return compare_statistics(both[0], both[1], n_resamples, seed)


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


if __name__ == "__main__":
    from shared.caption_files import main

    guarded(main)
