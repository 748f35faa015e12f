"""Memory of a training on each GPU, from the architecture alone: computed, never measured.

Weights, gradients and optimizer state follow from the number of parameters. What autograd keeps for
the backward pass is counted where it arises: the library's own layers run on tensors without memory
(torch's FakeTensorMode), with the LoRA matrices in place, and the bytes that they keep are summed.
Nothing of the size of the model is ever allocated.

Used by planning.py (train.py --dry_run) and memory_table.py; reads and writes nothing.
Shapes: T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from qwen_clip_llava_lora.components import (
    LANGUAGE,
    LORA,
    PROJECTOR,
    VISION,
    component_of,
    components_of,
)
from shared.loading import GIB, MemoryEstimate, weight_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Strategy = Literal["ddp", "zero2", "zero2_offload", "zero3", "zero3_offload"]
# DeepSpeed's defaults, in numbers of elements (https://www.deepspeed.ai/docs/config-json/)
REDUCE_BUCKET, LIVE_PARAMETERS = 500_000_000, 1_000_000_000
HALF = 2  # bytes of bfloat16 and float16
COUNTED = (256, 512)  # tokens of the two runs whose difference is what a token costs


@dataclass(frozen=True)
class Component:
    """One line of the trainable map."""

    parameters: int
    trained: int
    lora_layers: int = 0


@dataclass(frozen=True)
class Needs:
    """What one GPU holds while training, before it is divided among several."""

    frozen: int  # parameters
    frozen_bytes: float
    trained: int  # parameters
    activations: float  # bytes: what is kept for the backward pass, logits, the tower's work


def meta_model(config: PretrainedConfig, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """transformers' own model of this architecture without its weights (meta device)."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, dtype=dtype)


def trainable_map(model: nn.Module) -> dict[str, Component]:
    """Parameters of each component, how many train, on how many layers LoRA lies."""
    kind = model.config.model_type
    counts = {component: [0, 0, 0] for component in components_of(kind)}
    for name, parameter in model.named_parameters():
        own = counts[component_of(kind, name) or LANGUAGE]
        is_lora = LORA.search(name) is not None
        own[0] += 0 if is_lora else parameter.numel()
        own[1] += parameter.numel() if parameter.requires_grad else 0
        own[2] += is_lora and ".lora_A." in name
    return {component: Component(*own) for component, own in counts.items()}


def training_needs(
    model: nn.Module,
    *,
    samples: int,
    tokens: int,
    learned: int,
    patches: int,
    picture_tokens: int,
    recomputed: bool,
    packed: bool = False,
) -> Needs:
    """What a training holds on one GPU; of a model as `training_model.prepare_training` left it.

    Of each of the `samples` in a batch: `tokens` with its pictures', `learned` of them are answers
    and reach the head, `patches` and `picture_tokens` of its pictures. `recomputed`: activation
    checkpointing, which keeps each layer's input and one whole layer. `packed`: the language
    model's linear layers lie in NF4 (QLoRA).
    """
    frozen = [p for p in model.parameters() if not p.requires_grad]
    width = frozen[0].dtype.itemsize if frozen else HALF
    in_nf4 = sum(m.weight.numel() for m in packed_layers(model)) if packed else 0
    n_frozen = sum(p.numel() for p in frozen)
    counts = {"packed": in_nf4, "rest": n_frozen - in_nf4}
    rows = samples * tokens
    return Needs(
        frozen=n_frozen,
        frozen_bytes=weight_bytes(counts, ("packed",), "nf4", width),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        activations=language_bytes(model, rows, recomputed)
        + samples * learned * model.config.get_text_config().vocab_size * (width + 4 + 4)
        + vision_bytes(model, samples * patches, samples * picture_tokens, width),
    )


def packed_layers(model: nn.Module) -> list[nn.Linear]:
    """The layers that QLoRA keeps in 4 bits: the language model's linear ones but the head."""
    kind = model.config.model_type
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith("model.")
        and component_of(kind, name) == LANGUAGE
        and not LORA.search(f"{name}.")
    ]


def language_bytes(model: nn.Module, tokens: int, recomputed: bool) -> float:
    """What the language model's layers keep of `tokens` for the backward pass, and as much as one
    layer keeps again for the gradients in the layer that is at work."""
    text = model.config.get_text_config()
    per_layer = kept_per_layer(model.model.language_model)
    if not recomputed:
        return tokens * per_layer * (text.num_hidden_layers + 1)
    # between two layers autocast changes nothing: the values are as wide as the embeddings
    value = model.get_input_embeddings().weight.dtype.itemsize
    return tokens * (text.hidden_size * value * text.num_hidden_layers + 2 * per_layer)


def kept_per_layer(language_model: nn.Module) -> float:
    """Bytes that autograd keeps of each token in a layer, without the weights and autocast's copies
    of them. What goes in needs a gradient, as it does behind a trained projector.

    Counted as with padding in the batch, on the CPU's kernels: dropout keeps 4 bytes where a GPU's
    keeps 1. Qwen3.5's linear attention (MiniCPM-V 4.6) is counted as transformers' own code has it,
    the kernels of flash-linear-attention keep less.
    """
    config, layers = language_model.config, language_model.layers
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    n_layers = len(layers)
    period = next(  # the layers repeat: 1, or 4 where three of four have linear attention
        n
        for n in range(1, n_layers + 1)
        if n_layers % n == 0 and kinds == kinds[:n] * (len(kinds) // n)
    )
    runs = (0, 1) if 2 * period > n_layers else (1, 2)
    costs = []
    try:
        for n in runs:
            language_model.layers = layers[: n * period]
            short, long = (_kept_bytes(language_model, tokens) for tokens in COUNTED)
            costs.append((long - short) / (COUNTED[1] - COUNTED[0]))
    finally:
        language_model.layers = layers
    return (costs[1] - costs[0]) / period


def _kept_bytes(language_model: nn.Module, tokens: int) -> int:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.autograd.graph import saved_tensors_hooks
    from torch.func import functional_call

    with FakeTensorMode():
        state = {
            name: torch.empty(p.shape, dtype=p.dtype, requires_grad=p.requires_grad)
            for name, p in language_model.named_parameters()
        }
        state |= {n: torch.empty(b.shape, dtype=b.dtype) for n, b in language_model.named_buffers()}
        known = {tensor.untyped_storage()._cdata for tensor in state.values()}
        kept = {}  # holds the storages: an address must not be used twice

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                kept[storage._cdata] = storage
            return tensor

        embeddings = torch.empty(
            1,
            tokens,
            language_model.config.hidden_size,
            dtype=language_model.get_input_embeddings().weight.dtype,
            requires_grad=True,
        )  # (1, T, D)
        with torch.autocast("cpu", torch.bfloat16), saved_tensors_hooks(keep, lambda t: t):
            functional_call(
                language_model,
                state,
                kwargs={
                    "inputs_embeds": embeddings,
                    "attention_mask": torch.ones(1, tokens, dtype=torch.long),
                    "use_cache": False,
                },
            )
    return sum(storage.nbytes() for storage in kept.values())


def vision_bytes(model: nn.Module, patches: int, picture_tokens: int, width: int) -> float:
    """Of the tower and the projector: where they train, each linear layer's input and output;
    a frozen tower keeps nothing, and works on four of its widest values at a time."""
    kind, vision = model.config.model_type, model.config.vision_config
    widest = getattr(vision, "intermediate_size", None) or vision.embed_dim * vision.mlp_ratio
    linear = {VISION: [], PROJECTOR: []}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and component_of(kind, name) in linear:
            linear[component_of(kind, name)].append(module)
    held = 0.0
    for component, rows in ((VISION, patches), (PROJECTOR, picture_tokens)):
        layers = linear[component]
        if any(m.weight.requires_grad for m in layers):
            held += rows * width * sum(m.in_features + m.out_features for m in layers)
        elif component == VISION:
            held += rows * width * 4 * widest
    return held


def adam_bytes(optim: str) -> int:
    """Of the two moments of a parameter: fp32, or one byte each (bitsandbytes)."""
    return 2 if re.search(r"8bit", optim) else 8


def on_each_gpu(
    needs: Needs, strategy: Strategy = "ddp", gpus: int = 1, optim: str = "adamw_torch"
) -> MemoryEstimate:
    """GiB on each of `gpus`.

    ddp: everything on each. Of a trained parameter fp32 weight, gradient, two moments and
    autocast's copy in 16 bits; with several GPUs the buckets in which gradients travel (torch's
    DistributedDataParallel, gradient_as_bucket_view false).
    zero2, zero3: DeepSpeed in bfloat16 (ZeRO, arXiv 1910.02054, section 5): 2 bytes weight, 2
    gradient, fp32 weight and moments; stage 2 divides all but the weight by the GPUs, stage 3 the
    weight and the frozen ones too, of which up to LIVE_PARAMETERS are gathered at a time. Gradients
    pass through a bucket of REDUCE_BUCKET. *_offload: optimizer and gradients in the machine's RAM,
    with stage 3 the weights too (`in_ram`).
    """
    moments = adam_bytes(optim)
    if strategy == "ddp":
        buckets = 4 if gpus > 1 else 0
        weights, trainable = needs.frozen_bytes, needs.trained * (4 + 4 + moments + HALF + buckets)
    else:
        bucket = HALF * min(REDUCE_BUCKET, needs.trained)
        own = HALF * needs.trained
        state = (HALF + 4 + moments) * needs.trained / gpus
        weights = needs.frozen_bytes + own
        if strategy.startswith("zero3"):
            live = HALF * min(LIVE_PARAMETERS, needs.frozen + needs.trained)
            weights = weights / gpus + live
            if strategy == "zero3_offload":
                weights = live
        trainable = bucket if strategy.endswith("offload") else state + bucket
    return MemoryEstimate(weights / GIB, trainable / GIB, needs.activations / GIB)


def in_ram(needs: Needs, strategy: Strategy) -> float:
    """GiB of the machine's RAM for what a strategy takes off its GPUs, all of them together."""
    if not strategy.endswith("offload"):
        return 0.0
    held = needs.trained * (4 + 4 + 8)  # fp32 weight, gradient, moments
    if strategy == "zero3_offload":
        held += needs.frozen_bytes + HALF * needs.trained
    return held / GIB
