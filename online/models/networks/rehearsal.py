"""Gradients of a rehearsal step, which learns a fresh row together with drawn, stored ones.

The loss of a step has three parts:

    loss of the fresh row + mean loss of the drawn rows
    + distil · mean squared distance of the drawn rows' outputs from their stored outputs

For a cross-entropy, the log of each class's share among the recently learned rows is added to the
outputs (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, here with moving
shares), so that a class that is frequent now does not gain, and one that is absent does not lose.
Distances are between outputs shifted to mean 0, because the stored outputs are known only up to a
constant (Buzzega et al., NeurIPS 2020, store the outputs themselves).

All gradients are with respect to the outputs: closed forms cost a tenth of automatic
differentiation.
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
"""Rows after which the weight of a stored output halves, if inputs are standardised by running
moments: the stored output belongs to inputs that were scaled differently."""


def slope_of(
    head: Head, outputs: Tensor, labels: Sequence[Label], weights: Tensor, drawn: Drawn
) -> Tensor:
    """Return the gradient of the weighted losses at ``outputs`` (rows, outputs), fresh row first.

    ``weights`` has the shape (rows, 1).  Raises LabelUnknown.
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
    """Return the gradient of a closed-form loss at one row's ``outputs`` (1, outputs)."""
    if head.closed_form == "squared":
        return 2 * (outputs - target)
    if head.closed_form == "logistic":
        return torch.sigmoid(outputs) - target
    return torch.softmax(outputs, 1).scatter_add_(1, target, -torch.ones_like(outputs[:, :1]))


def _differentiated(
    head: Head, outputs: Tensor, labels: Sequence[Label], weights: Tensor
) -> Tensor:
    """Return the gradient of a user's own loss, row by row, since it may average over rows."""
    at = outputs.detach().requires_grad_()
    with torch.enable_grad():
        total = torch.zeros((), dtype=outputs.dtype)
        for i, label in enumerate(labels):
            target = head.target(label, outputs.dtype)
            total = total + head.loss(at[i : i + 1], target) * weights[i, 0]
        (slope,) = torch.autograd.grad(total, at)
    return slope


def pull_of(head: Head, outputs: Tensor, drawn: Drawn, *, scaled: bool) -> Tensor:
    """Return the gradient of the distance of the drawn rows' ``outputs`` from the stored ones.

    The distance is over the classes that both have, between outputs shifted to mean 0.
    """
    if not drawn.items:
        return torch.zeros_like(outputs)
    n = len(drawn.items)
    ages = drawn.ages if scaled else (0,) * n
    weights = [2 * drawn.distil / n * 0.5 ** (age / _HALF_LIFE) for age in ages]
    logits = [item.logits or {} for item in drawn.items]
    if head.labels is None:
        pulls = [
            _of_one(float(at), by_text) for at, by_text in zip(outputs[:, 0], logits, strict=True)
        ]
        pull = [weight * pull for weight, pull in zip(weights, pulls, strict=True)]
        return torch.tensor(pull, dtype=outputs.dtype)[:, None]
    nan = math.nan
    stored = torch.tensor(
        [[by_text.get(text, nan) for text in head.texts] for by_text in logits], dtype=outputs.dtype
    )
    present = torch.where(stored.isnan(), nan, outputs)
    distance = (present - present.nanmean(1, keepdim=True)) - (
        stored - stored.nanmean(1, keepdim=True)
    )
    # a single common class gives no distance: it equals its mean
    distance.masked_fill_(stored.isnan(), 0.0)
    return distance.mul_(torch.tensor(weights, dtype=outputs.dtype)[:, None])


def _of_one(output: float, by_text: Logits) -> float:
    """Return the difference of a single output from the stored one, or from the stored two."""
    if "" in by_text:
        return output - by_text[""]
    if len(by_text) < 2:
        return 0.0
    return (output - (by_text["true"] - by_text["false"])) / 2  # the two outputs are ±output / 2
