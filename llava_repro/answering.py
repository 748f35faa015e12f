"""A LLaVA that answers: loading it, many prompts about many pictures at once.

`LlavaAnswerer` encodes a picture once and answers any number of prompts about it, padded on the
left; its tests hold it equal to one prompt at a time and to `model.generate` from pixels. Prompts
are written by `shared.conversations.prompt_ids` alone, as in training. The confidence of an answer
comes from the logits of generation itself; only a beam search needs a second pass.

    model, tokenizer, image_processor, template = load_llava("data/toy_models/llava")
    answerer = LlavaAnswerer(model, tokenizer, image_processor, template)
    features = answerer.encode_images([picture])
    answerer.answer(features, [0, None], ["<image>\\nWhat is it?", "What is two and two?"])

Used by predict.py, chat.py, demo.py and evaluate.py. Reads a model folder, and an adapter folder of
train.py; writes nothing.
Shapes: P pictures, B prompts, N image tokens of a picture, T tokens, A of an answer, D width,
V vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
)

from llava_repro.asking import AskingOptions, Decoding
from llava_repro.model import Llava, n_image_tokens
from shared.answering import Answer
from shared.chat_templates import special_tokens
from shared.conversations import answer_end, check_tokenizer, pad_id, prompt_ids
from shared.images import ImageHandling, squared, trained_aspect_ratio
from shared.loading import (
    check_adapter_folder,
    pick_device,
    pick_dtype,
    quiet_libraries,
)
from shared.options import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

    from llava_repro.settings import LlavaParts
    from shared.conversations import Template

Turn = tuple[str, str | None]
Pictures = int | Sequence[int] | None  # the picture of a prompt, several, or none


# Loading


def load_llava(
    model: str,
    quantization: str = "none",
    device: str = "auto",
    dtype: str = "auto",
    adapter: str | None = None,
    template: str | None = None,
    revision: str | None = None,
) -> tuple[Llava, Any, Any, Template | None]:
    """(model, tokenizer, image processor, template) of a folder or downloaded id, in eval mode.

    With `adapter` (a LoRA folder of train.py) the base is `model` if the adapter was trained on it,
    else the parts that its manifest names. `template` names one of templates.py; without it
    `settings.template_name` decides, and None is the tokenizer's chat template. What is decided
    here is printed to stderr. Raises UserError with the cause, before weights are read where it
    can be known.
    """
    from llava_repro.assembling import LlavaParts, assemble
    from llava_repro.results import load_lora
    from llava_repro.settings import base_folder, base_parts, template_name
    from llava_repro.training_data import named_template

    quiet_libraries()
    chosen_device = pick_device(device)
    placed = {"device": chosen_device, "dtype": pick_dtype(dtype, chosen_device)}
    manifest = check_adapter_folder(Path(adapter)) if adapter else {}
    parts = base_parts(model, revision, adapter)
    with redirect_stdout(sys.stderr):  # what a script prints is its answers
        if parts != {"model": model}:
            print(f"base:       {' + '.join(parts.values())}, which {adapter} was trained on")
        base = base_folder(parts, model, revision)
        named = named_template(template_name(template, adapter, base))
        if named and not template and not manifest.get("template"):
            print(f"template:   {named.name}, which this published model was trained with")
        if "model" in parts:
            loaded, tokenizer, processor = load_whole(base, named, quantization, **placed)
        else:
            made_of = LlavaParts(
                vision_tower=parts["vision_tower"],
                language_model=str(base),
                projector_type=manifest["projector_type"],
                vision_feature_layer=manifest["vision_feature_layer"],
            )
            check_tower(made_of, manifest, adapter or "")
            assembled = assemble(
                made_of,
                named,
                **placed,
                language_model_dtype=placed["dtype"],
                quantization=quantization,
            )
            loaded, tokenizer = assembled.model, assembled.tokenizer
            processor = assembled.image_processor
        if adapter:
            load_lora(loaded, Path(adapter), base)
            if "image_aspect_ratio" in manifest:
                loaded.config.image_aspect_ratio = manifest["image_aspect_ratio"]
    return loaded.eval(), tokenizer, processor, named


def load_answerer(options: AskingOptions, decoding: Decoding) -> LlavaAnswerer:
    """What the options of a script name, loaded (`load_llava`) and ready to answer."""
    loaded = load_llava(
        options.model,
        options.quantization,
        options.device,
        options.dtype,
        options.adapter,
        options.template,
        options.revision,
    )
    return LlavaAnswerer(*loaded, decoding, options.image_handling)


def check_tower(parts: LlavaParts, manifest: dict[str, Any], adapter: str) -> None:
    """Raises UserError when the adapter's vision tower is not the one that it was trained with;
    the language model is checked when the matrices are put on."""
    from llava_repro.results import part_fingerprints

    known = manifest.get("part_fingerprints", {}).get("vision_tower")
    found = part_fingerprints(parts)["vision_tower"]
    if known is not None and known != found:
        raise UserError(
            f"{adapter} was trained with {manifest['parts']['vision_tower']} (fingerprint "
            f"{known}), but {parts.vision_tower} now has {found}: put the tower of that time back"
        )


def load_whole(
    folder: Path, template: Template | None, quantization: str, **placed: Any
) -> tuple[Llava, Any, Any]:
    """A whole LLaVA folder: model, tokenizer, image processor. Raises UserError."""
    from shared.llava_parts import load_image_processor, load_tokenizer, prepare_tokenizer

    tokenizer = load_tokenizer(folder)
    for line in prepare_tokenizer(tokenizer):
        print(f"tokenizer:  {line}")
    check_tokenizer(tokenizer, template)
    try:
        image_processor = load_image_processor(folder)
    except UserError as error:
        raise UserError(
            f"{error}; llava_repro/convert.py makes a whole folder of the original repository's"
        ) from error
    model = Llava.from_pretrained(folder, quantization=quantization, **placed)
    model.config.image_aspect_ratio = trained_aspect_ratio(folder)
    if model.config.image_aspect_ratio is None:
        print(
            f"pictures:   {folder}/config.json does not say how they were made square "
            "(image_aspect_ratio); its image processor decides, --image_handling pad for LLaVA v1.5"
        )
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    if image_id != model.config.image_token_index:
        raise UserError(
            f"{folder}: <image> is token {image_id} of its tokenizer, config.json says "
            f"{model.config.image_token_index}; write the folder anew with llava_repro/convert.py"
        )
    return model, tokenizer, image_processor


# Answering


class LlavaAnswerer:
    """Answers prompts about pictures; implements `shared.answering.VisionLanguageModel`.

    A prompt is the text of one human turn with an `<image>` for each of its pictures
    (`asking.human_text` writes it). Conversations go through `answer_turns`, or `streaming.py`.
    """

    def __init__(
        self,
        model: Llava,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any,
        template: Template | None,
        decoding: Decoding | None = None,
        image_handling: ImageHandling = "model",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.template = template
        self.decoding = decoding or Decoding()
        self.image_handling: ImageHandling = image_handling
        self.n_image_tokens = n_image_tokens(model.config)
        self.max_length = getattr(model.config.text_config, "max_position_embeddings", None)
        self.pad_id = pad_id(tokenizer)
        end = answer_end(tokenizer, template)
        is_token = end in special_tokens(tokenizer)
        self.end_text = None if is_token else end  # "###", a line break: may be part of a token
        self.end_ids = end_token_ids(model, tokenizer)
        if is_token:
            self.end_ids.add(tokenizer.convert_tokens_to_ids(end))

    @property
    def device(self) -> torch.device:
        return self.model.device

    # Prompts

    def prompt_ids(self, turns: Sequence[Turn]) -> list[int]:
        """Ids of a conversation up to the answer to come, images repeated. Raises UserError."""
        return prompt_ids(turns, self.tokenizer, self.template, self.n_image_tokens)

    def prompt_problem(self, prompt: str) -> str | None:
        """Why this prompt can't be answered, or None."""
        return self.turns_problem([("human", prompt)], self.decoding)

    def turns_problem(self, turns: Sequence[Turn], decoding: Decoding) -> str | None:
        """Why this conversation can't go on: no form for it, or no room for the answer."""
        try:
            ids = self.prompt_ids(turns)
        except UserError as error:
            return str(error)
        if set(ids) <= {*self.tokenizer.all_special_ids} - {self.model.config.image_token_index}:
            return "the prompt is empty: this template shows the model its pictures alone"
        room = self.room(decoding)
        if room is None or len(ids) <= room:
            return None
        n_images = ids.count(self.model.config.image_token_index) // self.n_image_tokens
        pictures = f", {n_images * self.n_image_tokens} of them for pictures" if n_images else ""
        return (
            f"the prompt has {len(ids)} tokens{pictures}; beside {decoding.max_new_tokens} for the "
            f"answer the model has room for {room}"
        )

    def room(self, decoding: Decoding) -> int | None:
        """Tokens that a prompt may have; None without a bound."""
        return None if self.max_length is None else self.max_length - decoding.max_new_tokens

    # Pictures

    @torch.no_grad()
    def encode_images(
        self, images: Sequence[Image], handling: ImageHandling | None = None
    ) -> Tensor:
        """Pictures -> projected features (P, N, D); (0, N, D) for none."""
        if not images:
            width = self.model.config.text_config.hidden_size
            return torch.empty(0, self.n_image_tokens, width, device=self.device)
        prepared = [self.prepare(image, handling or self.image_handling) for image in images]
        pixels = self.image_processor(prepared, return_tensors="pt")["pixel_values"]
        return self.model.image_features(pixels.to(self.device))

    def prepare(self, image: Image, handling: ImageHandling) -> Image:
        """The picture as `handling` says; what is left to do is the image processor's."""
        return squared(
            image,
            handling,
            trained_on=getattr(self.model.config, "image_aspect_ratio", None),
            mean=self.image_processor.image_mean,
            side=self.model.config.vision_config.image_size,
        )

    # Many answers

    def answer(
        self, features: Tensor, picture_index: Sequence[Pictures], prompts: Sequence[str]
    ) -> list[Answer]:
        """Answers to `prompts`, in order; `features` (P, N, D) as `encode_images` gives them.

        `picture_index[i]` is the picture of prompt i, a list of them in the order of its
        `<image>`s, or None. Raises UserError when pictures and `<image>`s differ in number.
        """
        return self.answer_turns(features, picture_index, [[("human", p)] for p in prompts])

    def answer_turns(
        self,
        features: Tensor,
        picture_index: Sequence[Pictures],
        conversations: Sequence[Sequence[Turn]],
        decoding: Decoding | None = None,
        **more: Any,
    ) -> list[Answer]:
        """The same for conversations that end with a human turn; `more` goes to `generate`."""
        rows = [self.prompt_ids(turns) for turns in conversations]
        own = features[[i for pictures in picture_index for i in listed(pictures)]]
        output, log_probs = self.generate(rows, own, decoding or self.decoding, **more)
        answers = [self.tokens_of_answer(ids) for ids in output]
        if log_probs is None:  # a beam search
            words = [ids[:n_words] for ids, n_words in answers]
            log_probs = self.answer_log_probs(own, rows, words)
        return [
            self.make_answer(ids, log_prob[:n_words])
            for (ids, n_words), log_prob in zip(answers, log_probs, strict=True)
        ]

    def generate(
        self, rows: Sequence[Sequence[int]], features: Tensor, decoding: Decoding, **more: Any
    ) -> tuple[list[list[int]], list[Tensor] | None]:
        """New ids of each row, padded to the longest, and their log-probabilities (A,), which a
        beam search doesn't give. `features` of all rows' pictures in their order."""
        input_ids, mask = left_pad(rows, self.pad_id)
        recorder = TokenLogProbs() if decoding.num_beams == 1 else None
        vocabulary = self.model.language_model.get_output_embeddings().weight.shape[0]
        image_id = self.model.config.image_token_index
        processors: list[LogitsProcessor] = [] if recorder is None else [recorder]
        if image_id < vocabulary:  # `<image>` is no word of an answer
            processors.append(SuppressTokensLogitsProcessor([image_id], device=self.device))
        if self.end_text is not None:
            more |= {"stop_strings": [self.end_text], "tokenizer": self.tokenizer}
        sequences = self.model.generate(
            input_ids.to(self.device),
            image_features=features,
            attention_mask=mask.to(self.device),
            eos_token_id=sorted(self.end_ids) or None,
            pad_token_id=self.pad_id,
            logits_processor=LogitsProcessorList(processors),
            **decoding.generate_kwargs(),
            **more,
        )
        new_ids = sequences[:, input_ids.shape[1] :]  # (B, A)
        log_probs = None if recorder is None else list(recorder.of_tokens(new_ids))
        return new_ids.tolist(), log_probs

    def tokens_of_answer(self, ids: list[int]) -> tuple[list[int], int]:
        """Generated ids up to and with their end, and how many of them are words of the answer."""
        for n, token_id in enumerate(ids):
            if token_id in self.end_ids:
                return ids[: n + 1], n
            if self.end_text is None:
                continue
            answer, found, _ = self.tokenizer.decode(ids[: n + 1]).partition(self.end_text)
            if found:  # the tokens that say more than the answer are the end mark's
                n_words = n + 1
                while n_words and len(self.tokenizer.decode(ids[:n_words])) > len(answer):
                    n_words -= 1
                return ids[: n + 1], n_words
        return ids, len(ids)

    def text_of(self, ids: Sequence[int]) -> str:
        """The answer's words."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return (text.split(self.end_text)[0] if self.end_text else text).strip()

    def make_answer(self, ids: list[int], log_prob: Tensor) -> Answer:
        raw = self.tokenizer.decode(ids)
        ended = bool(ids) and (
            ids[-1] in self.end_ids or (self.end_text is not None and self.end_text in raw)
        )
        return Answer(
            raw_output=raw,
            answer=self.text_of(ids),
            confidence=float(log_prob.mean().exp()) if len(log_prob) else None,
            first_token_confidence=float(log_prob[0].exp()) if len(log_prob) else None,
            finish_reason="stop" if ended else "length",
            n_tokens=len(ids),
        )

    @torch.no_grad()
    def answer_log_probs(
        self, features: Tensor, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """log P(token | pictures, prompt, earlier tokens) of given answers, one tensor (A,) a row.

        `features` of all rows' pictures in their order, `prompts` as `prompt_ids` gives them.
        """
        rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        input_ids, mask = left_pad(rows, self.pad_id)
        asked = torch.zeros_like(mask, dtype=torch.bool)  # (B, T): what predicts an answer's token
        for i, answer in enumerate(answers):
            asked[i, -len(answer) - 1 : -1] = bool(answer)
        logits = self.model(
            input_ids=input_ids.to(self.device),
            attention_mask=mask.to(self.device),
            image_features=features,
            logits_to_keep=asked.to(self.device),
            use_cache=False,
        ).logits  # (A of all rows, V)
        targets = torch.tensor([i for answer in answers for i in answer], dtype=torch.long)
        chosen = logits.float().log_softmax(dim=-1).cpu().gather(1, targets[:, None])[:, 0]
        return list(chosen.split([len(answer) for answer in answers]))


def listed(pictures: Pictures) -> Sequence[int]:
    if pictures is None:
        return []
    return [pictures] if isinstance(pictures, int) else pictures


def end_token_ids(model: Llava, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """What ends an answer by the model folder's own word: generation config and tokenizer."""
    own = model.language_model.generation_config.eos_token_id
    return {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids -> input_ids and attention_mask, both (B, longest row)."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


class TokenLogProbs(LogitsProcessor):
    """Notes log P of each chosen token, before anything changes the scores; keeps one step's."""

    def __init__(self) -> None:
        self.chosen: list[Tensor] = []  # (B,) a step
        self.latest: Tensor | None = None  # (B, V), whose token is not chosen yet

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.note(input_ids[:, -1])
        self.latest = scores.float().log_softmax(dim=-1)
        return scores

    def note(self, tokens: Tensor) -> None:
        if self.latest is not None:
            self.chosen.append(self.latest.gather(1, tokens[:, None])[:, 0])

    def of_tokens(self, new_ids: Tensor) -> Tensor:
        """(B, A), for all generated tokens, those behind an end too."""
        self.note(new_ids[:, -1])
        return torch.stack(self.chosen, dim=1)[:, : new_ids.shape[1]].cpu()
