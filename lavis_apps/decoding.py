"""Beam search and nucleus sampling with scores, for BLIP's decoder and for LLaVA and BLIP-2.

Both go through transformers' `generate` from encoded pictures, n texts in one pass, and each
generated token comes with its log-probability under the model's own distribution: before
temperature, nucleus, penalties and the shortest length change it.

Nucleus sampling takes the tokens by the Gumbel-max trick: the likeliest after noise that depends on
the seed and on which of the n texts it is, and on nothing else. So the same picture gets the same
texts in every batch, and the first of five is the one that n=1 gives. Unlike transformers, whose
sampling cuts at the 50 likeliest tokens unless told otherwise, the nucleus alone is the limit.

    python -m pytest tests/lavis_apps/test_captioning.py

Used by captioning.py and vqa.py; reads and writes nothing.
Shapes: B pictures or questions, T tokens, N image tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shared.options import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from lavis_apps.blip import Blip
    from shared.vision_language import VisionLanguage


LONGEST_SIDE = 8192  # pixels; a square of 20,000 would take gigabytes


@dataclass(frozen=True)
class Decoding:
    """How texts are generated; raises UserError for what cannot be.

    `max_length`, `min_length`: tokens; of BLIP with its first token and the prompt's, as LAVIS
    counts, of LLaVA and BLIP-2 the new ones.
    """

    method: Literal["beam", "nucleus"] = "beam"
    n: int = 1
    num_beams: int = 3
    max_length: int = 40
    min_length: int = 5
    top_p: float = 0.9
    temperature: float = 1.0
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("beam", "nucleus"):
            raise UserError(f"method {self.method!r}: beam or nucleus")
        least = {"n": 1, "num_beams": 1, "max_length": 1, "min_length": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UserError(f"{name} {getattr(self, name)}: at least {bound}")
        for name in ("temperature", "repetition_penalty", "top_p"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} {getattr(self, name)}: more than 0")
        if self.top_p > 1:
            raise UserError(f"top_p {self.top_p}: at most 1")
        if self.min_length > self.max_length:
            raise UserError(f"min_length {self.min_length}: more than max_length {self.max_length}")
        if self.method == "beam" and self.n > self.num_beams:
            raise UserError(
                f"{self.n} texts of a search with {self.num_beams} beams: give num_beams "
                f"{self.n} or more, or the method nucleus"
            )


@dataclass(frozen=True)
class Generated:
    """A text's tokens behind the prompt, its end token with them where it came to one, and the log
    probability of each."""

    ids: list[int]
    log_probs: list[float]

    @property
    def log_prob(self) -> float:
        return sum(self.log_probs)

    @property
    def score(self) -> float:
        """Mean log-probability per token, the end token counted; at most 0."""
        return self.log_prob / max(1, len(self.log_probs))


def blip_decode(
    blip: Blip, prompt: Tensor, states: Tensor, seen: Tensor, decoding: Decoding
) -> list[list[Generated]]:
    """n texts of BLIP's decoder for each row, best first.

    `prompt` (B, T) begins with [DEC] and has no padding; the decoder attends to `states` (B, N, D)
    where `seen` (B, N) is 1. Raises UserError where the prompt leaves no room.
    """
    text = blip.model.config.text_config
    if decoding.max_length > text.max_position_embeddings:
        raise UserError(
            f"max_length {decoding.max_length}: the model has positions for "
            f"{text.max_position_embeddings} tokens"
        )
    if prompt.shape[1] >= decoding.max_length:
        raise UserError(
            f"the prompt has {prompt.shape[1]} tokens with the first one: max_length "
            f"{decoding.max_length} leaves no room behind it"
        )
    inputs = {
        "input_ids": prompt,
        "encoder_hidden_states": states,
        "encoder_attention_mask": seen,
    }
    lengths = {"max_length": decoding.max_length, "min_length": decoding.min_length}
    ends = [text.sep_token_id]
    return generate(blip.model.text_decoder, inputs, lengths, ends, text.pad_token_id, decoding)


def language_decode(
    asker: VisionLanguage, images: Sequence[Image], prompts: Sequence[str], decoding: Decoding
) -> list[list[Generated]]:
    """n texts of a LLaVA's or BLIP-2's language model for each picture with its prompt, best first.

    Raises UserError for a prompt that has no room, and where the prompt's places for the picture
    are not as many as its vectors.
    """
    from shared.vision_families_state import left_pad

    family = asker.family
    for prompt in dict.fromkeys(prompts):
        if problem := asker.prompt_problem(prompt):
            raise UserError(problem)
    shown = [[picture] for picture in language_features(asker, images)]
    rows = [asker.sent_ids(prompt, own) for prompt, own in zip(prompts, shown, strict=True)]
    longest = max(len(row) for row in rows)
    if family.max_length is not None and longest + decoding.max_length > family.max_length:
        raise UserError(
            f"the prompt has {longest} tokens with the picture's; beside {decoding.max_length} new "
            f"ones (max_length) the model has room for {family.max_length - decoding.max_length}"
        )
    input_ids, mask = (t.to(asker.device) for t in left_pad(rows, family.pad_id))
    inputs = {"inputs_embeds": asker.embed(input_ids, shown), "attention_mask": mask}
    settings: dict[str, Any] = {
        "max_new_tokens": decoding.max_length,
        "min_new_tokens": decoding.min_length,
    }
    vocabulary = family.decoder.get_output_embeddings().weight.shape[0]
    if family.image_token_id is not None and family.image_token_id < vocabulary:
        settings["suppress_tokens"] = [family.image_token_id]  # no word of an answer
    if family.end_text is not None:
        settings["stop_strings"] = [family.end_text]
    found = generate(
        family.decoder,
        inputs,
        settings,
        sorted(family.end_ids),
        family.pad_id,
        decoding,
        tokenizer=asker.tokenizer if family.end_text is not None else None,
    )
    return [[end_of_text(asker, text) for text in texts] for texts in found]


def language_features(asker: VisionLanguage, images: Sequence[Image]) -> Sequence[Any]:
    """`encode_images`; of a very long picture a smaller one, as LLaVA pads it to a square."""
    from lavis_apps.heat_maps import fitted

    return asker.encode_images([fitted(image, LONGEST_SIDE) for image in images])


def end_of_text(asker: VisionLanguage, text: Generated) -> Generated:
    """Cut behind an end that is no token of its own ("###")."""
    ids, _ = asker.words(text.ids)
    return Generated(ids, text.log_probs[: len(ids)])


def generate(
    model: Any,
    inputs: dict[str, Tensor],
    settings: dict[str, Any],
    ends: Sequence[int],
    pad_id: int,
    decoding: Decoding,
    **more: Any,
) -> list[list[Generated]]:
    """`model.generate` of n texts for each of the B rows of `inputs`, cut at their ends."""
    from transformers import GenerationConfig, LogitsProcessorList

    nucleus = decoding.method == "nucleus"
    n_rows = len(next(iter(inputs.values())))
    if nucleus:  # each row n times, one behind the other
        inputs = {name: value.repeat_interleave(decoding.n, 0) for name, value in inputs.items()}
        more["logits_processor"] = LogitsProcessorList([Nucleus(decoding)])
    config = GenerationConfig(
        do_sample=False,
        num_beams=1 if nucleus else decoding.num_beams,
        num_return_sequences=1 if nucleus else decoding.n,
        length_penalty=decoding.length_penalty,
        repetition_penalty=decoding.repetition_penalty,
        early_stopping=False,
        eos_token_id=list(ends),
        pad_token_id=pad_id,
        return_dict_in_generate=True,
        output_logits=True,
        **settings,
    )
    output = model.generate(**inputs, generation_config=config, **more)
    # without input_ids the sequences hold new tokens alone, T5's its start token too
    prompt = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    if model.config.is_encoder_decoder:
        prompt = 1
    tokens = output.sequences[:, prompt:]  # (B * n, A)
    log_probs = token_log_probs(output.logits, tokens, getattr(output, "beam_indices", None))
    texts = []
    for ids, own in zip(tokens.tolist(), log_probs.tolist(), strict=True):
        length = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
        texts.append(Generated(ids[:length], own[:length]))
    return [texts[row * decoding.n : (row + 1) * decoding.n] for row in range(n_rows)]


def token_log_probs(logits: Sequence[Tensor], tokens: Tensor, beams: Tensor | None) -> Tensor:
    """log P of each generated token (B * n, A) from each step's raw logits (rows, V).

    `beams` (B * n, A) tells which row of a step a returned text went through; what stands behind
    its end means nothing.
    """
    import torch

    columns = []
    for step in range(tokens.shape[1]):
        rows = torch.arange(len(tokens)) if beams is None else beams[:, step].clamp(min=0)
        log_probs = logits[step].float().log_softmax(dim=-1)
        columns.append(log_probs[rows.to(log_probs.device), tokens[:, step]])
    if not columns:
        return torch.zeros(tokens.shape)
    return torch.stack(columns, dim=1)


class Nucleus:
    """A logits processor: temperature, top-p, then noise that makes the largest logit a sample.

    argmax(log p + Gumbel noise) is distributed as p. The noise of text j comes from a CPU generator
    of its own, so it is the same on every device.
    """

    def __init__(self, decoding: Decoding) -> None:
        import torch
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        self.generators = []
        for number in range(decoding.n):
            generator = torch.Generator()
            generator.manual_seed((decoding.seed * 1_000_003 + number) % 2**63)
            self.generators.append(generator)
        self.warpers = [
            TemperatureLogitsWarper(decoding.temperature),
            TopPLogitsWarper(decoding.top_p),
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        import torch

        for warp in self.warpers:
            scores = warp(input_ids, scores)
        size = scores.shape[-1]
        noise = torch.stack(
            [-torch.empty(size).exponential_(generator=g).log() for g in self.generators]
        )  # (n, V)
        return scores + noise.to(scores.device).repeat(len(scores) // len(noise), 1)
