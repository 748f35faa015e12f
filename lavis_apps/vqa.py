"""Questions about pictures: BLIP (generated, or ranked among candidates), BLIP-2 and LLaVA.

    from lavis_apps.vqa import Answerer
    answerer = Answerer.open("Salesforce/blip-vqa-base")
    answerer.answer([picture], ["What is on the table?"], candidates=["cup", "book"])

Generated answers are BLIP's of LAVIS: 3 beams, at most 10 tokens with the first. An answer's
probability is that of all its tokens and its end. Ranked answers have their log-likelihood as
score, and as probability its share among the candidates that were scored (softmax of the
log-likelihoods). Ranking has two stages, as in BLIP: the candidates with the likeliest first
tokens, then the whole likelihood of those; with at most `RANKED` candidates every one is scored.

A batch of questions gives what each gives alone: the decoder does not attend to the padding behind
shorter questions. transformers' own `BlipForQuestionAnswering.generate` attends to it, and asks
with [CLS] where the weights were trained with [ENC].

Dialogue: BLIP-2 reads earlier turns as LAVIS writes them, "Question: {q} Answer: {a}." each, joined
by a blank; a LLaVA by its chat template. A BLIP answers single questions.

Reads a model folder or a downloaded Hub id; writes nothing.

    python lavis_apps/predict.py --task vqa --image photo.jpg --question "Where is the cat?"
    python lavis_apps/predict.py --task vqa --toy
Shapes: B questions, T tokens, N image tokens, D width, C candidates, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lavis_apps.blip import Blip
from lavis_apps.captioning import is_synthetic, open_speaker
from lavis_apps.decoding import (
    Decoding,
    Generated,
    blip_decode,
    language_decode,
    language_features,
)
from lavis_apps.features import as_list
from lavis_apps.pictures import each_as_rgb
from lavis_apps.processors import blip_question
from lavis_apps.settings import PUBLISHED_MODELS
from shared.options import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

    from shared.vision_language import VisionLanguage

RANKED = 128  # candidates whose whole likelihood is computed (LAVIS' configuration for VQAv2)
RANK_BATCH = 256  # answers in one pass of the decoder
MAX_LENGTH = 10  # tokens of an answer: BLIP's with [DEC], BLIP-2's new ones
LLAVA_MAX_LENGTH = 64


@dataclass(frozen=True)
class RankedAnswer:
    """An answer, its probability (see above for what it is a share of) and log-likelihood."""

    answer: str
    probability: float
    log_likelihood: float


@dataclass(frozen=True)
class VqaAnswer:
    """`confidence` is the first answer's probability; `top` begins with it.

    Generated answers stand in the search's order, which is by mean log-probability and not always
    by probability. `attention` is a (rows, columns) grid that sums to 1, or None.
    """

    answer: str
    confidence: float
    top: tuple[RankedAnswer, ...]
    attention: np.ndarray | None = None


@dataclass(frozen=True)
class Answerer:
    """A loaded model that answers: a BLIP, or a `VisionLanguage` (BLIP-2, LLaVA)."""

    model: Blip | VisionLanguage

    @classmethod
    def open(
        cls,
        model: str | Path = PUBLISHED_MODELS["vqa"],
        *,
        device: str = "auto",
        dtype: str = "auto",
        adapter: str | Path | None = None,
        quantization: str = "none",
    ) -> Answerer:
        """The model of a folder or downloaded Hub id; `quantization` is of a language model.

        Raises MissingError when it is not on this machine, UserError when it answers no questions.
        """
        return cls(open_speaker(model, "vqa", device, dtype, adapter, quantization))

    @property
    def synthetic(self) -> bool:
        return is_synthetic(self.model)

    def answer(
        self,
        images: Sequence[Image | Path | str] | Image | Path | str,
        questions: Sequence[str] | str,
        *,
        candidates: Sequence[str] | None = None,
        history: Sequence[tuple[str, str]] = (),
        n: int = 5,
        attention: bool = False,
        num_beams: int = 3,
        max_length: int | None = None,
        min_length: int = 1,
        ranked: int = RANKED,
    ) -> list[VqaAnswer]:
        """The answer to question i about picture i (PIL or file), each different one encoded once.

        `candidates`: rank these instead of generating. `history`: earlier (question, answer) turns
        in front of every question. At most `n` answers in `top`; generated, at most `num_beams`.
        `attention`: where BLIP's question encoder looked. Raises UserError for an empty question,
        empty or doubled candidates and what the model does not do, ImageError for a broken file.
        """
        import torch

        images, questions = as_list(images), as_list(questions)
        check_questions(images, questions, blip_question if isinstance(self.model, Blip) else str)
        if candidates is not None:
            check_candidates(candidates)
        if n < 1 or ranked < 1:
            raise UserError(f"n {n}, ranked {ranked}: at least 1")
        is_llava = not isinstance(self.model, Blip) and is_chat(self.model)
        if max_length is None:
            max_length = LLAVA_MAX_LENGTH if is_llava else MAX_LENGTH
        decoding = Decoding(
            n=min(n, num_beams), num_beams=num_beams, max_length=max_length, min_length=min_length
        )
        if not questions:
            return []
        pictures = each_as_rgb(images)
        with torch.no_grad():
            if isinstance(self.model, Blip):
                if history:
                    raise UserError("a BLIP answers single questions; history is for BLIP-2, LLaVA")
                return blip_answers(
                    self.model, pictures, questions, candidates, n, ranked, attention, decoding
                )
            if attention:
                raise UserError("picture attention is of BLIP's question encoder alone")
            prompts = [dialogue(self.model, history, question) for question in questions]
            if candidates is None:
                texts = language_decode(self.model, pictures, prompts, decoding)
                return [generated_answer(self.spoken(own)) for own in texts]
            return language_ranking(self.model, pictures, prompts, candidates, n)

    def spoken(self, texts: Sequence[Generated]) -> list[tuple[str, float]]:
        import torch

        asker = self.model
        assert not isinstance(asker, Blip)
        return [
            (asker.make_answer(text.ids, torch.tensor(text.log_probs)).answer, text.log_prob)
            for text in texts
        ]


def check_questions(
    images: Sequence[object], questions: Sequence[str], process: Callable[[str], str]
) -> None:
    if len(images) != len(questions):
        raise UserError(f"{len(questions)} questions about {len(images)} pictures")
    for number, question in enumerate(questions, start=1):
        if not process(question).strip():
            rest = f"has no word: {question[:20]!r}" if question.strip() else "is empty"
            raise UserError(f"question {number} {rest}")


def check_candidates(candidates: Sequence[str]) -> None:
    if isinstance(candidates, str):
        raise UserError(f"candidates {candidates!r}: a list of answers, not one text")
    seen: dict[str, int] = {}
    for number, candidate in enumerate(candidates, start=1):
        key = " ".join(candidate.lower().split())
        if not key:
            raise UserError(f"candidate {number} is empty")
        if key in seen:
            raise UserError(f"candidates {seen[key]} and {number} are the same: {candidate!r}")
        seen[key] = number
    if not seen:
        raise UserError("no candidate is given")


def is_chat(asker: VisionLanguage) -> bool:
    return asker.family.config.model_type == "llava"


def dialogue(asker: VisionLanguage, history: Sequence[tuple[str, str]], question: str) -> str:
    """The prompt that asks a question behind earlier turns."""
    if is_chat(asker):
        from shared.vision_language import Turns

        earlier = [turn for q, a in history for turn in (("human", q), ("gpt", a))]
        return Turns([*earlier, ("human", question)]) if earlier else question
    turns = [f"Question: {q} Answer: {a}." for q, a in history]
    return " ".join([*turns, f"Question: {question} Answer:"])


def generated_answer(
    texts: Sequence[tuple[str, float]], grid: np.ndarray | None = None
) -> VqaAnswer:
    """From (text, log-likelihood) in the search's order; one text written in two ways is one."""
    likelihoods: dict[str, float] = {}
    for text, log_prob in texts:
        likelihoods[text] = likelihoods.get(text, 0.0) + math.exp(log_prob)
    top = tuple(
        RankedAnswer(text, p, math.log(p) if p > 0 else -math.inf)
        for text, p in likelihoods.items()
    )
    return VqaAnswer(top[0].answer, top[0].probability, top, grid)


def ranked_answer(
    candidates: Sequence[str], log_likelihoods: Tensor, n: int, grid: np.ndarray | None = None
) -> VqaAnswer:
    """From candidates and their log-likelihoods (C,)."""
    shares = log_likelihoods.softmax(dim=-1)
    order = log_likelihoods.argsort(descending=True, stable=True).tolist()[:n]
    top = tuple(
        RankedAnswer(candidates[i], float(shares[i]), float(log_likelihoods[i])) for i in order
    )
    return VqaAnswer(top[0].answer, top[0].probability, top, grid)


# BLIP ---------------------------------------------------------------------------------------------


def blip_answers(
    blip: Blip,
    images: Sequence[Image],
    questions: Sequence[str],
    candidates: Sequence[str] | None,
    n: int,
    ranked: int,
    attention: bool,
    decoding: Decoding,
) -> list[VqaAnswer]:
    import torch

    places: dict[int, int] = {}
    for image in images:
        places.setdefault(id(image), len(places))
    different = {id(image): image for image in images}
    encoded = blip.encode_images([different[key] for key in places])
    states = encoded[[places[id(image)] for image in images]]  # (B, N, D)
    tokens = blip.tokens([blip_question(question) for question in questions], first="[ENC]")
    fused = blip.fused_states(states, tokens, **({"output_attentions": True} if attention else {}))
    seen = tokens["attention_mask"]  # (B, T): not the padding
    grids = question_attention(fused.cross_attentions, seen) if attention else None
    question_states = fused.last_hidden_state  # (B, T, D)
    found = []
    if candidates is None:
        start = torch.full((len(questions), 1), blip.first_id("[DEC]"), device=blip.device)
        for row, own in enumerate(blip_decode(blip, start, question_states, seen, decoding)):
            texts = [
                (blip.tokenizer.decode(text.ids, skip_special_tokens=True).strip(), text.log_prob)
                for text in own
            ]
            found.append(generated_answer(texts, None if grids is None else grids[row]))
        return found
    ids = candidate_ids(blip, candidates)
    for row in range(len(questions)):
        grid = None if grids is None else grids[row]
        own, own_seen = question_states[row : row + 1], seen[row : row + 1]
        chosen = best_first_tokens(blip, ids, own, own_seen, ranked)
        scores = answer_log_likelihoods(blip, [ids[i] for i in chosen], own, own_seen)
        found.append(ranked_answer([candidates[i] for i in chosen], scores, n, grid))
    return found


def question_attention(layers: Sequence[Tensor], seen: Tensor) -> list[np.ndarray]:
    """Cross-attention of the question's words to the picture, (rows, columns) a question.

    `layers`: (B, heads, T, N) each. Averaged over layers, heads and words, without [ENC], [SEP] and
    padding; the image's class token is left out, and what remains brought to a sum of 1.
    """
    import torch

    average = torch.stack([layer.float().mean(dim=1) for layer in layers]).mean(dim=0)  # (B, T, N)
    grids = []
    for own, length in zip(average, seen.sum(dim=1).tolist(), strict=True):
        words = own[1 : length - 1] if length > 2 else own[:1]  # nothing known but [ENC]
        patches = words.mean(dim=0)[1:]
        side = math.isqrt(len(patches))
        grids.append((patches / patches.sum()).reshape(side, side).cpu().numpy())
    return grids


def candidate_ids(blip: Blip, candidates: Sequence[str]) -> list[list[int]]:
    """[DEC], word pieces, [SEP] of each candidate. Raises UserError for one that is too long."""
    first = blip.first_id("[DEC]")
    room = blip.model.config.text_config.max_position_embeddings
    found = []
    for candidate in candidates:
        ids = blip.tokenizer(candidate)["input_ids"]
        if len(ids) > room:
            raise UserError(f"candidate {candidate[:40]!r}...: {len(ids)} tokens, room for {room}")
        found.append([first, *ids[1:]])
    return found


def best_first_tokens(
    blip: Blip, ids: Sequence[Sequence[int]], states: Tensor, seen: Tensor, count: int
) -> list[int]:
    """Which `count` candidates have the likeliest first tokens, in the candidates' order."""
    import torch

    if len(ids) <= count:
        return list(range(len(ids)))
    start = torch.tensor([[ids[0][0]]], device=blip.device)
    logits = blip.model.text_decoder(
        start, encoder_hidden_states=states, encoder_attention_mask=seen
    ).logits[0, 0]
    firsts = logits[torch.tensor([row[1] for row in ids], device=blip.device)]
    order = firsts.argsort(descending=True, stable=True)
    return sorted(order[:count].tolist())


def answer_log_likelihoods(
    blip: Blip, rows: Sequence[Sequence[int]], states: Tensor, seen: Tensor
) -> Tensor:
    """log P of each answer's tokens and its [SEP], (C,), by one question's states (1, T, D)."""
    import torch

    from shared.vision_families_state import right_pad

    pad = blip.model.config.text_config.pad_token_id
    sums = []
    for begin in range(0, len(rows), RANK_BATCH):
        ids, real = (t.to(blip.device) for t in right_pad(rows[begin : begin + RANK_BATCH], pad))
        logits = blip.model.text_decoder(
            ids,
            attention_mask=real.long(),
            encoder_hidden_states=states.expand(len(ids), -1, -1),
            encoder_attention_mask=seen.expand(len(ids), -1),
        ).logits[:, :-1]  # (C, A, V): position t predicts token t + 1
        log_probs = logits.float().log_softmax(dim=-1).gather(2, ids[:, 1:, None])[..., 0]
        sums.append(log_probs.masked_fill(~real[:, 1:], 0.0).sum(dim=1))
    return torch.cat(sums)


# BLIP-2 and LLaVA ---------------------------------------------------------------------------------


def language_ranking(
    asker: VisionLanguage,
    images: Sequence[Image],
    prompts: Sequence[str],
    candidates: Sequence[str],
    n: int,
) -> list[VqaAnswer]:
    """Every candidate by the log-likelihood of its tokens behind the prompt, without an end."""
    import torch

    for prompt in dict.fromkeys(prompts):
        if problem := asker.choices_problem(prompt, candidates):
            raise UserError(problem)
    features = language_features(asker, images)
    scores = asker.choice_log_probs(
        features, range(len(prompts)), prompts, [candidates] * len(prompts)
    )
    return [
        ranked_answer(candidates, torch.tensor([choice.log_prob for choice in own]), n)
        for own in scores
    ]
