"""BLIP-2 (arXiv 2301.12597): prompts, inputs, answers and the training forward pass.

A frozen ViT encodes the picture, the Q-Former turns it into N query embeddings, a linear layer
projects them to the language model's width, and they stand in the place of N placeholder tokens in
front of the prompt. `generate_plain` is transformers' own path, one picture and one prompt at a
time; `Blip2Answerer` encodes each picture once and answers many prompts, and is tested to give the
same tokens. transformers 5 silently ignores the picture when placeholders are missing, so their
number is checked here before every forward pass.

Shapes: P pictures, B questions, N image tokens, T text tokens, D width, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from blip2_qlora.settings import MAX_CAPTION_TOKENS
from shared.answering import Answer
from shared.loading import (
    load_adapter,
    load_pretrained,
    model_folder,
    pick_device,
    pick_dtype,
)
from shared.options import IGNORE_INDEX, ModelOptions, UserError, read_json

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor

# Names of LoRA's target layers, anchored: a loose "fc1" or "q" would hit the vision tower too.
LORA_TARGETS = {
    "opt": r"language_model\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
    "t5": r"language_model\..*\.(q|k|v|o|wi_0|wi_1|wo)",
}
QFORMER_TARGETS = r"qformer\..*\.(query|key|value|dense)"
# 4-bit only for the language model: the rest is small or sensitive.
NOT_QUANTIZED = ("language_projection", "qformer", "vision_model", "lm_head")
COMPONENTS = {
    "vision tower": "vision_model.",
    "Q-Former": "qformer.",
    "query tokens": "query_tokens",
    "projection": "language_projection.",
    "language model": "language_model.",
}
ARCHITECTURES = Path(__file__).with_name("architectures.json")
T5_MAX_TOKENS = 512  # Flan-T5 was trained at this length; its relative positions set no hard bound


@dataclass(frozen=True)
class Decoding:
    """How answers are generated; recorded with every run."""

    num_beams: int = 5
    length_penalty: float = -1.0
    max_new_tokens: int = 10
    min_new_tokens: int = 1

    def generate_kwargs(self) -> dict[str, Any]:
        beam = {"length_penalty": self.length_penalty} if self.num_beams > 1 else {}
        return {
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens,
            "do_sample": False,
            **beam,
        }


def caption_decoding(*, greedy: bool, min_tokens: int) -> Decoding:
    """BLIP-2's zero-shot captions: 5 beams, `min_tokens` to 30 tokens (LAVIS' caption task)."""
    return Decoding(
        num_beams=1 if greedy else 5,
        length_penalty=1.0,
        max_new_tokens=MAX_CAPTION_TOKENS,
        min_new_tokens=min_tokens,
    )


@dataclass(frozen=True)
class Preset:
    """A published way to ask: prompt with one {} for the question, and decoding."""

    prompt: str
    decoding: Decoding


# paper: arXiv 2301.12597, section 4.1 and appendix; lavis: the YAML and defaults of LAVIS' VQA task
# (projects/blip2/eval/vqav2_zeroshot_*.yaml), whose OPT code has length penalty 0, T5's -1.
PRESETS = {
    ("paper", "opt"): Preset("Question: {} Answer:", Decoding()),
    ("paper", "t5"): Preset("Question: {} Short answer:", Decoding()),
    ("lavis", "opt"): Preset("Question: {} Short answer:", Decoding(length_penalty=0.0)),
    ("lavis", "t5"): Preset("Question: {} Short answer:", Decoding()),
}


def language_model_kind(config: Blip2Config) -> str:
    """ "opt" (decoder only) or "t5" (encoder-decoder). Raises UserError for anything else."""
    kind = config.text_config.model_type
    if kind not in LORA_TARGETS:
        raise UserError(f"a BLIP-2 with a {kind} language model is not supported, only OPT and T5")
    return kind


def lora_targets(config: Blip2Config, train_qformer: bool) -> str:
    """The regular expression of the layers that get LoRA matrices."""
    targets = LORA_TARGETS[language_model_kind(config)]
    return f"({targets})|({QFORMER_TARGETS})" if train_qformer else targets


def choose_preset(config: Blip2Config, name: str, prompt: str | None, greedy: bool) -> Preset:
    """The preset's prompt and decoding, each replaced when the user gives his own."""
    preset = PRESETS[name, language_model_kind(config)]
    if prompt is not None and [prompt.count(part) for part in ("{}", "{", "}")] != [1, 1, 1]:
        raise UserError(
            f"--prompt {prompt!r} must contain {{}} once, where the question stands, and no other "
            "brace"
        )
    return Preset(prompt or preset.prompt, Decoding(num_beams=1) if greedy else preset.decoding)


def read_config(name: str, revision: str | None = None) -> Blip2Config:
    """The model's config: from its folder, else from `architectures.json`, so that `--dry_run`
    needs no weights. Raises MissingError when the model is neither there nor known."""
    from transformers import Blip2Config

    known = json.loads(ARCHITECTURES.read_text(encoding="utf-8"))["models"].get(name)
    try:
        folder = model_folder(name, revision)
    except UserError:
        if known is None:
            raise
        return Blip2Config(**known)
    config = read_json(folder / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "blip-2":
        raise UserError(f"{folder}: a {kind} model; this experiment needs a BLIP-2")
    return Blip2Config.from_pretrained(folder)


def load_blip2(options: ModelOptions, adapter: str | None) -> tuple[nn.Module, Blip2Processor]:
    """Model (with the adapter on it, when given) and processor, checked to belong together.

    With an adapter the processor is the one saved beside it. Raises UserError with the cause.
    """
    from transformers import Blip2ForConditionalGeneration, Blip2Processor

    folder = model_folder(options.model, options.revision)
    read_config(options.model, options.revision)
    device = pick_device(options.device)
    model = load_pretrained(
        Blip2ForConditionalGeneration,
        folder,
        device=device,
        dtype=pick_dtype(options.dtype, device),
        quantization=options.quantization,
        skip_modules=NOT_QUANTIZED,
    )
    processor_folder = folder
    if adapter:
        model = load_adapter(model, Path(adapter), folder)
        if (Path(adapter) / "processor_config.json").is_file():
            processor_folder = Path(adapter)
    try:
        processor = Blip2Processor.from_pretrained(processor_folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{processor_folder}: the processor cannot be loaded ({error})") from error
    check_placeholders(base_model(model).config, processor)
    return model, processor


def base_model(model: nn.Module) -> Blip2ForConditionalGeneration:
    """The BLIP-2 inside a PEFT wrapper (its LoRA layers stay in place), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def check_placeholders(config: Blip2Config, processor: Blip2Processor) -> None:
    """Model and processor must agree on the image token and its count, or the picture is ignored.

    Old Hub processors lack `num_query_tokens`; it is then set from the config. Raises UserError.
    """
    if config.image_token_id is None:
        raise UserError("the model's config has no image_token_index: it cannot be shown a picture")
    if processor.num_query_tokens is None:
        processor.num_query_tokens = config.num_query_tokens
    if processor.num_query_tokens != config.num_query_tokens:
        raise UserError(
            f"the processor writes {processor.num_query_tokens} image tokens, the model expects "
            f"{config.num_query_tokens}: they don't belong together"
        )
    token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    if token_id != config.image_token_id:
        raise UserError(
            f"the tokenizer's <image> has id {token_id}, the model expects {config.image_token_id}"
        )


def end_token_id(model: nn.Module) -> int:
    """The token that ends an answer; OPT checkpoints of BLIP-2 stop at the newline, not at </s>."""
    base = base_model(model)
    end = base.generation_config.eos_token_id
    end = base.config.text_config.eos_token_id if end is None else end
    return end[0] if isinstance(end, list) else end


def prompt_ids(processor: Blip2Processor, prompt: str) -> list[int]:
    """[<image>] * N + the tokenized prompt with its special tokens, as in Blip2Processor."""
    image_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    text = processor.tokenizer(prompt)["input_ids"]
    return [image_id] * processor.num_query_tokens + text


def room_for_prompt(config: Blip2Config, max_new_tokens: int) -> int:
    """How many tokens a prompt may have besides the image tokens."""
    text = config.text_config
    total = getattr(text, "max_position_embeddings", None) or T5_MAX_TOKENS
    return total - config.num_query_tokens - max_new_tokens


def embed_prompts(
    model: Blip2ForConditionalGeneration, features: Tensor, input_ids: Tensor
) -> Tensor:
    """Token embeddings with each row's picture in the place of its placeholders.

    features (B, N, D), input_ids (B, T) -> (B, T, D). Raises ValueError when a row does not hold
    exactly N placeholders.
    """
    is_image = input_ids == model.config.image_token_id  # (B, T)
    counts = is_image.sum(dim=1)
    if not bool((counts == features.shape[1]).all()):
        raise ValueError(
            f"rows with {counts.tolist()} image tokens for pictures of {features.shape[1]}"
        )
    embeds = model.get_input_embeddings()(input_ids)  # (B, T, D)
    return embeds.masked_scatter(is_image.unsqueeze(-1), features.to(embeds.dtype))


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids -> input_ids and attention_mask, both (B, longest row)."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


class Blip2Answerer:
    """Answers prompts about pictures; implements `shared.answering.VisionLanguageModel`."""

    def __init__(self, model: nn.Module, processor: Blip2Processor, decoding: Decoding) -> None:
        self.model = base_model(model)
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.decoding = decoding
        self.end_id = end_token_id(model)
        pad = self.tokenizer.pad_token_id
        self.pad_id = self.end_id if pad is None else pad

    @property
    def device(self) -> torch.device:
        return self.model.query_tokens.device

    def prompt_problem(self, prompt: str) -> str | None:
        room = room_for_prompt(self.model.config, self.decoding.max_new_tokens)
        text_ids = self.tokenizer(prompt)["input_ids"]
        if self.model.config.image_token_id in text_ids:
            return "the question contains <image>, which stands for the picture itself: remove it"
        length = len(text_ids)
        if length <= room:
            return None
        return (
            f"the prompt has {length} tokens, the model has room for {room}: shorten the question"
        )

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image]) -> Tensor:
        """Pictures -> projected query embeddings (P, N, D)."""
        pixels = self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        dtype = self.model.vision_model.embeddings.patch_embedding.weight.dtype
        return self.model.get_image_features(pixels.to(self.device, dtype)).pooler_output

    @torch.no_grad()
    def answer(
        self, features: Tensor, picture_index: Sequence[int], prompts: Sequence[str]
    ) -> list[Answer]:
        """Greedy or beam answers; `features` (P, N, D), one answer for each prompt, in order."""
        rows = [prompt_ids(self.processor, prompt) for prompt in prompts]
        features = features[list(picture_index)]  # (B, N, D)
        input_ids, mask = left_pad(rows, self.pad_id)
        output = self.model.language_model.generate(
            inputs_embeds=embed_prompts(self.model, features, input_ids.to(self.device)),
            attention_mask=mask.to(self.device),
            eos_token_id=self.end_id,
            pad_token_id=self.pad_id,
            suppress_tokens=[self.model.config.image_token_id],  # never a word of an answer
            **self.decoding.generate_kwargs(),
        )
        new_ids = [self.trim(row) for row in output.tolist()]
        words = [ids[:-1] if ids and ids[-1] == self.end_id else ids for ids in new_ids]
        log_probs = self.answer_log_probs(features, rows, words)
        return [
            self.make_answer(ids, log_prob)
            for ids, log_prob in zip(new_ids, log_probs, strict=True)
        ]

    def trim(self, ids: list[int]) -> list[int]:
        """New tokens up to and with the end token; T5 outputs begin with the decoder's start."""
        if self.model.language_model.config.is_encoder_decoder:
            ids = ids[1:]
        return ids[: ids.index(self.end_id) + 1] if self.end_id in ids else ids

    def make_answer(self, ids: list[int], log_prob: Tensor) -> Answer:
        ended = bool(ids) and ids[-1] == self.end_id
        return Answer(
            raw_output=self.tokenizer.decode(ids),
            answer=self.tokenizer.decode(ids, skip_special_tokens=True).strip(),
            confidence=float(log_prob.mean().exp()) if len(log_prob) else None,
            first_token_confidence=float(log_prob[0].exp()) if len(log_prob) else None,
            finish_reason="stop" if ended else "length",
            n_tokens=len(ids),
        )

    @torch.no_grad()
    def answer_log_probs(
        self, features: Tensor, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
    ) -> list[Tensor]:
        """log P(token | picture, prompt, earlier tokens) of given answers, one tensor (A,) a row.

        features (B, N, D); `prompts` are ids with placeholders, `answers` ids without end token.
        """
        kind = language_model_kind(self.model.config)
        rows = [encode_pair(p, a, kind) for p, a in zip(prompts, answers, strict=True)]
        batch = pad_pairs(rows, self.pad_id, kind)
        logits, targets = answer_logits(
            self.model,
            features,
            *(batch[key].to(self.device) for key in ("input_ids", "attention_mask", "labels")),
        )
        chosen = logits.float().log_softmax(dim=-1).gather(1, targets[:, None])[:, 0].cpu()
        return list(chosen.split([len(answer) for answer in answers]))


def generate_plain(
    model: nn.Module, processor: Blip2Processor, image: Image, prompt: str, decoding: Decoding
) -> str:
    """transformers' own path for one picture and one prompt: the reference for the fast one."""
    base = base_model(model)
    inputs = processor(images=image, text=prompt, return_tensors="pt").to(base.query_tokens.device)
    n_placeholders = int((inputs["input_ids"] == base.config.image_token_id).sum())
    if n_placeholders != base.config.num_query_tokens:
        raise ValueError(f"{n_placeholders} image tokens instead of {base.config.num_query_tokens}")
    dtype = base.vision_model.embeddings.patch_embedding.weight.dtype
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    output = base.generate(
        **inputs,
        eos_token_id=end_token_id(model),
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=[base.config.image_token_id],
        **decoding.generate_kwargs(),
    )[0]
    if not base.language_model.config.is_encoder_decoder:
        output = output[inputs["input_ids"].shape[1] :]  # OPT returns the prompt too
    return processor.tokenizer.decode(output, skip_special_tokens=True).strip()


def encode_pair(prompt: Sequence[int], answer: Sequence[int], kind: str) -> dict[str, list[int]]:
    """Ids and labels of one question with its answer, built segment by segment.

    OPT: one sequence, only the answer's tokens are labels. T5: the prompt goes to the encoder, the
    labels are the decoder's whole output.
    """
    if kind == "t5":
        return {"input_ids": list(prompt), "labels": list(answer)}
    return {
        "input_ids": [*prompt, *answer],
        "labels": [IGNORE_INDEX] * len(prompt) + list(answer),
    }


def answer_ids(processor: Blip2Processor, answer: str, end_id: int, kind: str) -> list[int]:
    """The tokens to learn: the answer and the end token (an empty answer is its end token alone).

    OPT continues "... Answer:" with a space, which its BPE keeps inside the next token.
    """
    text = f" {answer}" if kind == "opt" and answer else answer
    return [*processor.tokenizer(text, add_special_tokens=False)["input_ids"], end_id]


def pad_pairs(rows: Sequence[dict[str, list[int]]], pad_id: int, kind: str) -> dict[str, Tensor]:
    """`encode_pair` rows -> input_ids, attention_mask (B, T) and labels (B, T), T5: (B, A).

    Left padding for the sequence that is read, right padding for T5's labels.
    """
    input_ids, mask = left_pad([row["input_ids"] for row in rows], pad_id)
    if kind == "t5":
        width = max(1, *(len(row["labels"]) for row in rows))
        labels = torch.tensor(
            [row["labels"] + [IGNORE_INDEX] * (width - len(row["labels"])) for row in rows]
        )
    else:
        labels, _ = left_pad([row["labels"] for row in rows], IGNORE_INDEX)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def answer_logits(
    model: Blip2ForConditionalGeneration,
    features: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
) -> tuple[Tensor, Tensor]:
    """Logits at the answer positions only, and their target ids: (A_total, V), (A_total,).

    features (B, N, D), input_ids and attention_mask (B, T), labels as `pad_pairs` gives them. The
    language model's head sees no other position: a VQA answer has 1 to 3 tokens out of about 50.
    """
    embeds = embed_prompts(model, features, input_ids)  # (B, T, D)
    language_model = model.language_model
    if language_model.config.is_encoder_decoder:
        logits = language_model(
            inputs_embeds=embeds, attention_mask=attention_mask, labels=labels
        ).logits  # (B, A, V)
        kept = labels != IGNORE_INDEX
        return logits[kept], labels[kept]
    hidden = language_model.model(
        inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state  # (B, T, D)
    kept = labels[:, 1:] != IGNORE_INDEX  # position t predicts token t + 1
    return language_model.lm_head(hidden[:, :-1][kept]), labels[:, 1:][kept]


class Blip2ForVqa(nn.Module):
    """The training model: each picture encoded once for all its questions in the batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixel_values: Tensor,
        picture_index: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """pixel_values (P, 3, H, W), picture_index (B,), the rest as `pad_pairs` gives it.

        The loss is the summed cross-entropy of the answer tokens over `num_items_in_batch` (their
        number over all accumulated batches and processes), so it does not depend on how a batch is
        cut. Raises ValueError when nothing is to be learned.
        """
        base = base_model(self.model)
        dtype = base.vision_model.embeddings.patch_embedding.weight.dtype
        features = base.get_image_features(pixel_values.to(dtype)).pooler_output  # (P, N, D)
        logits, targets = answer_logits(
            base, features[picture_index], input_ids, attention_mask, labels
        )
        if not len(targets):
            raise ValueError("a batch without a single token to learn")
        total = nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        n_items = len(targets) if num_items_in_batch is None else num_items_in_batch
        return {"loss": total / n_items, "correct": (logits.argmax(-1) == targets).sum()}

    def train(self, mode: bool = True) -> Blip2ForVqa:
        """Training mode; a component without trainable weights keeps its dropout off."""
        super().train(mode)
        base = base_model(self.model)
        for part in (base.vision_model, base.qformer):
            part.train(mode and any(p.requires_grad for p in part.parameters()))
        return self

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """The Trainer's hook: only the language model is worth recomputing."""
        base_model(self.model).language_model.activation_checkpointing_enable(**settings)
