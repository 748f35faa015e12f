"""A symmetric image-text contrastive loss (InfoNCE, as CLIP's, arXiv 2103.00020) beside the
language loss.

A row's picture is the mean of the projector's vectors at its places, its text the mean of the
language model's input embeddings of the answer's words. Input embeddings, because
- they have not seen the picture: hidden states of the answer behind the picture would contain it,
  and matching the two would be trivial;
- the projector writes into this very space, so that both sides can be compared without a new head;
- they cost no pass through the language model, and where they are frozen the text side cannot
  collapse onto the picture side.
The price: word order does not count ("a red circle and a blue square" is the text of "a blue circle
and a red square"). Rows whose texts are the same in this sense are no negatives of each other.
Negatives are the other rows of the micro-batch of one process; the temperature is fixed.

Used by training_model.py with --contrastive_weight above 0; with 0 nothing here runs.
Shapes: B rows, T tokens, N picture tokens of the whole batch, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from shared.options import IGNORE_INDEX

SAME_TEXT = 1 - 1e-5  # cosine from which two texts count as one


def info_nce(pictures: Tensor, texts: Tensor, temperature: float) -> Tensor:
    """The mean of picture -> text and text -> picture cross-entropies; both (B, D), any length.

    Same texts are taken out of each other's negatives. One row alone has no negative: 0.
    """
    pictures = nn.functional.normalize(pictures.float(), dim=-1)
    texts = nn.functional.normalize(texts.float(), dim=-1)
    scores = pictures @ texts.T / temperature  # (B, B): row picture, column text
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    same = (texts @ texts.T).detach() >= SAME_TEXT
    scores = scores.masked_fill(same & ~own, -torch.inf)
    targets = torch.arange(len(scores), device=scores.device)
    both = nn.functional.cross_entropy(scores, targets) + nn.functional.cross_entropy(
        scores.T, targets
    )
    return both / 2


def picture_features(vectors: Tensor, counts: Sequence[int]) -> Tensor:
    """(N, D) in the order of the places, counts (B) of each row -> means (B, D); no row has 0."""
    return torch.stack([own.float().mean(dim=0) for own in vectors.split(list(counts))])


def text_features(embeddings: Tensor, is_word: Tensor) -> Tensor:
    """Embeddings (B, T, D) -> means over the answers' words (B, D)."""
    weights = is_word.unsqueeze(-1).float()
    return (embeddings.float() * weights).sum(dim=1) / weights.sum(dim=1)


def answer_words(input_ids: Tensor, labels: Tensor, special_ids: Iterable[int]) -> Tensor:
    """Which tokens (B, T) are an answer's words: learned, and no end or other special token."""
    special = torch.tensor(sorted(special_ids), device=input_ids.device)
    return (labels != IGNORE_INDEX) & ~torch.isin(input_ids, special)


def contrastive_loss(
    vectors: Tensor,
    input_ids: Tensor,
    labels: Tensor,
    embed: nn.Module,
    *,
    image_token_id: int,
    special_ids: Iterable[int],
    temperature: float,
) -> Tensor:
    """The loss of a batch; `vectors` (N, D) are the projector's output in the order of the places.

    Rows without a picture or without a word in the answer take no part.
    """
    counts = (input_ids == image_token_id).sum(dim=1)  # (B,)
    is_word = answer_words(input_ids, labels, special_ids)  # (B, T)
    takes_part = (counts > 0) & is_word.any(dim=1)
    if int(takes_part.sum()) < 2:
        return vectors.sum() * 0.0
    shown = [own for own in vectors.split(counts.tolist()) if len(own)]
    chosen = [own for own, part in zip(shown, takes_part[counts > 0].tolist(), strict=True) if part]
    pictures = picture_features(torch.cat(chosen), [len(own) for own in chosen])
    words = is_word[takes_part]
    # placeholders may lie outside the vocabulary, so only words are looked up
    ids = input_ids[takes_part].masked_fill(~words, 0)
    return info_nce(pictures, text_features(embed(ids), words), temperature)
