"""Refuses torch modules that can't be learned row by row and repeated."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from online.models.errors import LearnerUnusable


def outputs_of(name: str, module: nn.Module, wide: int, dtype: torch.dtype) -> int:
    """Return the number of outputs, found by running the module twice on a row of zeros."""
    row = torch.zeros(1, wide, dtype=dtype)
    try:
        with torch.no_grad():
            shape, same = (out := module(row)).shape, torch.equal(out, module(row))
    except Exception as error:  # a user's module may raise anything
        problem = f"a row of {wide} inputs raises {type(error).__name__}: {error}"
        remedy = "Name as many inputs as the module takes"
        raise LearnerUnusable(name, problem, remedy) from error
    if len(shape) != 2 or shape[0] != 1:
        problem = f"a row of inputs gives a tensor of shape {tuple(shape)}"
        raise LearnerUnusable(name, problem, "Return the shape (rows, outputs)")
    if not same and not out.isnan().any():
        problem = "it answers the same row differently: it draws anew, or counts its calls"
        raise LearnerUnusable(name, problem, "Compute what it returns from inputs and parameters")
    return int(shape[1])


def check_parts(name: str, module: nn.Module, *, logits: bool) -> None:
    """Refuse layers that are random or need batches: replaying a row must repeat its step.

    So is, where the loss takes logits, a last layer that returns probabilities.
    """
    last = module
    while isinstance(last, nn.Sequential) and len(last):
        last = last[-1]
    if logits and isinstance(last, (nn.Sigmoid, nn.Softmax)):
        problem = f"its last layer is {type(last).__name__}, and the loss takes logits"
        raise LearnerUnusable(name, problem, "Leave it out, or give loss=torch.nn.BCELoss()")
    for part in module.modules():
        drops = isinstance(part, nn.RNNBase) and part.dropout
        if drops or isinstance(part, (_DropoutNd, _BatchNorm)):
            problem = f"{type(part).__name__} needs many rows at a time, or draws anew for each"
            raise LearnerUnusable(name, problem, "Leave it out, or take LayerNorm or weight decay")
