"""The losses against numbers by hand; negatives that are hard and never true."""

from __future__ import annotations

import math

import pytest
import torch

from lavis_apps.losses import (
    answer_loss,
    contrastive_loss,
    hard_negatives,
    matching_loss,
    next_tokens,
    token_losses,
)


def test_position_t_predicts_token_t_plus_1():
    labels = torch.tensor([[-100, -100, 7, 8], [-100, 5, 6, -100]])
    learned, targets = next_tokens(labels)
    assert learned.tolist() == [[False, True, True, False], [True, True, False, False]]
    assert targets.tolist() == [7, 8, 5, 6]


def test_token_losses_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    targets = torch.tensor([0, 1])
    plain = token_losses(logits, targets, 0.0)
    assert plain.tolist() == pytest.approx([math.log(2), math.log(10)])
    # smoothing 0.3 puts 0.1 on each of three words, and 0.7 more on the true one
    smooth = token_losses(logits, targets, 0.3)
    by_hand = 0.8 * math.log(2) + 0.1 * math.log(4) + 0.1 * math.log(4)
    assert smooth[0].item() == pytest.approx(by_hand)


def test_answers_weigh_as_often_as_they_were_given():
    learned = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    losses = torch.tensor([1.0, 2.0, 5.0, 1.0, 1.0, 1.0])
    weights = torch.tensor([0.7, 0.3, 1.0])
    assert answer_loss(losses, learned, weights).item() == pytest.approx(0.7 * 3 + 0.3 * 5 + 3)


def test_contrastive_loss_is_clip_s_without_doubles():
    similarities = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    to_text = -(math.log(math.exp(2) / (math.exp(2) + 1)) + math.log(1 / (1 + math.exp(-2)))) / 2
    to_image = -(
        math.log(math.exp(2) / (math.exp(2) + math.exp(1)))
        + math.log(math.exp(3) / (math.exp(3) + 1))
    ) / 2  # fmt: skip
    loss = contrastive_loss(similarities, torch.eye(2, dtype=torch.bool))
    assert loss.item() == pytest.approx((to_text + to_image) / 2, rel=1e-5)


def test_a_second_caption_of_a_picture_is_no_negative():
    """Pairs 0 and 1 share their picture: perfect features have the loss of an even target."""
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    similarities = torch.where(same, 100.0, 0.0)
    assert contrastive_loss(similarities, same).item() == pytest.approx(2 / 3 * math.log(2))
    assert contrastive_loss(similarities, torch.eye(3, dtype=torch.bool)) > 0.4


def test_hard_negatives_are_hard_and_false():
    torch.manual_seed(0)
    same = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    # picture 0 finds text 2 most alike, but for its own two
    similarities = torch.full((4, 4), -20.0)
    similarities[0] = torch.tensor([90.0, 90.0, 30.0, 0.0])
    for _ in range(50):
        pictures, texts = hard_negatives(similarities, same)
        assert len(pictures) == len(texts) == 8
        assert not same[pictures, texts].any()
        assert pictures[:4].tolist() == [0, 1, 2, 3]  # a text for each picture
        assert texts[4:].tolist() == [0, 1, 2, 3]  # a picture for each text
        assert texts[0].item() == 2
        assert pictures[4 + 2].item() == 0


def test_negatives_are_drawn_as_often_as_itc_says():
    torch.manual_seed(0)
    same = torch.eye(3, dtype=torch.bool)
    similarities = torch.log(torch.tensor([[9.0, 3.0, 1.0], [1.0, 9.0, 1.0], [1.0, 1.0, 9.0]]))
    drawn = [hard_negatives(similarities, same)[1][0].item() for _ in range(2000)]
    assert drawn.count(0) == 0
    assert drawn.count(1) / 2000 == pytest.approx(0.75, abs=0.03)


def test_a_batch_of_one_picture_has_no_negatives():
    pictures, texts = hard_negatives(torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool))
    assert len(pictures) == len(texts) == 0


def test_likely_true_pairs_do_not_use_up_the_chances():
    """In float32 the softmax over all pairs is exactly 0 for the false ones here."""
    same = torch.eye(2, dtype=torch.bool)
    pictures, texts = hard_negatives(torch.tensor([[500.0, 0.0], [0.0, 500.0]]), same)
    assert (pictures.tolist(), texts.tolist()) == ([0, 1, 1, 0], [1, 0, 0, 1])


def test_matching_loss():
    logits = torch.tensor([[0.0, 2.0], [3.0, 0.0], [0.0, 0.0]])
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-3)) + math.log(2)) / 3
    assert matching_loss(logits, 1).item() == pytest.approx(by_hand, rel=1e-5)
