"""The model that trains: loaded, opened as --tuning says, and its loss for each task.

One of transformers' own classes, so that what is trained is what `load_blip` and transformers load.
Frozen weights are in the compute dtype, trained ones in fp32, because small bf16 updates round to
nothing. The vision tower's layers can learn at rates of their own (--layer_decay), given to the
optimizer as groups with own base rates, which every schedule then scales. The losses: losses.py.

Used by train.py and training_plan.py; reads a model folder, writes nothing.
Shapes: P pictures, B texts or pairs, N image tokens, T text tokens, A answers, K learned tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from lavis_apps.blip import Blip, blip_kind, load_blip
from lavis_apps.evaluation_settings import read_lines
from lavis_apps.losses import (
    answer_loss,
    contrastive_loss,
    hard_negatives,
    matching_loss,
    next_tokens,
    token_losses,
)
from lavis_apps.settings import TASK_KINDS
from lavis_apps.train_settings import TrainOptions
from lavis_apps.training_data import Collator
from lavis_apps.training_inputs import BlipInputs, ClipInputs
from shared.loading import model_folder, pick_dtype
from shared.options import IGNORE_INDEX, UserError, read_json
from shared.training import trainable_to_fp32

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import TrainingArguments

    from lavis_apps.clip import Clip

TEMPERATURE_BOUNDS = (0.001, 0.5)  # BLIP holds its own there (models/blip_retrieval.py)
MAX_LOGIT_SCALE = 4.6052  # ln 100: CLIP holds its own below (arXiv 2103.00020, section 2.5)
TOWER = "vision_model."
# Component -> beginnings of its parameters' names; what fits none is projections and heads.
COMPONENTS = {
    "vision tower": (TOWER,),
    "text encoder": ("text_encoder.", "text_model."),
    "text decoder": ("text_decoder.",),
}
HEADS = "projections and heads"
LAYER = re.compile(r"(?:^|\.)vision_model\.encoder\.layers\.(\d+)\.")
BEFORE_LAYERS = re.compile(r"(?:^|\.)vision_model\.(?:embeddings|pre_layrnorm)\.")
LAST_NORM = re.compile(r"(?:^|\.)vision_model\.post_layernorm\.")
# the linear layers that LoRA may take, by their paths behind the encoder's layer number
IN_LAYERS = r"(?:vision_model|text_\w+)\..*\.layers?\.\d+\."
ATTENTION = r"(?:self_attn\.\w+|(?:cross)?attention\.(?:self|output)\.\w+)"
FEED_FORWARD = r"(?:mlp\.fc[12]|(?:intermediate|output)\.dense)"
# what a task's loss does not depend on: training it would only wait for gradients
IDLE = {"classification": re.compile(r"\.crossattention\.|(?:^|\.)itm_head\.")}


@dataclass(frozen=True)
class Loaded:
    """A model ready to train. `asked` asks the same weights; `view` is peft's with LoRA."""

    asked: Blip | Clip
    view: PeftModel | None
    base_folder: Path

    @property
    def model(self) -> nn.Module:
        return self.asked.model

    def inputs(self) -> BlipInputs | ClipInputs:
        return BlipInputs(self.asked) if isinstance(self.asked, Blip) else ClipInputs(self.asked)


def compute_dtype(options: TrainOptions, training: TrainingArguments) -> torch.dtype:
    """The dtype of frozen weights and of the computation. Raises UserError for fp16 unscaled."""
    dtype = pick_dtype(options.dtype, training.device)
    if dtype == torch.float16 and not training.fp16:
        raise UserError(
            "this device computes in float16, whose gradients vanish unless the loss is scaled: "
            "give --fp16 true, or --dtype float32"
        )
    return dtype


def check_family(folder: Path, task: str) -> str:
    """ "blip" or "clip". Raises UserError for a model that this task cannot train."""
    if blip_kind(folder) == TASK_KINDS[task]:
        return "blip"
    if read_json(folder / "config.json").get("model_type") == "clip":
        if task in ("retrieval", "classification"):
            return "clip"
        raise UserError(f"{folder}: a CLIP writes no text; --task {task} trains a BLIP")
    clip = " or a CLIP" if task in ("retrieval", "classification") else ""
    raise UserError(f"{folder}: --task {task} trains a BLIP for {TASK_KINDS[task]}{clip}")


def load_for_training(options: TrainOptions, training: TrainingArguments) -> Loaded:
    """The model with exactly that open which trains. Raises UserError, MissingError."""
    from transformers import set_seed

    folder = model_folder(options.model or "", options.revision)
    where: dict[str, Any] = {"device": str(training.device), "dtype": "float32"}
    asked: Blip | Clip
    if check_family(folder, options.task) == "clip":
        from lavis_apps.clip import load_clip

        asked = load_clip(folder, **where)
    else:
        asked = load_blip(folder, **where)
    set_seed(training.seed)  # of LoRA's first weights
    view = open_weights(asked.model, options)
    dtype = compute_dtype(options, training)
    for parameter in asked.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return Loaded(asked, view, folder)


def open_weights(model: nn.Module, options: TrainOptions) -> PeftModel | None:
    """Freeze and open as --tuning says; the model is changed in place. Returns peft's view of it.

    Raises UserError when nothing would train, or something in less than fp32.
    """
    view = None
    if options.tuning == "lora":
        from peft import LoraConfig, get_peft_model

        every = f"(?:{ATTENTION}|{FEED_FORWARD})"
        leaf = ATTENTION if options.lora_layers == "attention" else every
        linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        targets = [name for name in sorted(linear) if re.fullmatch(IN_LAYERS + leaf, name)]
        settings = LoraConfig(
            r=options.lora_rank,
            lora_alpha=options.lora_alpha,
            lora_dropout=options.lora_dropout,
            target_modules=targets,
            bias="none",
        )
        model.requires_grad_(False)
        view = get_peft_model(model, settings)
    else:
        model.requires_grad_(True)
    idle = IDLE.get(options.task)
    for name, parameter in model.named_parameters():
        frozen_tower = options.tuning == "frozen_tower" and component_of(name) == "vision tower"
        if frozen_tower or (idle and idle.search(name)):
            parameter.requires_grad_(False)
    trainable_to_fp32(model)
    trained = {component_of(name) for name, p in model.named_parameters() if p.requires_grad}
    wanted = {component_of(name) for name, _ in model.named_parameters()}
    if options.tuning == "frozen_tower":
        wanted.discard("vision tower")
    if options.tuning == "lora":
        wanted.discard(HEADS)
    if trained != wanted:
        raise UserError(f"--tuning {options.tuning}: {sorted(trained ^ wanted)} not as declared")
    return view


def component_of(name: str) -> str:
    """The component of a parameter, LoRA's included."""
    for component, starts in COMPONENTS.items():
        if name.startswith(starts):
            return component
    return HEADS


def trained_map(model: nn.Module) -> dict[str, tuple[int, int]]:
    """component -> (weights, trained weights)."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        total, trained = counts.get(component_of(name), (0, 0))
        size = parameter.numel()
        counts[component_of(name)] = (
            total + size,
            trained + (size if parameter.requires_grad else 0),
        )
    return counts


def print_trained(model: TaskModel) -> None:
    for component, (total, trained) in trained_map(model.model).items():
        print(f"  {component}: {total:,} weights, {trained:,} trained")


def class_sentences(
    options: TrainOptions, asked: Blip | Clip, classes: Sequence[str]
) -> list[list[str]]:
    """For each class its name in every template, as classification.py asks. UserError."""
    if not classes:
        return []
    from lavis_apps.classification import Classifier

    templates = read_lines(options.templates) if options.templates else None
    with torch.no_grad():
        return Classifier(asked).prepare(classes, templates).sentences


def layer_rates(model: nn.Module, rate: float, decay: float) -> dict[str, float]:
    """Start of a trained parameter's name -> its learning rate, for the vision tower's layers.

    With L layers, patches and positions are layer 0, block i is layer i + 1, the last norm belongs
    to layer L; layer l learns at rate x decay ** (L + 1 - l), all else at `rate` (LAVIS' ViT has
    the same, lavis/models/eva_vit.py, where no schedule heeds it).
    """
    if decay == 1:
        return {}
    named = [name for name, p in model.named_parameters() if p.requires_grad]
    blocks = {name: found for name in named if (found := LAYER.search(name))}
    layers = 1 + max((int(found[1]) for found in blocks.values()), default=-1)
    rates = {}
    for name in named:
        if name in blocks:
            start, layer = name[: blocks[name].end()], int(blocks[name][1]) + 1
        elif found := BEFORE_LAYERS.search(name):
            start, layer = name[: found.end()], 0
        elif found := LAST_NORM.search(name):
            start, layer = name[: found.end()], layers
        else:
            continue
        rates[start] = rate * decay ** (layers + 1 - layer)
    return rates


class TaskModel(nn.Module):
    """The training model: mixed precision, the task's loss, frozen parts without dropout.

    BLIP's temperature of ITC is learned here and is no weight of transformers' class: it goes into
    the manifest. CLIP has its own, `logit_scale`.
    """

    def __init__(
        self,
        loaded: Loaded,
        options: TrainOptions,
        dtype: torch.dtype,
        collator: Collator,
        class_sentences: Sequence[Sequence[str]] = (),
    ) -> None:
        super().__init__()
        self.model = loaded.model
        self.asked = loaded.asked
        self.collator = collator
        self.task = options.task
        self.label_smoothing = options.label_smoothing
        self.compute_dtype = dtype
        self.n_classes = len(class_sentences)
        self.class_tokens: dict[str, Tensor] = {}  # (C x templates, T), a class's together
        if class_sentences:
            said = [text for sentences in class_sentences for text in sentences]
            self.class_tokens = collator.inputs.tokens(said, "[CLS]")
        self.tower_trains = any(
            p.requires_grad
            for n, p in self.model.named_parameters()
            if component_of(n) == "vision tower"
        )
        self.temperature: nn.Parameter | None = None
        if isinstance(self.asked, Blip) and self.task in ("retrieval", "classification"):
            self.temperature = nn.Parameter(
                torch.tensor(options.temperature, device=self.model.device)
            )

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | int | float | None = None,
        **batch: Tensor,
    ) -> dict[str, Tensor]:
        """The loss summed over what `labels` counts, over `num_items_in_batch` (of all accumulated
        batches and processes; None: of this one)."""
        losses: dict[str, Callable[..., Tensor]] = {
            "caption": self.caption,
            "vqa": self.vqa,
            "retrieval": self.retrieval,
            "classification": self.classification,
        }
        self.bound_temperature()
        device, mixed = pixel_values.device.type, self.compute_dtype != torch.float32
        with torch.autocast(device, self.compute_dtype, enabled=mixed):
            loss = losses[self.task](pixel_values, labels=labels, **batch)
        count = int((labels != IGNORE_INDEX).sum())
        return {"loss": loss / (count if num_items_in_batch is None else num_items_in_batch)}

    def caption(
        self,
        pixel_values: Tensor,
        picture_of: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """Sum of the learned tokens' losses."""
        states = self.asked.states(pixel_values)[picture_of]  # (B, N, D)
        seen = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        return self.decoder_losses(input_ids, attention_mask, labels, states, seen)[0].sum()

    def vqa(
        self,
        pixel_values: Tensor,
        picture_of: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        answer_input_ids: Tensor,
        answer_attention_mask: Tensor,
        answer_labels: Tensor,
        answer_weights: Tensor,
        question_of: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """Sum over the questions of their answers' losses, weighted. The decoder does not see the
        questions' padding."""
        states = self.asked.states(pixel_values)[picture_of]
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        question = self.asked.fused_states(states, tokens).last_hidden_state  # (B, T, D)
        losses, learned = self.decoder_losses(
            answer_input_ids,
            answer_attention_mask,
            answer_labels,
            question[question_of],
            attention_mask[question_of],
        )
        return answer_loss(losses, learned, answer_weights)

    def decoder_losses(
        self, input_ids: Tensor, mask: Tensor, labels: Tensor, states: Tensor, seen: Tensor
    ) -> tuple[Tensor, Tensor]:
        """((K,) losses, (B, T) learned): the head is computed where a token is learned only."""
        decoder = self.model.text_decoder
        learned, targets = next_tokens(labels)
        hidden = decoder.bert(
            input_ids=input_ids,
            attention_mask=mask,
            encoder_hidden_states=states,
            encoder_attention_mask=seen,
            is_decoder=True,
            use_cache=False,
        ).last_hidden_state  # (B, T, D)
        return token_losses(decoder.cls(hidden[learned]), targets, self.label_smoothing), learned

    def retrieval(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        same: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """B x (ITC, for BLIP + ITM)."""
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        if not isinstance(self.asked, Blip):
            features = self.clip_pictures(pixel_values), self.clip_texts(tokens)
            return len(labels) * contrastive_loss(self.similarities(*features), same)
        states = self.asked.states(pixel_values)
        texts = self.asked.project_texts(self.asked.text_states(tokens))
        similarities = self.similarities(self.asked.image_features(states), texts)
        pictures, said = hard_negatives(similarities, same)
        true = torch.arange(len(labels), device=labels.device)
        said = torch.cat([true, said])
        asked = input_ids.clone()
        asked[:, 0] = self.collator.inputs.first["[ENC]"]
        fused = self.asked.fused_states(
            states[torch.cat([true, pictures])],
            {"input_ids": asked[said], "attention_mask": attention_mask[said]},
        )
        logits = self.model.itm_head(fused.last_hidden_state[:, 0])  # (B + M, 2)
        itc = contrastive_loss(similarities, same)
        return len(labels) * (itc + matching_loss(logits, len(labels)))

    def classification(self, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """Sum of the cross-entropies of cosines with the classes' sentences. A class's feature is
        the mean of its templates' (classification.py)."""
        tokens = {name: ids.to(labels.device) for name, ids in self.class_tokens.items()}
        if isinstance(self.asked, Blip):
            images = self.asked.image_features(self.asked.states(pixel_values))
            texts = self.asked.project_texts(self.asked.text_states(tokens))
        else:
            images, texts = self.clip_pictures(pixel_values), self.clip_texts(tokens)
        of_class = texts.float().reshape(self.n_classes, -1, texts.shape[-1]).mean(dim=1)
        logits = self.similarities(images, normalize(of_class, dim=-1))
        return cross_entropy(logits.float(), labels, reduction="sum")

    def clip_pictures(self, pixel_values: Tensor) -> Tensor:
        seen = self.model.vision_model(pixel_values=pixel_values).pooler_output
        return normalize(self.model.visual_projection(seen).float(), dim=-1)

    def clip_texts(self, tokens: dict[str, Tensor]) -> Tensor:
        read = self.model.text_model(**tokens).pooler_output
        return normalize(self.model.text_projection(read).float(), dim=-1)

    def similarities(self, images: Tensor, texts: Tensor) -> Tensor:
        """Cosines over the temperature, float32."""
        cosines = images.float() @ texts.float().T
        if self.temperature is None:
            return cosines * self.model.logit_scale.float().exp()
        return cosines / self.temperature

    def learned_temperature(self) -> float | None:
        """BLIP's of ITC, within its bounds; None where it is a weight of the model, or not used."""
        if self.temperature is None:
            return None
        return float(self.temperature.detach().clamp(*TEMPERATURE_BOUNDS))

    @torch.no_grad()
    def bound_temperature(self) -> None:
        if self.temperature is not None:
            self.temperature.clamp_(*TEMPERATURE_BOUNDS)
        elif hasattr(self.model, "logit_scale"):
            self.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def stand_in(self) -> dict[str, Tensor]:
        """One blank picture with one word, for a process whose samples are all bad."""
        return self.collator.blank()

    def train(self, mode: bool = True) -> TaskModel:
        """Training mode; a frozen tower keeps its dropout off."""
        super().train(mode)
        if not self.tower_trains:
            self.model.vision_model.eval()
        return self

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """The Trainer's hook: layers are computed again in the backward pass, not remembered."""
        self.model.gradient_checkpointing_enable(**settings)
