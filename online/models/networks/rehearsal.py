"""Gradients of a step that learns a fresh row together with kept ones.

The loss of a step has three parts:

    loss of the fresh row + mean loss of the drawn ones
    + distil · mean squared distance of the drawn ones' outputs from those kept with them

Where the loss is a cross-entropy, the log of each class's share among the rows learned lately is
added to the outputs (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, with
shares that move): a class that comes often now is not answered more often for it, and one that
does not come is not pushed down.  Distances are taken between outputs with mean 0, because what
was kept is known up to a constant only (Buzzega et al., NeurIPS 2020, keep the outputs themselves).

All gradients are with respect to the outputs: closed forms cost a tenth of what it takes to
differentiate them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from online.models.networks.head import Head
from replay.buffers.item import Logits
from replay.example import Label
from replay.memory import Drawn

_SHARE_MIN: Final = 1e-8
_HALF_LIFE: Final = 200.0
"""Rows after which a kept output weighs half, where inputs are standardised as they come: what an
old row's output was said of is no longer what the model sees."""


def slope_of(
    head: Head, outputs: Tensor, labels: Sequence[Label], weights: Tensor, drawn: Drawn
) -> Tensor:
    """Gradient of the weighted losses at ``outputs`` (rows, outputs), the fresh row first.

    ``weights``: of each row, (rows, 1).  Raises LabelUnknown.
    """
    kind = head.closed_form
    if kind is None:
        return _differentiated(head, outputs, labels, weights)
    targets = head.targets(labels, outputs.dtype)
    if kind == "squared":
        return 2 * weights * (outputs - targets)
    if kind == "logistic":
        shares = (drawn.shares.get(True, 0.0), drawn.shares.get(False, 0.0))
        adjust = math.log(shares[0] + _SHARE_MIN) - math.log(shares[1] + _SHARE_MIN)
        return (torch.sigmoid(outputs + adjust) - targets) * weights
    assert head.labels is not None
    logs = [math.log(drawn.shares.get(label, 0.0) + _SHARE_MIN) for label in head.labels]
    slope = torch.softmax(outputs + torch.tensor(logs, dtype=outputs.dtype), 1).mul_(weights)
    return slope.scatter_add_(1, targets, -weights)


def error_of(head: Head, outputs: Tensor, target: Tensor) -> Tensor:
    """Gradient of a closed-form loss at one row's ``outputs`` (1, outputs)."""
    if head.closed_form == "squared":
        return 2 * (outputs - target)
    if head.closed_form == "logistic":
        return torch.sigmoid(outputs) - target
    return torch.softmax(outputs, 1).scatter_add_(1, target, -torch.ones_like(outputs[:, :1]))


def _differentiated(
    head: Head, outputs: Tensor, labels: Sequence[Label], weights: Tensor
) -> Tensor:
    """The same for a loss of the user's own, row by row: it may take the mean of what it gets."""
    at = outputs.detach().requires_grad_()
    with torch.enable_grad():
        total = torch.zeros((), dtype=outputs.dtype)
        for i, label in enumerate(labels):
            target = head.target(label, outputs.dtype)
            total = total + head.loss(at[i : i + 1], target) * weights[i, 0]
        (slope,) = torch.autograd.grad(total, at)
    return slope


def pull_of(head: Head, outputs: Tensor, drawn: Drawn, *, scaled: bool) -> Tensor:
    """Gradient of the distance of the drawn rows' ``outputs`` from those kept with them.

    In the classes that both have, between outputs with mean 0.
    """
    if not drawn.items:
        return torch.zeros_like(outputs)
    n = len(drawn.items)
    ages = drawn.ages if scaled else (0,) * n
    weights = [2 * drawn.distil / n * 0.5 ** (age / _HALF_LIFE) for age in ages]
    logits = [item.logits or {} for item in drawn.items]
    if head.labels is None:
        pulls = [_of_one(float(at), kept) for at, kept in zip(outputs[:, 0], logits, strict=True)]
        pull = [weight * pull for weight, pull in zip(weights, pulls, strict=True)]
        return torch.tensor(pull, dtype=outputs.dtype)[:, None]
    nan = math.nan
    there = torch.tensor(
        [[kept.get(text, nan) for text in head.texts] for kept in logits], dtype=outputs.dtype
    )
    here = torch.where(there.isnan(), nan, outputs)
    apart = (here - here.nanmean(1, keepdim=True)) - (there - there.nanmean(1, keepdim=True))
    # of one class alone nothing is known: it is its own mean, and 0 away from it
    apart.masked_fill_(there.isnan(), 0.0)
    return apart.mul_(torch.tensor(weights, dtype=outputs.dtype)[:, None])


def _of_one(output: float, kept: Logits) -> float:
    """How far a row's one output is from the one kept, or from the two of its classes."""
    if "" in kept:
        return output - kept[""]
    if len(kept) < 2:
        return 0.0
    return (output - (kept["true"] - kept["false"])) / 2  # of ±output / 2 from the kept two
