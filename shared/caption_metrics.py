"""BLEU, ROUGE-L and CIDEr-D from tokens: counts of every image, and corpus figures from their sums.

Method and constants are pycocoevalcap's (bleu/bleu_scorer.py, rouge/rouge.py, cider/cider_scorer.py
at https://github.com/salaniz/pycocoevalcap, version 1.2), after Papineni et al. 2002, Lin 2004 and
Vedantam et al. 2015. `shared/caption_score.py` has captions, files, intervals and comparisons.

    python -m pytest tests/shared/test_caption_score.py

Reads and writes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Ngram = tuple[str, ...]
Tokens = list[str]

BLEU = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
ORDERS = len(BLEU)
ROUGE_BETA = 1.2  # weight of recall against precision
CIDER_SIGMA = 6.0  # of the Gaussian penalty on a difference in length, in words


@dataclass
class Statistics:
    """What the corpus figures of one set of candidates are made of, a row an image."""

    tokens: list[Tokens]
    counts: np.ndarray  # [I, 10]: lengths of candidate and reference, its n-grams (4), matched (4)
    means: dict[str, np.ndarray]  # metrics whose corpus value is the mean over images, [I]
    # corpus values from elsewhere: by another program, or None where there can be none
    given: dict[str, float | None] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [*BLEU, *self.means]

    def columns(self) -> np.ndarray:
        """[I, 10 + M]: `counts` and `means`. Sums over images make every figure (`figures`)."""
        import numpy as np

        return np.column_stack([self.counts, *self.means.values()])

    def corpus(self) -> dict[str, float | None]:
        totals = self.columns().sum(0)
        values = figures(totals, len(self.counts)).tolist()
        return dict(zip(self.names, values, strict=True)) | self.given

    def images(self) -> np.ndarray:
        """[I, 4 + M]: every image's own figures, in the order of `names`."""
        return figures(self.columns(), 1)


class Documents:
    """The references of all images, counted once for any number of candidate sets."""

    def __init__(self, references: list[list[Tokens]]) -> None:
        self.tokens = references
        self.counts = [[_ngrams(words) for words in texts] for texts in self.tokens]
        images_with: Counter[Ngram] = Counter()
        for texts in self.counts:
            images_with.update(set().union(*texts))
        self.log_images = math.log(len(self.counts))
        self.weights = {
            ngram: self.log_images - math.log(images) for ngram, images in images_with.items()
        }

    def statistics(self, candidates: list[Tokens]) -> Statistics:
        """Candidates in the order of the images."""
        import numpy as np

        rows, rouge, cider = [], [], []
        for tokens, texts, texts_counts in zip(candidates, self.tokens, self.counts, strict=True):
            counts = _ngrams(tokens)
            rows.append(_bleu_row(counts, texts_counts))
            rouge.append(_rouge_l(tokens, texts))
            cider.append(self._cider(counts, texts_counts))
        means = {"ROUGE_L": np.array(rouge), "CIDEr": np.array(cider)}
        given: dict[str, float | None] = {}
        if len(candidates) == 1:  # all weights are 0
            del means["CIDEr"]
            given["CIDEr"] = None
        return Statistics(candidates, np.array(rows, dtype=float), means, given)

    def _cider(self, counts: Counter[Ngram], references: list[Counter[Ngram]]) -> float:
        """CIDEr-D of one image: mean over references and n-gram lengths of the clipped cosine."""
        vector, norms, length = self._vector(counts)
        total = 0.0
        for reference in references:
            other, other_norms, other_length = self._vector(reference)
            products = [0.0] * ORDERS
            for ngram, value in vector.items():
                in_reference = other.get(ngram)
                if in_reference is not None:
                    products[len(ngram) - 1] += min(value, in_reference) * in_reference
            similarity = sum(
                product / (a * b) if a and b else product
                for product, a, b in zip(products, norms, other_norms, strict=True)
            )
            difference = length - other_length
            total += similarity * math.exp(-(difference**2) / (2 * CIDER_SIGMA**2))
        return 10.0 * total / (ORDERS * len(references))

    def _vector(self, counts: Counter[Ngram]) -> tuple[dict[Ngram, float], list[float], int]:
        """Weighted counts, their norm for every n-gram length, and the number of word pairs."""
        vector: dict[Ngram, float] = {}
        squares = [0.0] * ORDERS
        length = 0
        for ngram, count in counts.items():
            value = vector[ngram] = count * self.weights.get(ngram, self.log_images)
            squares[len(ngram) - 1] += value * value
            if len(ngram) == 2:  # the reference program measures length in pairs
                length += count
        return vector, [math.sqrt(square) for square in squares], length


def _ngrams(tokens: Sequence[str]) -> Counter[Ngram]:
    """How often each run of 1 to 4 words occurs."""
    # A token of two words ("1 1/2", joined by a no-break space) is two words to pycocoevalcap here.
    words = [word for token in tokens for word in token.split()]
    return Counter(
        tuple(words[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1)
    )


def _bleu_row(counts: Counter[Ngram], references: list[Counter[Ngram]]) -> list[int]:
    """Candidate's length, closest reference's (of two as close the shorter), n-grams, matched."""
    length = _n_words(counts)
    closest = min((abs(n - length), n) for n in map(_n_words, references))[1]
    matched = [0] * ORDERS
    for ngram, count in counts.items():
        most = max(reference.get(ngram, 0) for reference in references)
        matched[len(ngram) - 1] += min(count, most)
    return [length, closest, *(max(0, length - n) for n in range(ORDERS)), *matched]


def _n_words(counts: Counter[Ngram]) -> int:
    return sum(count for ngram, count in counts.items() if len(ngram) == 1)


def figures(totals: np.ndarray, n_images: int) -> np.ndarray:
    """Corpus figures from sums of `Statistics.columns` over `n_images`, [..., 10+M] -> [..., 4+M].

    Sums of resampled images do as well; with one image the rows themselves are the sums.
    """
    import numpy as np

    split = 2 + 2 * ORDERS
    return np.concatenate([bleu(totals[..., :split]), totals[..., split:] / n_images], axis=-1)


def bleu(totals: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 from (summed) rows of `_bleu_row`, [..., 10] -> [..., 4].

    The two small constants, which keep a figure without any match above 0, and the brevity penalty
    exp(1 - 1/ratio) are the reference program's.
    """
    import numpy as np

    tiny, small = 1e-15, 1e-9
    ratio = (totals[..., :1] + tiny) / (totals[..., 1:2] + small)
    ngrams, matched = totals[..., 2 : 2 + ORDERS], totals[..., 2 + ORDERS :]
    products = np.cumprod((matched + tiny) / (ngrams + small), axis=-1)
    # A negative exponent only where the candidates are shorter; its size may be beyond a float's.
    penalty = np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
    return products ** (1.0 / np.arange(1, ORDERS + 1)) * penalty


def _rouge_l(candidate: Tokens, references: list[Tokens]) -> float:
    """F-score of the best precision and the best recall, each over all references."""
    candidate = candidate or [""]  # the reference program sees one empty word in an empty caption
    precision = recall = 0.0
    for reference in references:
        common = _longest_common_subsequence(candidate, reference or [""])
        precision = max(precision, common / len(candidate))
        recall = max(recall, common / max(1, len(reference)))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def _longest_common_subsequence(left: Tokens, right: Tokens) -> int:
    lengths = [0] * (len(right) + 1)  # of what has been read of `left` and each start of `right`
    for word in left:
        diagonal = 0
        for j, other in enumerate(right, 1):
            above = lengths[j]
            if word == other:
                lengths[j] = diagonal + 1
            elif lengths[j - 1] > above:
                lengths[j] = lengths[j - 1]
            diagonal = above
    return lengths[-1]
