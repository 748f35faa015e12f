"""One asker for LLaVA, BLIP-2, Qwen-VL, MiniCPM-V folders: answers, and how likely choices are.

A prompt is the human's text, or several turns; it is put into the model's own chat form with its
pictures in front, or where its tags say (BLIP-2: the whole prompt, one picture). Each picture is
encoded once. The prompt runs once
through the language model with a key-value cache; a greedy answer and every given choice go on from
there, so that 160 class names cost one prompt and 160 short continuations. Tests hold the answers
equal to transformers' own `generate` from pixels, the likelihoods to whole forward passes.

    model = load_vision_language("llava-hf/llava-1.5-7b-hf", quantization="nf4")
    features = model.encode_images([picture])
    model.answer(features, [0], ["What is it?"])
    model.choice_log_probs(features, [0], ["What is it?"], [["dog", "cat", "hot dog"]])

Use it with `shared.answering.answer_questions` and `score_choices`. Reads a model folder of the Hub
layout (the family by config.json's model_type, `shared.vision_families`) and an adapter folder;
writes nothing.
Shapes: P pictures, B prompts, N image tokens, T tokens, A of a choice, C choices, D width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shared.answering import Answer, ChoiceScore, text_problem
from shared.conversations import IMAGE_TAG
from shared.images import ImageHandling, squared
from shared.loading import load_pretrained, model_folder, pick_device, pick_dtype
from shared.options import UserError, manifest_value
from shared.vision_families import (
    Family,
    Layout,
    PictureFeatures,
    Turns,
    load_image_processor,
    load_tokenizer,
    open_family,
)
from shared.vision_families_adapters import adapter_manifest
from shared.vision_families_base import THOUGHT
from shared.vision_families_state import State, left_pad, right_pad

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "ChoiceScore", "Turns", "VisionLanguage", "load_image_processor", "load_tokenizer",
    "load_vision_language", "open_family",
]  # fmt: skip

Shown = PictureFeatures | Sequence[PictureFeatures]  # one picture, or several shown together

CHOICE_BATCH_SIZE = 16  # continuations at once: each holds a copy of its prompt's cache


def load_vision_language(
    model: str,
    quantization: str = "none",
    device: str = "auto",
    dtype: str = "auto",
    adapter: str | None = None,
    revision: str | None = None,
    image_handling: ImageHandling = "model",
    max_new_tokens: int = 128,
    tags_are_meant: bool = False,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> VisionLanguage:
    """The asker of a folder, or of a downloaded Hub id; its `notes` are worth printing.

    `quantization` (none, int8, nf4) is of the language model; tower, projector and head stay in
    `dtype`. `adapter` is a folder of `shared.vision_families_adapters`, trained on this very model.
    `min_pixels` and `max_pixels` are a picture's bounds for Qwen-VL; where None, those that the
    adapter, or the merged or fully trained folder, was trained with, else its processor's. Raises
    UserError with the cause, before weights are read where it can be known.
    """
    import transformers

    folder = model_folder(model, revision)
    saved_beside = None
    if adapter is not None:
        adapter_manifest(Path(adapter))  # refuses what is none
        if (Path(adapter) / "processor_config.json").is_file():  # saved beside it in training
            saved_beside = Path(adapter)
    trained = adapter or folder
    min_pixels = manifest_value(trained, "min_pixels") if min_pixels is None else min_pixels
    max_pixels = manifest_value(trained, "max_pixels") if max_pixels is None else max_pixels
    family = open_family(folder, saved_beside, min_pixels, max_pixels)
    chosen_device = pick_device(device)
    loaded = load_pretrained(
        getattr(transformers, family.model_class),
        folder,
        device=chosen_device,
        dtype=pick_dtype(dtype, chosen_device),
        quantization=quantization,
        skip_modules=family.not_quantized,
    )
    if adapter is not None:
        loaded = family.load_adapter(loaded, Path(adapter))
    family.attach(loaded)
    return VisionLanguage(family, image_handling, max_new_tokens, tags_are_meant)


class VisionLanguage:
    """Answers prompts about pictures; a `shared.answering.VisionLanguageModel` and `ChoiceModel`.

    `answer` is greedy, whatever the folder's generation_config.json says. `<image>` and other
    special tokens in a prompt are text: they get a blank inside. With `tags_are_meant` `<image>` is
    a picture's place, as in training data; without any the pictures stand in front. Several
    pictures of a prompt are one entry of `encode_images`, a list. What a model thinks before its
    answer is in `raw_output` alone.
    """

    def __init__(
        self,
        family: Family,
        image_handling: ImageHandling = "model",
        max_new_tokens: int = 128,
        tags_are_meant: bool = False,
    ) -> None:
        if max_new_tokens < 1:
            raise UserError(f"--max_new_tokens {max_new_tokens}: at least 1")
        self.family = family
        self.image_handling: ImageHandling = image_handling
        self.max_new_tokens = max_new_tokens
        self.tags_are_meant = tags_are_meant
        self.notes: list[str] = []
        if family.config.model_type == "llava" and family.trained_on is None:
            self.notes.append(
                f"{family.folder}/config.json does not say how pictures were made square "
                "(image_aspect_ratio); its image processor decides, --image_handling pad for "
                "LLaVA v1.5"
            )

        if THOUGHT in family.lead(""):
            self.notes.append(
                f"{family.folder}: its chat template has a thought before each answer; an output "
                f"that is cut before {THOUGHT} is a thought alone, so --max_new_tokens must have "
                "room for both"
            )

    @property
    def device(self) -> torch.device:
        return self.family.model.device

    @property
    def tokenizer(self) -> Any:
        return self.family.tokenizer

    # What can be asked

    def sent_ids(self, prompt: str, shown: Shown | None) -> list[int]:
        """The prompt's ids as the model is given them, with a picture, several or none."""
        layouts = [picture.layout for picture in as_group(shown)]
        return self.family.prompt_ids(prompt, layouts, self.tags_are_meant)

    def longest_ids(self, prompt: str) -> list[int]:
        """The prompt's ids with pictures of the most tokens: one, or as many as tags are meant."""
        family = self.family
        texts = prompt.turns if isinstance(prompt, Turns) else (("human", prompt),)
        tags = sum(text.count(IMAGE_TAG) for role, text in texts if role == "human")
        n_pictures = max(tags, 1) if self.tags_are_meant else 1
        n = family.n_image_tokens
        return family.prompt_ids(prompt, [Layout(n, slices=(n,))] * n_pictures, self.tags_are_meant)

    def prompt_problem(self, prompt: str) -> str | None:
        """Why this prompt cannot be answered about a picture, or None."""
        try:
            ids = self.longest_ids(prompt)
        except UserError as error:
            return str(error)
        if prompt.strip() and set(ids) <= self.special_ids():
            return "the model's chat template shows it its pictures alone, not the prompt"
        length = self.family.max_length
        if length is None or len(ids) + self.max_new_tokens <= length:
            return None
        return (
            f"the prompt has {len(ids)} tokens, {ids.count(self.family.image_token_id)} of them "
            f"for pictures; beside {self.max_new_tokens} for the answer the model has room for "
            f"{length - self.max_new_tokens}"
        )

    def choices_problem(self, prompt: str, choices: Sequence[str]) -> str | None:
        """Why the likelihood of these choices behind this prompt cannot be computed, or None."""
        if not choices:
            return "no choice is given"
        special, length = self.special_ids(), self.family.max_length
        try:
            n_prompt = len(self.longest_ids(prompt))
        except UserError as error:
            return str(error)
        for choice in choices:
            problem = text_problem(choice)
            if problem:
                return f"choice {choice!a}: {problem}"
            ids = self.family.choice_ids(choice, self.family.lead(prompt))
            if not choice.strip() or not ids:
                return f"choice {choice!r} is empty"
            if special & set(ids):
                return f"choice {choice!r} holds a special token of the model"
            if length is not None and n_prompt + len(ids) > length:
                return (
                    f"choice {choice!r} has {len(ids)} tokens, the prompt {n_prompt}; the model "
                    f"has room for {length}"
                )
        return None

    def special_ids(self) -> set[int | None]:
        """Tokens that are no words; an unknown word's is one."""
        special = {*self.tokenizer.all_special_ids, self.family.image_token_id}
        return special - {self.tokenizer.unk_token_id}

    # Pictures

    def encode_images(self, images: Sequence[Image | Sequence[Image]]) -> list[Shown]:
        """Pictures -> features of each, in their order; a list of pictures is one entry, shown
        together, and becomes a list. Every picture goes through the tower in the same call."""
        groups = [list(entry) if isinstance(entry, Sequence) else [entry] for entry in images]
        flat = [image for group in groups for image in group]
        if not flat:
            return [[] for _ in groups]
        family = self.family
        mean = getattr(family.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
        features = family.encode(
            [
                squared(
                    image,
                    self.image_handling,
                    trained_on=family.trained_on,
                    mean=mean,
                    side=family.side,
                )
                for image in flat
            ]
        )
        if len(features) != len(flat):
            raise UserError(f"{len(flat)} pictures gave features of {len(features)}")
        left = iter(features)
        encoded = [[next(left) for _ in group] for group in groups]
        return [
            own if isinstance(entry, Sequence) else own[0]
            for entry, own in zip(images, encoded, strict=True)
        ]

    # The language model

    def start(
        self,
        features: Sequence[Shown],
        picture_index: Sequence[int | None],
        prompts: Sequence[str],
    ) -> State:
        """Run the prompts, padded on the left, once. Raises UserError when the places for a picture
        are not as many as its vectors: some models would silently look at nothing."""
        family = self.family
        shown = [as_group(None if i is None else features[i]) for i in picture_index]
        rows = [self.sent_ids(prompt, own) for prompt, own in zip(prompts, shown, strict=True)]
        input_ids, mask = (t.to(self.device) for t in left_pad(rows, family.pad_id))  # (B, T)
        embeds = self.embed(input_ids, shown)  # (B, T, D)
        if family.decoder.config.is_encoder_decoder:
            first = start_token(family.decoder)
            output = family.decoder(
                inputs_embeds=embeds,
                attention_mask=mask,
                decoder_input_ids=torch.full_like(input_ids[:, :1], first),
                use_cache=True,
            )
            encoded = output.encoder_last_hidden_state
            return State(output.past_key_values, output.logits[:, -1], mask, None, encoded)
        pictures = [picture for own in shown for picture in own]
        positions, following = family.positions(input_ids, mask, pictures)
        cache, logits = family.run_prompts(input_ids, embeds, mask, positions, pictures)
        return State(cache, logits, mask, following)

    def embed(self, input_ids: Tensor, shown: Sequence[Sequence[PictureFeatures]]) -> Tensor:
        """input_ids (B, T) -> embeddings (B, T, D), each row's pictures in their places."""
        is_image = input_ids == self.family.image_token_id  # (B, T)
        counts = is_image.sum(dim=-1).tolist()
        for row, (count, own) in enumerate(zip(counts, shown, strict=True)):
            n_vectors = sum(len(picture.vectors) for picture in own)
            if count != n_vectors:
                raise UserError(
                    f"prompt {row} of the batch has {count} image tokens for pictures of "
                    f"{n_vectors}"
                )
        # a placeholder may lie outside the vocabulary, so it is never looked up
        embeds = self.family.model.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        pieces = [picture.vectors for own in shown for picture in own]
        if not pieces:
            return embeds
        vectors = torch.cat(pieces).to(embeds.dtype)
        return embeds.masked_scatter(is_image.unsqueeze(-1), vectors)

    def go_on(self, state: State, ids: Tensor, is_real: Tensor) -> Tensor:
        """Run `ids` (B, A), padded on the right, behind a state, which takes them in.

        Returns logits (B, A, V): position t says what comes behind token t.
        """
        decoder = self.family.decoder
        if state.encoded is not None:
            output = decoder(
                attention_mask=state.mask,
                encoder_outputs=(state.encoded,),
                decoder_input_ids=ids,
                past_key_values=state.cache,
                use_cache=True,
            )
        else:
            assert state.following is not None
            steps = torch.arange(ids.shape[1], device=ids.device)
            state.mask = torch.cat([state.mask, is_real.to(state.mask.dtype)], dim=1)
            output = decoder(
                input_ids=ids,
                attention_mask=state.mask,
                position_ids=state.following[:, None] + steps,  # (B, A)
                past_key_values=state.cache,
                use_cache=True,
            )
            state.following = state.following + ids.shape[1]
        state.cache = output.past_key_values
        return output.logits

    # Answers

    @torch.no_grad()
    def answer(
        self,
        features: Sequence[Shown],
        picture_index: Sequence[int | None],
        prompts: Sequence[str],
    ) -> list[Answer]:
        """Greedy answers of at most `max_new_tokens`, in order; `picture_index[i]` is the picture
        of prompt i, None for one without."""
        family = self.family
        state = self.start(features, picture_index, prompts)
        ends = torch.tensor(sorted(family.end_ids), dtype=torch.long, device=self.device)
        done = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        tokens: list[Tensor] = []  # (B,) a step
        log_probs: list[Tensor] = []
        for step in range(self.max_new_tokens):
            scores = state.logits.float()
            allowed = scores
            if family.image_token_id is not None and family.image_token_id < scores.shape[-1]:
                allowed = scores.clone()
                allowed[:, family.image_token_id] = -torch.inf  # no word of an answer
            chosen = allowed.argmax(dim=-1)
            tokens.append(chosen)
            log_probs.append(scores.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0])
            done |= torch.isin(chosen, ends)
            if family.end_text is not None:
                texts = self.tokenizer.batch_decode(torch.stack(tokens, dim=1))
                done |= torch.tensor([family.end_text in text for text in texts]).to(done.device)
            if step + 1 == self.max_new_tokens or bool(done.all()):
                break
            new = chosen[:, None]
            state.logits = self.go_on(state, new, torch.ones_like(new))[:, -1]
        every_id = torch.stack(tokens, dim=1).tolist()  # (B, A)
        every_log_prob = torch.stack(log_probs, dim=1).cpu()
        return [self.make_answer(*row) for row in zip(every_id, every_log_prob, strict=True)]

    def make_answer(self, ids: list[int], log_probs: Tensor) -> Answer:
        """From generated ids, with what may stand behind their end; log_probs (A,)."""
        ids, n_words = self.words(ids)
        text = self.tokenizer.decode(ids[:n_words], skip_special_tokens=True)
        if self.family.end_text is not None:  # a token may hold the end and a letter before it
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            text = text.partition(self.family.end_text)[0]
        raw = self.tokenizer.decode(ids)
        n_thought = self.thought(ids[:n_words]) if self.family.thinks else 0
        text = text.rpartition(THOUGHT)[2] if n_thought else text
        own = log_probs[n_thought:n_words]
        return Answer(
            raw_output=raw,
            answer=text.strip(),
            confidence=float(own.mean().exp()) if len(own) else None,
            first_token_confidence=float(own[0].exp()) if len(own) else None,
            finish_reason="stop" if n_words < len(ids) or self.ends(raw) else "length",
            n_tokens=len(ids),
        )

    def thought(self, ids: list[int]) -> int:
        """How many of an answer's ids are a thought, with its end and the white space behind."""
        if THOUGHT not in self.tokenizer.decode(ids):
            return 0
        n = len(ids)
        while n and THOUGHT in self.tokenizer.decode(ids[: n - 1]):
            n -= 1
        while n < len(ids) and not self.tokenizer.decode(ids[n]).strip():
            n += 1
        return n

    def ends(self, text: str) -> bool:
        return self.family.end_text is not None and self.family.end_text in text

    def words(self, ids: list[int]) -> tuple[list[int], int]:
        """Ids up to and with the answer's end, and how many of them are its words."""
        for n, token_id in enumerate(ids):
            if token_id in self.family.end_ids:
                return ids[: n + 1], n
            text = self.tokenizer.decode(ids[: n + 1]) if self.family.end_text else ""
            if self.ends(text):
                answer = text.partition(self.family.end_text)[0]
                n_words = n + 1
                while n_words and len(self.tokenizer.decode(ids[:n_words])) > len(answer):
                    n_words -= 1
                return ids[: n + 1], n_words
        return ids, len(ids)

    # Likelihood of given answers

    @torch.no_grad()
    def choice_log_probs(
        self,
        features: Sequence[Shown],
        picture_index: Sequence[int | None],
        prompts: Sequence[str],
        choices: Sequence[Sequence[str]],
        batch_size: int = CHOICE_BATCH_SIZE,
    ) -> list[list[ChoiceScore]]:
        """log P(choice's tokens | picture, prompt) of each choice of each prompt; no end token.

        A choice is tokenised as the model would write it: as `shared.conversations.encode` has an
        answer behind its prompt, for BLIP-2's OPT with a blank in front. `batch_size` choices, of
        any of the prompts, go on at a time. The first token of each comes from the prompt's own
        last logits, so that choices of one token cost nothing more.
        """
        ids = [
            [self.family.choice_ids(choice, self.family.lead(prompt)) for choice in own]
            for prompt, own in zip(prompts, choices, strict=True)
        ]
        state = self.start(features, picture_index, prompts)
        pairs = [(row, place) for row, own in enumerate(ids) for place in range(len(own))]
        firsts = torch.tensor([ids[row][place][0] for row, place in pairs], device=self.device)
        owners = torch.tensor([row for row, _ in pairs], device=self.device)
        log_probs = state.logits.float().log_softmax(dim=-1)  # (B, V)
        first = log_probs[owners, firsts].double().tolist() if pairs else []
        totals = dict(zip(pairs, first, strict=True))
        longer = [(row, place) for row, place in pairs if len(ids[row][place]) > 1]
        longer.sort(key=lambda pair: len(ids[pair[0]][pair[1]]))  # of like length: less padding
        for begin in range(0, len(longer), batch_size):
            chunk = longer[begin : begin + batch_size]
            sums = self.log_probs_behind_first(state, chunk, [ids[r][p] for r, p in chunk])
            for pair, value in zip(chunk, sums, strict=True):
                totals[pair] += value
        return [
            [ChoiceScore(totals[row, place], len(own[place])) for place in range(len(own))]
            for row, own in enumerate(ids)
        ]

    def log_probs_behind_first(
        self, state: State, pairs: Sequence[tuple[int, int]], rows: Sequence[Sequence[int]]
    ) -> list[float]:
        """Sums of log P over the second to last token of each row of ids."""
        fed, is_real = right_pad([row[:-1] for row in rows], self.family.pad_id)  # (C, A)
        targets, _ = right_pad([row[1:] for row in rows], self.family.pad_id)
        index = torch.tensor([row for row, _ in pairs], device=self.device)
        logits = self.go_on(state.rows(index), fed.to(self.device), is_real.to(self.device))
        log_probs = logits.float().log_softmax(dim=-1)  # (C, A, V)
        chosen = log_probs.gather(2, targets.to(self.device)[..., None])[..., 0].double()  # (C, A)
        return chosen.masked_fill(~is_real.to(self.device), 0.0).sum(dim=-1).tolist()


def as_group(shown: Shown | None) -> list[PictureFeatures]:
    if shown is None:
        return []
    return [shown] if isinstance(shown, PictureFeatures) else list(shown)


def start_token(decoder: Any) -> int:
    """The token that an encoder-decoder's output begins with."""
    first = decoder.generation_config.decoder_start_token_id
    return decoder.config.decoder_start_token_id if first is None else first
