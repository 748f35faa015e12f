"""Which weights are vision tower, projector and language model, and which of them train.

Declared by the beginnings of parameter names of transformers' own classes, for each family by its
config.json's `model_type`; `training_model.py` applies the declaration, prints it and checks it by
name. LoRA (arXiv 2106.09685) is anchored to the language model: a suffix such as `q_proj` alone
would also hit the vision tower.

| train_type | vision tower   | projector        | language model           |
|------------|----------------|------------------|--------------------------|
| projector  | frozen         | trained          | frozen                   |
| lora       | frozen         | --train_projector| LoRA                     |
| qlora      | frozen         | --train_projector| LoRA on 4-bit weights    |
| full       | --train_vision | --train_projector| trained, with its head   |

Used by train.py, planning.py and merge_adapter.py; reads and writes nothing, needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from shared.options import UserError

VISION, PROJECTOR, LANGUAGE = "vision tower", "projector", "language model"
_LANGUAGE_MODEL = ("model.language_model.", "lm_head.")
_QWEN_VL = {
    VISION: ("model.visual.",),
    PROJECTOR: ("model.visual.merger.",),
    LANGUAGE: _LANGUAGE_MODEL,
}
# model_type -> component -> beginnings of its parameters' names; the longest one that fits counts.
# Qwen3-VL also brings features of early layers to the language model (deepstack). MiniCPM-V 4.6
# merges patches inside its tower too (vit_merger): that belongs to the tower.
COMPONENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "llava": {
        VISION: ("model.vision_tower.",),
        PROJECTOR: ("model.multi_modal_projector.",),
        LANGUAGE: _LANGUAGE_MODEL,
    },
    "qwen2_vl": _QWEN_VL,
    "qwen2_5_vl": _QWEN_VL,
    "qwen3_vl": _QWEN_VL
    | {PROJECTOR: ("model.visual.merger.", "model.visual.deepstack_merger_list.")},
    "minicpmv4_6": {
        VISION: ("model.vision_tower.",),
        PROJECTOR: ("model.merger.",),
        LANGUAGE: _LANGUAGE_MODEL,
    },
}
LORA = re.compile(r"\.lora_[AB]\.")
LAYER_NUMBER = re.compile(r"\.layers\.(\d+)\.")


def components_of(model_type: str) -> dict[str, tuple[str, ...]]:
    """Raises UserError for a family that train.py does not know."""
    if model_type not in COMPONENTS:
        raise UserError(
            f"model_type {model_type}: not a family that is trained here "
            f"({', '.join(sorted(COMPONENTS))})"
        )
    return COMPONENTS[model_type]


def component_of(model_type: str, name: str) -> str | None:
    """The component of a parameter or module name; None where it belongs to none."""
    found, length = None, 0
    for component, prefixes in components_of(model_type).items():
        for prefix in prefixes:
            if name.startswith(prefix) and len(prefix) > length:
                found, length = component, len(prefix)
    return found


def trained_parts(train_type: str, train_projector: bool, train_vision: bool) -> dict[str, str]:
    """component -> which of its parameters train: "all", "lora", "used" (all that the output
    depends on); what is not listed is frozen."""
    parts = {} if train_type == "projector" else {LANGUAGE: "lora"}
    if train_type == "full":
        parts = {LANGUAGE: "all"}
    if train_projector:
        parts[PROJECTOR] = "all"
    if train_vision:
        parts[VISION] = "used"
    return parts


def trained_names(
    names: Iterable[str],
    model_type: str,
    train_type: str,
    *,
    train_projector: bool,
    train_vision: bool = False,
    idle: Iterable[str] = (),
) -> set[str]:
    """The parameter names that train; `idle` are those of the tower that no output depends on."""
    parts = trained_parts(train_type, train_projector, train_vision)
    idle = set(idle)
    wanted = set()
    for name in names:
        rule = parts.get(component_of(model_type, name) or "")
        if (
            rule == "all"
            or (rule == "lora" and LORA.search(name))
            or (rule == "used" and name not in idle)
        ):
            wanted.add(name)
    return wanted


def idle_names(
    names: Iterable[str], model_type: str, feature_layers: int | list[int] | None = None
) -> set[str]:
    """Tower parameters behind the hidden states that a LLaVA uses (-2: the last layer, the norm).

    They get no gradient: training them would only make their optimizer state and, in several
    processes, a wait for gradients that never come. Other families use their whole tower.
    """
    if model_type != "llava" or feature_layers is None:
        return set()
    tower = [name for name in names if component_of(model_type, name) == VISION]
    numbers = {name: int(found[1]) for name in tower if (found := LAYER_NUMBER.search(name))}
    n_layers = max(numbers.values(), default=-1) + 1
    chosen = [feature_layers] if isinstance(feature_layers, int) else feature_layers
    used = max(n_layers + 1 + layer if layer < 0 else layer for layer in chosen)
    return {
        name
        for name in tower
        if numbers.get(name, -1) >= used or re.search(r"\.(post_layernorm|head)\.", name)
    }


def lora_targets(model_type: str, which: str, linear_layers: Iterable[str]) -> str:
    """A pattern of the full paths of the layers that get LoRA, for peft's `target_modules`.

    `which` names layers of the language model ("q_proj,v_proj"), or is "all": every linear one but
    the head. `linear_layers` are the paths of the model's linear layers. Raises UserError for a
    name that is none of theirs: peft would train the others without a word.
    """
    (start,) = (p for p in components_of(model_type)[LANGUAGE] if p.startswith("model."))
    known = {name.rpartition(".")[2] for name in linear_layers if name.startswith(start)}
    named = {name.strip() for name in which.split(",") if name.strip()}
    leaves = known if which == "all" else named
    if not leaves or leaves - known:
        raise UserError(
            f"--lora_layers {which}: the linear layers of this language model are "
            f"{', '.join(sorted(known))}"
        )
    return rf"{re.escape(start)}.*\.({'|'.join(map(re.escape, sorted(leaves)))})"
