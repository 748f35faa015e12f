"""The losses that BLIP and CLIP are fine-tuned with, as functions of logits and features.

LM: next-token cross-entropy; an answer counts by how many annotators gave it. ITC: contrastive,
every picture against every text of the batch. ITM: does a picture match a text; its negatives are
drawn where ITC finds them alike (hard), never where the pair is true. transformers' own forward
passes are not used: they take a mean over padding-free tokens only where labels say so, feed the
labels to the decoder as its input (-100 included) and know no weights
(models/blip/modeling_blip.py, `BlipForQuestionAnswering.forward`).

Sources: salesforce/BLIP, models/blip_retrieval.py, blip_vqa.py, blip.py, med.py
(https://github.com/salesforce/BLIP/tree/97a975f). Used by training_model.py.
Shapes: B pairs, T tokens, A answers, K learned tokens, V vocabulary, P features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from shared.options import IGNORE_INDEX


def next_tokens(labels: Tensor) -> tuple[Tensor, Tensor]:
    """labels (B, T) -> (learned (B, T) bool, targets (K,)): position t predicts token t + 1.

    `learned` picks the hidden states that reach the head, so that no other logit is computed.
    """
    shifted = functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    learned = shifted != IGNORE_INDEX
    return learned, shifted[learned]


def token_losses(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """(K, V), (K,) -> (K,): cross-entropy in float32, with BLIP's label smoothing."""
    return functional.cross_entropy(
        logits.float(), targets, reduction="none", label_smoothing=label_smoothing
    )


def answer_loss(losses: Tensor, learned: Tensor, weights: Tensor) -> Tensor:
    """Sum over answers of weight x the sum of its tokens' losses (BLIP divides by the questions).

    `losses` (K,) in the order of `learned` (A, T), `weights` (A,): a question's sum to 1.
    """
    of_answer = learned.nonzero()[:, 0]  # (K,)
    return (losses * weights.to(losses.dtype)[of_answer]).sum()


def contrastive_loss(similarities: Tensor, same: Tensor) -> Tensor:
    """ITC: the mean over pictures and texts of the cross-entropy to their true partners.

    `similarities` (B, B) are cosines over the temperature, picture i and text j; `same` (B, B) says
    which pairs are true: the diagonal, and what shares its picture or its text with it. They share
    the target evenly, so a second caption of a picture is no negative; without such doubles it is
    CLIP's loss (arXiv 2103.00020) and BLIP's without momentum.
    """
    targets = same.float()
    similarities = similarities.float()
    to_text = functional.cross_entropy(similarities, targets / targets.sum(1, keepdim=True))
    to_image = functional.cross_entropy(similarities.T, targets.T / targets.T.sum(1, keepdim=True))
    return (to_text + to_image) / 2


@torch.no_grad()
def hard_negatives(similarities: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs (pictures (M,), texts (M,)) that are false and look true: one picture drawn for each
    text and one text for each picture, with ITC's probability; true pairs have none.

    A row without one false partner in the batch gives no pair: M is at most 2B. Draws from torch's
    generator, whose state a checkpoint keeps.
    """
    index = torch.arange(len(similarities), device=similarities.device)
    drawn = []
    for scores, true in ((similarities, same), (similarities.T, same.T)):
        usable = ~true.all(dim=1)
        # masked before the softmax: a batch whose false pairs are all unlikely still has some
        chances = scores.float().masked_fill(true, -torch.inf)[usable].softmax(dim=1)
        partners = torch.multinomial(chances, 1)[:, 0] if len(chances) else index[:0]
        drawn.append((index[usable], partners))
    (own_pictures, their_texts), (own_texts, their_pictures) = drawn
    return torch.cat([own_pictures, their_pictures]), torch.cat([their_texts, own_texts])


def matching_loss(logits: Tensor, n_true: int) -> Tensor:
    """ITM: mean cross-entropy of (R, 2) logits whose first `n_true` rows are true pairs."""
    truth = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    truth[:n_true] = 1
    return functional.cross_entropy(logits.float(), truth)
