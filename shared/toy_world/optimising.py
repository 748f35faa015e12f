"""The optimizer loop that the toy recipes share: AdamW, warm-up, cosine decay, clipped gradients.

Used by `clip.py` and `qwen2.py` beside it, and by the experiments' `toy_recipe.py`. Reads and
writes nothing.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BETAS = (0.9, 0.98)
GRADIENT_CLIP = 1.0


def optimizer_steps(
    parameters: Sequence["torch.nn.Parameter"],
    steps: int,
    learning_rate: float,
    warm_up: int,
    name: str,
    weight_decay: float = 0.01,
) -> Iterator["torch.optim.Optimizer"]:
    """Yields an AdamW optimizer `steps` times, its learning rate set for each step."""
    import torch
    from tqdm import tqdm

    optimizer = torch.optim.AdamW(
        parameters, lr=learning_rate, betas=BETAS, weight_decay=weight_decay
    )
    for step in tqdm(range(steps), desc=name, unit="step", disable=None, mininterval=2):
        warm = min(1.0, (step + 1) / max(1, warm_up))
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = learning_rate * warm * cosine
        yield optimizer


def update(
    loss: "torch.Tensor",
    parameters: Sequence["torch.nn.Parameter"],
    optimizer: "torch.optim.Optimizer",
) -> None:
    """One step of the optimizer. Raises FloatingPointError when the loss is not finite."""
    import torch

    if not torch.isfinite(loss):
        raise FloatingPointError("the loss is not finite; no step was taken")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
    optimizer.step()
