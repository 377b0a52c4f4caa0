"""A torch module with its optimizer and loss, as blocks that merge.

======================== ======= ============================================================
block                    kind    contents
======================== ======= ============================================================
``network/<name>``       dense   change of a parameter or buffer since the module was built
``average/<name>``       dense   the same for the averaged parameters, if there are any
``optimizer/<name>/<k>`` local   the optimizer's state of a parameter, such as momentum
``trained``              count   learned rows, while the learning rate warms up
``scaler``               moments of the input scaler
======================== ======= ============================================================

Rows are learned one at a time: forward, loss, backward, step.  The module's values are also kept as
float64, so that differences and sums of float32 weights are exact.

The values of the module as built are never sent.  Every process builds the same module: the factory
is called with torch's generator at a fixed seed, and a hash of the result is part of the spec.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from evaluation.dense import DenseLayers
from evaluation.metrics import Task
from online.models.base import Merging, Prediction
from online.models.errors import LabelUnknown, LearnerUnusable, StateNotFinite
from online.models.features.inputs import Inputs
from online.models.gradients import Score, Slope
from online.models.limited import Scale
from online.models.networks.head import Head, made
from online.models.networks.last_layer import LastLayer
from online.models.networks.modules import check_parts, outputs_of
from online.models.networks.rehearsal import pull_of, slope_of
from online.settings.model import Training
from paramserver.core.blocks import COUNT, DENSE, LOCAL, Block, Blocks, array_bytes, array_of
from paramserver.core.rewrites import HALVED, halvings
from replay.example import Example, Features, Label, Moved
from replay.memory import Lesson

_NETWORK: Final = "network/"
_AVERAGE: Final = "average/"
_OPTIMIZER: Final = "optimizer/"
_TENSORS_MAX: Final = 1000  # blocks of a model; a message holds at most 1,024
Numbers = npt.NDArray[np.float64]
Optimizers = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
SGD: Final = partial(torch.optim.SGD, lr=0.05)


@dataclass(frozen=True)
class Network:
    """A recipe that a factory returns to serve a torch module.

    Attributes:
        module: Maps a float tensor of shape (rows, inputs) to one of shape (rows, outputs): one
            output in regression; one (a logit) or two in a binary task; else one for each label.
        inputs: Names of the features in the order of the module's inputs; see
            :class:`~online.models.features.inputs.Inputs`, also for ``scale``.
        optimizer: Function that makes the optimizer, given the module's parameters.
        loss: Called with outputs and target; None: ``BCEWithLogitsLoss`` for one output of a
            classifier, ``CrossEntropyLoss`` for more, ``MSELoss`` in regression.  With ``BCELoss``
            the module's output is the probability itself.
        labels: Labels of the outputs, in their order; None: False and True, or 0, 1, 2 …
        ids: Inputs that are identifiers, with the number of rows of their embedding tables (see
            :class:`~online.models.features.inputs.Inputs`), for
            :class:`~online.models.embedded.Embedded`.
    """

    module: nn.Module
    inputs: Sequence[str]
    optimizer: Optimizers = SGD
    loss: nn.Module | None = None
    labels: Sequence[Label] | None = None
    scale: Scale = True
    ids: Mapping[str, int] | None = None

    def model_for(self, task: Task) -> NetworkModel:
        """Make the model for the task.  Raises LearnerUnusable."""
        return NetworkModel(self, task)


class NetworkModel(Merging):
    """The model that a :class:`Network` describes, with a copy of its module in evaluation mode.

    Attributes:
        inputs, labels: Names of the features, and labels of the outputs (None: there is one
            output).
        answering: The module that predicts: the one that learns, or the one with the averages.
        halves: True: the block :data:`paramserver.core.rewrites.HALVED` halves its learning rate.
    """

    numeric_only = True
    halves = True
    by_column = False

    def __init__(self, network: Network, task: Task) -> None:
        self.inputs = tuple(network.inputs)
        torch.set_num_threads(1)  # single rows do not profit from threads
        self._module = copy.deepcopy(network.module).eval()
        name = type(self._module).__name__
        logits = network.loss is None and task != "regression"
        check_parts(name, self._module, logits=logits)
        self.ids = dict(network.ids or {})
        self._inputs = Inputs(name, network.inputs, scale=network.scale, ids=self.ids)
        self.answering = self._module
        self._parameters = {n: p for n, p in self._module.named_parameters() if p.requires_grad}
        self._tensors = _tensors_of(self._module, _NETWORK)
        self._dtype = next((t.dtype for t in self._tensors.values()), torch.float32)
        if not self._parameters:
            raise LearnerUnusable(name, "it has no parameters that learn", "Give it some")
        outputs = outputs_of(name, self._module, len(self._inputs.names), self._dtype)
        self._head = Head(name, task, outputs, loss=network.loss, labels=network.labels)
        self.labels = self._head.labels
        self._new_optimizer = network.optimizer
        self._optimizer = self._new_optimizer(self._parameters.values())
        row = torch.ones(1, len(self._inputs.names), dtype=self._dtype)
        self._shapes = _shapes_of_state(self._module, self._head, self._new_optimizer, row)
        if (tensors := len(self._tensors) + len(self._shapes)) > _TENSORS_MAX:
            problem = f"{tensors} tensors with the optimizer's, at most {_TENSORS_MAX} are taken"
            raise LearnerUnusable(name, problem, "Take a smaller one, or freeze a part of it")
        self._fresh = True
        self._built = {name: _numbers(t) for name, t in self._tensors.items()}
        self._start = dict(self._built)
        self._changed = False
        self._training = Training()
        self._trained = Trained()
        self._follows = 1.0
        self._halved = 0
        self._averages: list[tuple[torch.Tensor, torch.Tensor]] = []  # (average, its parameter)
        plain = _plain(self._optimizer, self._module)
        self._layers = DenseLayers.of(self._module) if plain else None
        self._last = LastLayer(self._module)
        self.slope_size = self._last.slope_size
        self.structure = self._describe(network)

    def train(self, training: Training) -> None:
        """Set how the model learns; called once, before any other method."""
        self._training = training
        self.structure += f" training={ {name: getattr(training, name) for name in training.on} }"
        if training.l1 or training.l2:
            self._layers = None
        if training.average:
            self._follows = 1 - training.average
            self.answering = copy.deepcopy(self._module)
            averages = _tensors_of(self.answering, _AVERAGE)
            of = [_NETWORK + name.removeprefix(_AVERAGE) for name in averages]
            self._averages = [
                (a, self._tensors[n]) for a, n in zip(averages.values(), of, strict=True)
            ]
            self._built |= {a: self._built[n] for a, n in zip(averages, of, strict=True)}
            self._tensors |= averages
            self._start = dict(self._built)

    @property
    def gap(self) -> float | None:
        """Return the distance of the averages from the parameters, relative to the latter's norm.

        None if there are no averages.
        """
        if not self._averages:
            return None
        with torch.no_grad():
            apart = sum(float((a - t).square().sum()) for a, t in self._averages)
            length = sum(float(t.square().sum()) for _, t in self._averages)
        return math.sqrt(apart / length) if length else 0.0

    def _describe(self, network: Network) -> str:
        digest = hashlib.sha256()
        tensors = {name.removeprefix(_NETWORK): t for name, t in self._tensors.items()}
        for name, tensor in sorted({**self._module.state_dict(), **tensors}.items()):
            digest.update(name.encode() + b"\0" + array_bytes(_numbers(tensor)))
        return (
            f"{type(self._module).__qualname__} {self._module!r} "
            f"inputs={list(self._inputs.names)!r} scale={network.scale} "
            f"{f'ids={self.ids!r} ' if self.ids else ''}"
            f"optimizer={made(network.optimizer)} {self._head.text} built {digest.hexdigest()}"
        )

    # -- answering ---------------------------------------------------------------------------

    def predict(self, features: Features) -> Prediction:
        x = torch.tensor([self._inputs.row(features)], dtype=self._dtype)
        with torch.no_grad():
            return self._head.answer(self.answering(x)[0].tolist())

    def slope(self, features: Features, label: Label, score: Score) -> Slope | None:
        """Return the gradient of the row's loss by the last linear layer's weights."""
        return self._slope_of([(features, label)])

    def mean_slope(self, rows: Sequence[tuple[Features, Label]]) -> Slope:
        """Return the mean gradient of the rows by the last linear layer's weights."""
        mean = self._slope_of(rows)
        return np.zeros(self.slope_size, dtype=np.float32) if mean is None else mean

    def _slope_of(self, rows: Sequence[tuple[Features, Label]]) -> Slope | None:
        try:
            targets = [self._head.target(label, self._dtype).reshape(1, -1) for _, label in rows]
        except LabelUnknown:
            return None
        x = torch.tensor([self._inputs.row(features) for features, _ in rows], dtype=self._dtype)
        return self._last.slope(self._module, self._head, x, torch.cat(targets))

    def misfit(self, moved: Moved) -> str | None:
        """Return why a device's delta does not fit the last layer; None if it does."""
        return self._last.misfit(moved)

    def moved_slope(self, moved: Moved) -> Slope:
        """Return a device's negated delta, in the form of the last layer's gradient."""
        return self._last.moved_slope(moved)

    # -- learning ----------------------------------------------------------------------------

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Do one step of the optimizer.

        Raises LabelUnknown, and StateNotFinite if the loss or a weight is infinite or NaN.
        """
        target = self._head.target(label, self._dtype)
        x = torch.tensor([self._inputs.learn(features)], dtype=self._dtype)
        self._changed, self._fresh = True, False
        loss = self._head.loss(self._module(x), target) * weight
        if not math.isfinite(value := loss.item()):
            raise StateNotFinite(value)
        self._descend(loss)
        self._follow()

    def rehearse(self, example: Example, weight: float, lesson: Lesson) -> None:
        """Do one step for each pass, on the row and the rehearsed ones; raises as :meth:`learn`."""
        self._head.target(example.label, self._dtype)
        for i, drawn in enumerate(lesson):
            if not i:
                self._inputs.learn(example.features)
                self._changed, self._fresh = True, False
            rows = [example.features, *(item.features for item in drawn.items)]
            labels = [example.label, *(item.label for item in drawn.items)]
            weights = [weight, *(item.weight / len(drawn.items) for item in drawn.items)]
            x, layers = torch.from_numpy(self._inputs.rows(rows)).to(self._dtype), self._layers
            outputs = self._module(x) if layers is None else layers.forward(x)
            at, of_rows = outputs.detach(), torch.tensor(weights, dtype=self._dtype)[:, None]
            slope = slope_of(self._head, at, labels, of_rows, drawn)
            if drawn.distil:
                slope[1:] += pull_of(self._head, at[1:], drawn, scaled=self._inputs.scaled)
            if not math.isfinite(value := float(slope.sum())):
                raise StateNotFinite(value)
            if layers is None:
                self._descend(outputs, slope)
            else:
                self._set_rate()
                rate = float(self._optimizer.param_groups[0]["lr"])
                length = layers.descend(slope, rate, self._training.clip or 0.0)
                if not math.isfinite(length):
                    raise StateNotFinite(length)
            self._follow()

    def move(self, moved: Moved, weight: float) -> None:
        """Add a device's delta to the last layer and to its average.  Raises StateNotFinite."""
        self._changed, self._fresh = True, False
        total = self._last.move(moved, weight, self._averages)
        if not math.isfinite(total):
            raise StateNotFinite(total)

    def _descend(self, outputs: torch.Tensor, slope: torch.Tensor | None = None) -> None:
        """Do a step of the optimizer, from a loss, or from outputs and the gradient at them."""
        self._optimizer.zero_grad(set_to_none=True)
        outputs.backward(slope)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            _shape(self._parameters.values(), self._training)
            self._set_rate()
            self._optimizer.step()

    def _follow(self) -> None:
        """Update the averages after a step, and check that all values are finite."""
        with torch.no_grad():
            for average, tensor in self._averages:
                average.lerp_(tensor, self._follows)
            # an average is NaN as soon as its parameter is
            learned = [a for a, _ in self._averages] or self._tensors.values()
            total = sum(float(t.sum()) for t in (*learned, *self._held().values()))
        if not math.isfinite(total):
            raise StateNotFinite(total)

    def _set_rate(self) -> None:
        share = 0.5**self._halved
        if warm_up := self._training.warm_up:
            self._trained.rows += 1
            share *= min(self._trained.rows / warm_up, 1.0)
        elif not self._halved:
            return
        for group in self._optimizer.param_groups:
            full = group.setdefault("full_lr", group["lr"])
            group["lr"] = full * share

    def cut(self) -> Blocks:
        """Return the open delta and empty it."""
        if not self._changed:
            return {}
        self._changed = False
        blocks = {**self._inputs.cut(), **self._trained.cut()}
        for name, tensor in self._tensors.items():
            now = _numbers(tensor)
            delta = now - self._start[name]
            self._start[name] = now
            if delta.any():  # also for NaN, which the merge refuses
                blocks[name] = Block(DENSE, array_bytes(delta))
        for (name, key), held in self._held().items():
            blocks[f"{_OPTIMIZER}{name}/{key}"] = Block(LOCAL, array_bytes(_numbers(held)))
        return blocks

    def _held(self) -> dict[tuple[str, str], torch.Tensor]:
        """Return the tensors of the optimizer's state, by parameter and key."""
        return {
            (name, key): held
            for name, parameter in self._parameters.items()
            for key, held in self._optimizer.state.get(parameter, {}).items()
            if isinstance(held, torch.Tensor)
        }

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top.

        The optimizer's state is taken only until the first row is learned here.
        """
        self._inputs.rebase(values)
        self._trained.rebase(values)
        if HALVED in values:
            self._halved = halvings(values)
        for name, tensor in self._tensors.items():
            if (block := values.get(name)) is not None:
                base = self._built[name] + array_of(block.data)
                new = base + (_numbers(tensor) - self._start[name]) if self._changed else base
                _write(tensor, new)
                self._start[name] = base
        if self._fresh:
            self._take_optimizer(values)

    def reset(self, values: Blocks) -> None:
        """Set the state to that of the module as built plus ``values``."""
        self._inputs.reset(values)
        self._trained.reset(values)
        self._halved = halvings(values)
        self._changed = False
        for name, tensor in self._tensors.items():
            base = self._built[name]
            if (block := values.get(name)) is not None:
                base = base + array_of(block.data)
            _write(tensor, base)
            self._start[name] = base
        self._optimizer = self._new_optimizer(self._parameters.values())
        self._fresh = True
        self._take_optimizer(values)

    def _take_optimizer(self, values: Blocks) -> None:
        for (name, key), (shape, dtype) in self._shapes.items():
            if (block := values.get(f"{_OPTIMIZER}{name}/{key}")) is not None:
                held = torch.tensor(array_of(block.data)).to(dtype).reshape(shape)
                self._optimizer.state[self._parameters[name]][key] = held


def _shapes_of_state(
    module: nn.Module, head: Head, optimizers: Optimizers, row: torch.Tensor
) -> dict[tuple[str, str], tuple[torch.Size, torch.dtype]]:
    """Return shape and type of the optimizer's state, found by a step of a copy on one row."""
    module = copy.deepcopy(module)
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    try:
        optimizer = optimizers([p for _, p in named])
        label = False if head.labels is None else head.labels[0]
        loss = head.loss(module(row), head.target(label, row.dtype))
        loss.backward()
        optimizer.step()
    except Exception as error:  # a user's module, loss or optimizer may raise anything
        problem = f"a step of its optimizer raises {type(error).__name__}: {error}"
        remedy = "Give a loss of (outputs, target) and an optimizer with a plain step()"
        raise LearnerUnusable(type(module).__name__, problem, remedy) from error
    return {
        (n, key): (held.shape, held.dtype)
        for n, p in named
        for key, held in optimizer.state.get(p, {}).items()
        if isinstance(held, torch.Tensor)
    }


def _plain(optimizer: torch.optim.Optimizer, module: nn.Module) -> bool:
    """Return whether a step is the same rate times the gradient for all parameters (plain SGD)."""
    group, *others = optimizer.param_groups
    if type(optimizer) is not torch.optim.SGD or others:
        return False
    every = set(map(id, module.parameters())) == set(map(id, group["params"]))
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    unlike = any(group[x] for x in ("momentum", "weight_decay", "maximize"))
    return every and not hooked and not unlike


def _shape(parameters: Iterable[nn.Parameter], training: Training) -> None:
    """Add the l1 and l2 penalties to the gradients, then clip their norm."""
    parameters = list(parameters)
    for parameter in parameters if training.l1 or training.l2 else ():
        if parameter.grad is not None:
            parameter.grad.add_(parameter, alpha=training.l2)
            parameter.grad.add_(parameter.sign(), alpha=training.l1)
    if training.clip:
        nn.utils.clip_grad_norm_(parameters, training.clip)


def _tensors_of(module: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """Return the module's learned parameters and float buffers, by the name of their block."""
    learned = {n: p for n, p in module.named_parameters() if p.requires_grad}
    floats = {n: b for n, b in module.named_buffers() if b.is_floating_point()}
    return {prefix + name: tensor for name, tensor in {**learned, **floats}.items()}


def weights_from(path: str) -> dict[str, torch.Tensor]:
    """Read a ``state_dict`` from a ``.safetensors`` file or a file of ``torch.save``.

    Only tensors are read: torch 2.6 and newer refuse a pickle with anything else (older versions
    could be made to run code).
    """
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        tensors: dict[str, torch.Tensor] = load_file(path)
        return tensors
    loaded: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def _numbers(tensor: torch.Tensor) -> Numbers:
    """Return a flat copy as float64."""
    flat: Numbers = tensor.detach().to(torch.float64, copy=True).reshape(-1).numpy()
    return flat


def _write(tensor: torch.Tensor, numbers: Numbers) -> None:
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(numbers).reshape(tensor.shape))


_TRAINED: Final = "trained"


class Trained:
    """The number of steps taken by all replicas, as a block that merges."""

    def __init__(self) -> None:
        self.rows = self._start = 0

    def cut(self) -> Blocks:
        """Return the steps since the cut; empty if there were none."""
        n, self._start = self.rows - self._start, self.rows
        return {_TRAINED: Block(COUNT, {"rows": n})} if n else {}

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top."""
        if (block := values.get(_TRAINED)) is not None:
            n = int(block.data["rows"])
            self.rows, self._start = n + self.rows - self._start, n

    def reset(self, values: Blocks) -> None:
        """Set the number of steps to that of ``values``."""
        self.rows = self._start = 0
        self.rebase(values)
