"""The contrastive loss: value and gradient by hand, duplicates, rows that take no part."""

from __future__ import annotations

import math

import pytest
import torch

from qwen_clip_llava_lora.contrastive import (
    answer_words,
    contrastive_loss,
    info_nce,
    picture_features,
    text_features,
)
from shared.options import IGNORE_INDEX

IMAGE, END, PAD = 9, 8, 0


def test_two_rows_by_hand():
    """Unit vectors, temperature 1: both pictures have cosine 1 with their text, 0 with the other.

    Each of the four cross-entropies is log(e + 1) - 1; so is their mean.
    """
    pictures = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    texts = torch.tensor([[5.0, 0.0], [0.0, 0.1]])
    loss = info_nce(pictures, texts, temperature=1.0)
    assert float(loss) == pytest.approx(math.log(math.e + 1) - 1)
    swapped = info_nce(pictures, texts.flip(0), temperature=0.5)
    assert float(swapped) == pytest.approx(math.log(math.exp(2) + 1))


def test_the_gradient_by_hand():
    """Pictures (1, 0), (0, 1) at their own texts, temperature 1. Scores are cosines; with
    p = e / (e + 1) the loss's slope at a wrong pair's score is (1 - p) / 2 from the row and as much
    from the column, both means over two: (1 - p) / 2 in all; at a right pair's -(1 - p) / 2.
    A picture may only turn: along its text it is already, the other text's direction is what
    remains, and of it the wrong score's slope. So d loss / d picture 0 is (0, (1 - p) / 2)."""
    pictures = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    info_nce(pictures, torch.eye(2), temperature=1.0).backward()
    slope = (1 - math.e / (math.e + 1)) / 2
    wanted = torch.tensor([[0.0, slope], [slope, 0.0]])
    torch.testing.assert_close(pictures.grad, wanted)


def test_the_gradient_equals_finite_differences():
    torch.manual_seed(0)
    pictures = torch.randn(4, 3, dtype=torch.float32, requires_grad=True)
    texts = torch.randn(4, 3)
    info_nce(pictures, texts, temperature=0.5).backward()
    step = 1e-2
    with torch.no_grad():
        for i, j in [(0, 0), (1, 2), (3, 1)]:
            up, down = pictures.clone(), pictures.clone()
            up[i, j] += step
            down[i, j] -= step
            slope = (info_nce(up, texts, 0.5) - info_nce(down, texts, 0.5)) / (2 * step)
            assert float(pictures.grad[i, j]) == pytest.approx(float(slope), abs=1e-3)


def test_same_captions_are_no_negatives():
    """Rows 0 and 1 have one text: what is left of each is the pair with row 2."""
    pictures = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    alone = math.log(math.e + 1) - 1  # one negative with cosine 0
    of_row_2 = math.log(math.e + 2) - 1  # two of them
    assert float(info_nce(pictures, texts, 1.0)) == pytest.approx((2 * alone + of_row_2) / 3)
    same = torch.ones(3, 2)
    assert float(info_nce(pictures, same, 1.0)) == 0.0  # nothing to tell apart


def test_one_row_has_no_negative():
    assert float(info_nce(torch.ones(1, 2), torch.ones(1, 2), 0.07)) == 0.0


def test_features_are_means_over_places_and_words():
    vectors = torch.tensor([[1.0, 1.0], [3.0, 5.0], [7.0, 7.0]])
    assert picture_features(vectors, [2, 1]).tolist() == [[2.0, 3.0], [7.0, 7.0]]
    embeddings = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [100.0, 100.0]]])
    is_word = torch.tensor([[True, True, False]])
    assert text_features(embeddings, is_word).tolist() == [[2.0, 1.0]]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows with two places and one word, one without a picture, one with an empty answer."""
    x = IGNORE_INDEX
    input_ids = torch.tensor(
        [[IMAGE, IMAGE, 1, 5, END], [IMAGE, IMAGE, 2, 6, END], [1, 2, 5, END, PAD],
         [IMAGE, IMAGE, 1, END, PAD]]
    )  # fmt: skip
    labels = torch.tensor(
        [[x, x, x, 5, END], [x, x, x, 6, END], [x, x, 5, END, x], [x, x, x, END, x]]
    )
    return input_ids, labels


def test_words_are_the_answers_without_their_end():
    words = answer_words(*batch(), [END, PAD, IMAGE])
    assert words.nonzero().tolist() == [[0, 3], [1, 3], [2, 2]]


def test_rows_without_picture_or_words_take_no_part():
    input_ids, labels = batch()
    embed = torch.nn.Embedding(8, 4)  # the picture's token lies outside of it
    torch.manual_seed(0)
    vectors = torch.randn(6, 4, requires_grad=True)
    loss = contrastive_loss(
        vectors, input_ids, labels, embed, image_token_id=IMAGE,
        special_ids=[END, PAD, IMAGE], temperature=0.5,
    )  # fmt: skip
    pictures = torch.stack([vectors[:2].mean(0), vectors[2:4].mean(0)])
    torch.testing.assert_close(loss, info_nce(pictures, embed.weight[[5, 6]], 0.5))
    loss.backward()
    assert vectors.grad[:4].abs().sum() > 0
    assert vectors.grad[4:].abs().sum() == 0
    alone = contrastive_loss(
        vectors[:2], input_ids[:1], labels[:1], embed, image_token_id=IMAGE,
        special_ids=[END], temperature=0.5,
    )  # fmt: skip
    assert alone.item() == 0.0
