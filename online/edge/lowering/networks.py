"""Lowers a torch module to dense layers."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import nn

from evaluation.metrics import Task
from online.edge.errors import ExportRefused
from online.edge.lowering.fronts import front_of
from online.edge.lowering.ir import Activation, Columns, EdgeModel, Floats, Layer, Link, Mlp
from online.models.embedded import Embedded
from online.models.network import NetworkModel

_ACTIVATIONS: Final[dict[type[nn.Module], Activation]] = {
    nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"
}  # fmt: skip


def lower_network(model: NetworkModel, task: Task) -> EdgeModel:
    """Lower a ``Sequential`` of ``Linear`` layers and activations.

    Raises ExportRefused for any other part.
    """
    layers: list[Layer] = []
    pending: tuple[Floats, Floats] | None = None
    parts = _parts(model.answering, "")
    first = parts[0][1] if type(parts[0][1]) is Embedded else None
    for name, part in parts if first is None else parts[1:]:
        if type(part) is nn.Linear:
            if pending is not None:
                layers.append(Layer(*pending, "none"))
            weights = _numbers(part.weight)
            bias = np.zeros(len(weights)) if part.bias is None else _numbers(part.bias)
            pending = (weights, bias)
        elif (activation := _ACTIVATIONS.get(type(part))) is not None:
            if pending is None:
                raise ExportRefused(name, "no linear layer stands before this activation")
            layers.append(Layer(*pending, activation))
            pending = None
        elif type(part) is not nn.Identity:
            problem = f"{type(part).__name__} is no Linear, ReLU, Tanh or Sigmoid"
            raise ExportRefused(name, f"{problem}, nor an Embedded in front")
    if pending is not None:
        layers.append(Layer(*pending, "none"))
    if not layers:
        raise ExportRefused(type(model.answering).__name__, "the network has no linear layer")
    return _finish(model, task, layers, first)


def _finish(
    model: NetworkModel, task: Task, layers: list[Layer], first: Embedded | None
) -> EdgeModel:
    head = model._head
    link: Link = "identity"
    if head._single:
        link = "identity" if head._is_probability else "sigmoid"
        if head._is_probability:
            raise ExportRefused("loss", "BCELoss with a Sigmoid: use BCEWithLogitsLoss instead")
    elif task != "regression":
        link = "softmax"
    scaler = model._inputs._scaler
    front = front_of([] if scaler is None else [scaler._scaler])
    tables: tuple[Floats, ...] = ()
    if first is not None:
        if (first.inputs, first.ids) != (model.inputs, model.ids):
            raise ExportRefused("Embedded", "its inputs or ids differ from the network's")
        tables = tuple(_numbers(table) for table in first.tables.parameters())
    elif model.ids:
        raise ExportRefused("ids", "the network has ids, but no Embedded in front")
    columns = front.columns([name for name in model.inputs if name not in model.ids])
    if tables:
        columns = Columns(
            (*columns.names, *model.ids),
            np.concatenate([columns.center, np.zeros(len(tables))]),
            np.concatenate([columns.factor, np.ones(len(tables))]),
        )
        if front.limited:
            raise ExportRefused("Embedded", "the limited scaler would limit its ids, too")
    classes: tuple[Any, ...] = ()
    if task != "regression":
        classes = (False, True) if head.labels is None else tuple(head.labels)
    double = model._dtype == torch.float64
    body = Mlp(tuple(layers), link, tables)
    return EdgeModel(task, classes, columns, None, body, "float64" if double else "float32")


def _parts(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    if type(module) is nn.Sequential:
        return [
            inner
            for i, part in module.named_children()
            for inner in _parts(part, f"{name}.{i}" if name else i)
        ]
    return [(name or type(module).__name__, module)]


def _numbers(tensor: torch.Tensor) -> Floats:
    numbers: Floats = tensor.detach().to(torch.float64).numpy().copy()
    return numbers
