"""What trains in which stage: declared here, applied, printed and checked, all by name.

| train_type            | vision tower | projector | language model          |
|-----------------------|--------------|-----------|-------------------------|
| freeze_vision_and_llm | frozen       | trained   | frozen                  |
| freeze_vision         | frozen       | trained   | trained                 |
| lora, qlora           | frozen       | trained   | LoRA (qlora: on 4 bits) |
| full                  | trained      | trained   | trained                 |

LoRA (arXiv 2106.09685) goes on every linear layer of the language model but its head, as in LLaVA's
scripts: a suffix such as `q_proj` over the whole LLaVA would also hit the vision tower.
What trains is fp32, because small bf16 updates round to nothing; what is frozen keeps --dtype.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from shared.loading import keep_trainable_after_inference, trainable_report
from shared.options import UserError
from shared.training import VlmTrainer, add_lines, listed_once, trainable_to_fp32

if TYPE_CHECKING:
    from peft import PeftModel

    from llava_repro.model import Llava

SHORTENED_FILE = "shortened.txt"
COMPONENTS = {
    "vision tower": "vision_tower.",
    "projector": "projector.",
    "language model": "language_model.",
}
LORA = re.compile(r"language_model\..*\.lora_[AB]\.")
# component -> which of its parameters train; what is not listed is frozen
TRAINED = {
    "freeze_vision_and_llm": {"projector": "all"},
    "freeze_vision": {"projector": "all", "language model": "all"},
    "lora": {"projector": "all", "language model": "lora"},
    "qlora": {"projector": "all", "language model": "lora"},
    "full": {"vision tower": "used", "projector": "all", "language model": "all"},
}


def trained_names(names: Iterable[str], train_type: str, idle: Iterable[str] = ()) -> set[str]:
    """The parameter names that train; `idle` are those of the tower that no output depends on."""
    rules = TRAINED[train_type]
    idle = set(idle)
    wanted = set()
    for name in names:
        component = next((c for c, start in COMPONENTS.items() if name.startswith(start)), None)
        rule = rules.get(component or "")
        if (
            rule == "all"
            or (rule == "lora" and LORA.match(name))
            or (rule == "used" and name not in idle)
        ):
            wanted.add(name)
    return wanted


def idle_names(vision_tower: nn.Module, feature_layers: int | list[int]) -> set[str]:
    """Tower parameters behind the hidden states that are used (-2: the last layer, the norm).

    They get no gradient: training them would only make their optimizer state and, in several
    processes, a wait for gradients that never come.
    """
    numbers = {
        name: int(found[1])
        for name, _ in vision_tower.named_parameters()
        if (found := re.search(r"encoder\.layers\.(\d+)\.", name))
    }
    n_layers = max(numbers.values(), default=-1) + 1
    chosen = [feature_layers] if isinstance(feature_layers, int) else feature_layers
    used = max(n_layers + 1 + layer if layer < 0 else layer for layer in chosen)
    return {
        f"vision_tower.{name}"
        for name, _ in vision_tower.named_parameters()
        if numbers.get(name, -1) >= used or re.search(r"(^|\.)(post_layernorm|head)\.", name)
    }


def lora_targets(language_model: nn.Module) -> str:
    """A pattern of the full paths of the language model's linear layers, head left out."""
    leaves = {
        name.rpartition(".")[2]
        for name, module in language_model.named_modules()
        if name.startswith("model.") and isinstance(module, nn.Linear)
    }
    if not leaves:
        raise UserError("this language model has no linear layers to put LoRA on")
    return rf"model\..*\.({'|'.join(sorted(leaves))})"


def lora_size(language_model: nn.Module, rank: int) -> tuple[int, int]:
    """(weights, layers) of LoRA at this rank: rank x (in + out) for each layer."""
    pattern = re.compile(lora_targets(language_model))
    sizes = [
        rank * (module.in_features + module.out_features)
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear) and pattern.fullmatch(name)
    ]
    return sum(sizes), len(sizes)


def prepare_training(
    model: Llava, train_type: str, *, rank: int, alpha: int, dropout: float
) -> PeftModel | None:
    """Freeze and open as declared, LoRA matrices put in place, what trains in fp32; prints the map.

    The model is changed in place; with LoRA the result is peft's view of its language model, which
    writes the adapter. Raises UserError when something else than declared would train.
    """
    model.requires_grad_(False)
    view = None
    if train_type in ("lora", "qlora"):
        from peft import LoraConfig, get_peft_model

        # peft sees the language model alone, so nothing can land on the vision tower
        view = get_peft_model(
            model.language_model,
            LoraConfig(
                r=rank,
                lora_alpha=alpha,
                lora_dropout=dropout,
                target_modules=lora_targets(model.language_model),
                bias="none",
            ),
        )
    idle = idle_names(model.vision_tower, model.config.vision_feature_layer)
    named = dict(model.named_parameters())
    for name in trained_names(named, train_type, idle):
        named[name].requires_grad_(True)
    trainable_to_fp32(model)
    keep_trainable_after_inference(model)
    check_trained(model, train_type)
    return view


def check_trained(model: Llava, train_type: str) -> None:
    """Raises UserError unless exactly the declared parameters train, each component some of its.

    By name, not by count: the same number of wrong parameters would train as quietly.
    """
    named = dict(model.named_parameters())
    idle = idle_names(model.vision_tower, model.config.vision_feature_layer)
    wanted = trained_names(named, train_type, idle)
    found = {name for name, parameter in named.items() if parameter.requires_grad}
    if wanted != found:
        odd = sorted(wanted ^ found)
        raise UserError(f"{train_type}: {len(odd)} parameters are not as declared: {odd[0]}")
    for component in TRAINED[train_type]:
        if not any(name.startswith(COMPONENTS[component]) for name in found):
            raise UserError(f"{train_type}: nothing of the {component} would train")
    narrow = sorted(name for name in found if named[name].dtype != torch.float32)
    if narrow:
        raise UserError(f"{narrow[0]} would train in {named[narrow[0]].dtype}, not in float32")


def print_trained(model: nn.Module) -> None:
    """The map, one line a component."""
    for component, counts in trainable_report(model, COMPONENTS).items():
        print(f"  {component}: {counts['parameters']:,} weights, {counts['trainable']:,} trained")


class LlavaForTraining(nn.Module):
    """The training model: `Llava` under mixed precision, frozen parts without dropout."""

    def __init__(self, model: Llava, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.compute_dtype = compute_dtype
        self.recomputes = False

    def forward(self, input_ids: Tensor, **batch: Any) -> dict[str, Tensor]:
        """What `Llava.forward` takes with labels; the loss is in fp32 whatever the rest is."""
        mixed = self.compute_dtype != torch.float32
        with torch.autocast(input_ids.device.type, self.compute_dtype, enabled=mixed):
            return {"loss": self.model(input_ids=input_ids, use_cache=False, **batch).loss}

    @property
    def _no_split_modules(self) -> list[str]:
        """Where accelerate asks which layers FSDP2 shards one by one: those of the language model.

        All else is one group, the vision tower too: a process with text alone would otherwise not
        take part in gathering it, and the others would wait.
        """
        return sorted(self.model.language_model._no_split_modules or ())

    def stand_in(self) -> dict[str, Tensor]:
        """Two tokens of text, for a process whose samples are all bad while others train."""
        token = int(self.model.config.image_token_index == 0)  # any but the image token
        input_ids = torch.full((1, 2), token)
        return {
            "input_ids": input_ids,
            "labels": input_ids.clone(),
            "attention_mask": torch.ones_like(input_ids),
        }

    def train(self, mode: bool = True) -> LlavaForTraining:
        """Training mode; a component without trainable weights keeps its dropout off.

        transformers recomputes in training mode only: with --activation_checkpointing the frozen
        language model of stage 1 is put there too (these models have no dropout by default).
        """
        super().train(mode)
        learns = any(p.requires_grad for p in self.model.language_model.parameters())
        self.model.language_model.train(mode and (learns or self.recomputes))
        return self

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """The Trainer's hook."""
        self.recomputes = True
        self.model.activation_checkpointing_enable(**settings)


class LlavaTrainer(VlmTrainer):
    """`VlmTrainer` that also lists the samples whose text was shortened to --max_length."""

    may_shard = True

    def shortened(self) -> list[str]:
        """Names of the samples shortened so far, by all processes and by an earlier start."""
        return listed_once(self.folder / SHORTENED_FILE)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        if shortened := inputs.pop("shortened", []):
            add_lines(self.folder / SHORTENED_FILE, shortened)
        return super().training_step(model, inputs, num_items_in_batch)
