"""Trains a head: Adam with a linear decay, one source a step, and a stop at the first NaN.

Sources take turns at random with equal shares, so a large one does not drown a small one; the seed fixes the order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from actors.outputs import IntArray

Loss = Callable[[nn.Linear, IntArray], Tensor]
"""Head and query rows to a loss."""


class TrainingError(ValueError):
    """Signals that training diverged; the message names the step and the cause."""


def train(
    start: nn.Linear, losses: Sequence[tuple[str, int, Loss]], steps: int, batch: int, rate: float, seed: int
) -> nn.Linear:
    """Trains a copy of `start` and returns it.

    losses: (name of the source, its number of queries, loss of some of its rows).
    """
    head = deepcopy(start).requires_grad_(True)
    optimizer = torch.optim.Adam(head.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (steps - step) / (0.6 * steps)))
    rng = np.random.default_rng(seed)
    for step in range(steps):
        name, size, loss_of = losses[int(rng.integers(len(losses)))]
        rows = rng.permutation(size)[:batch]
        loss = loss_of(head, rows)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        _check_finite(head, loss, step, name)
        optimizer.step()
        schedule.step()
    return head.requires_grad_(False)


def average_layers(start: nn.Linear, trained: nn.Linear, share: float) -> nn.Linear:
    """Averages both layers' weights, `share` of it from the trained one."""
    head = deepcopy(start)
    with torch.no_grad():
        for ours, theirs in zip(head.parameters(), trained.parameters(), strict=True):
            ours.lerp_(theirs, share)
    return head


def scale_output(head: nn.Linear, factor: float) -> nn.Linear:
    """Returns the layer with its output multiplied by `factor`."""
    result = deepcopy(head)
    with torch.no_grad():
        for values in result.parameters():
            values.mul_(factor)
    return result


def _check_finite(head: nn.Linear, loss: Tensor, step: int, name: str) -> None:
    if not torch.isfinite(loss):
        raise TrainingError(f"step {step}: the loss on {name} is {loss.item()}; {_cause(head)}")
    gradients = {key: value.grad for key, value in head.named_parameters()}
    broken = [key for key, grad in gradients.items() if grad is not None and not torch.isfinite(grad).all()]
    if broken:
        raise TrainingError(f"step {step}: the gradient of {', '.join(broken)} on {name} is not finite")


def _cause(head: nn.Linear) -> str:
    for key, value in head.named_parameters():
        if not torch.isfinite(value).all():
            return f"the head's {key} is no longer finite, so the step before was too large: lower the learning rate"
    return "the head is finite, so the scores or the teacher's scores of this batch are not"
