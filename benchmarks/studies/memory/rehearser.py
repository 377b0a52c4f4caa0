"""A torch classifier that learns a stream in one process and rehearses from a buffer.

A step takes fresh rows (one or more), draws kept ones, and learns both in one pass.  The loss is

    mean cross-entropy of the fresh rows + the same of the drawn ones
    + distil · mean of the drawn rows' squared distances from the outputs kept with them

where the cross-entropy is that of *adjusted* outputs: the log of each class's share among the rows
that were learned lately is added to it while learning and left out when answering.  A class that
comes often now is then not answered more often for it, and one that does not come is not pushed
down (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, with a share that moves;
Huang et al. 2023 for rehearsal).  Distillation: Buzzega et al., "Dark experience for general
continual learning", NeurIPS 2020 (DER++), here on the classes known when a row was kept.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

import torch
from torch import Tensor, nn

from evaluation.dense import DenseLayers
from replay.buffers.balanced import ClassBalanced
from replay.buffers.base import Buffer
from replay.buffers.item import Item
from replay.buffers.reservoir import Reservoir
from replay.rehearsal import Rehearsal
from replay.retrieval import Retrieval, class_balanced, uniform

_SHARE_DECAY: Final = (
    0.9  # a step; 0 is as good on Split-MNIST, .98 lost 2 points of its worst case
)
_SHARE_MIN: Final = 1e-8


@dataclass(frozen=True)
class Method:
    """How a stream is learned.

    Attributes:
        name: In the tables.
        buffer: Makes the memory from capacity and seed; None: nothing is rehearsed.
        retrieval, rehearsal: Which items are drawn, and how many for a fresh row.
        adjust: Weight of the shares' log in the adjusted outputs; 0: plain cross-entropy.
        distil: Weight of the outputs' squared distance, summed over the classes; 0: none.
        distil_half: Rows after which that weight is half for a kept item, where inputs are
            standardised as they come: what an old row's outputs were said of is then no longer what
            the model sees.
        average: Weight of the old value in the moving average of the weights, which answers, in [0,
            1) for each pass; 0: the learned weights answer.
        clip: Longest gradient; 0: any.
    """

    name: str
    buffer: Callable[[int, int], Buffer] | None = None
    retrieval: Retrieval = uniform
    rehearsal: Rehearsal = field(default_factory=Rehearsal)
    adjust: float = 0.0
    distil: float = 0.0
    distil_half: float = 200.0
    average: float = 0.0
    clip: float = 0.0


def _equal(rows: float) -> Rehearsal:
    """Return a rule that draws as many rows for a fresh one at any length, in one pass."""
    return Rehearsal(rows_short=rows, rows_long=rows, passes_short=1.0, passes_long=1.0)


NONE: Final = Method("none")
ER: Final = Method("ER", lambda n, seed: Reservoir(n, seed), rehearsal=_equal(1.0))
DER: Final = Method("DER++", lambda n, seed: Reservoir(n, seed), rehearsal=_equal(1.0), distil=0.05)
OURS: Final = Method(
    "ours",
    lambda n, seed: ClassBalanced(n, seed),
    class_balanced,
    rehearsal=Rehearsal(passes_short=1.0),
    adjust=1.0,
    distil=0.1,
    average=0.8,
    clip=1.0,
)
TWICE: Final = replace(OURS, name="ours, two passes", rehearsal=Rehearsal(), average=0.5)
"""For inputs that are standardised as they come, and what the service does unless told otherwise.

There an old average is of other inputs: .8 costs gas sensors 3 points."""


class Kept:
    """Rows and outputs of a buffer's items, each in a row of a tensor."""

    def __init__(self, buffer: Buffer, wide: int, classes: int) -> None:
        rows = buffer.capacity + 1  # the new one is there before the old one is gone
        self.buffer = buffer
        self.x = torch.zeros(rows, wide)
        self.y = torch.zeros(rows, dtype=torch.long)
        self.outputs = torch.zeros(rows, classes)
        self.at = torch.zeros(rows)  # how many rows had come before
        self._row_of: dict[bytes, int] = {}
        self._free = list(range(rows))

    def insert(self, n: int, x: Tensor, y: Tensor, outputs: Tensor) -> None:
        """Offer the rows after the first ``n`` to the buffer and do as it decides."""
        taken: dict[int, int] = {}  # by row here: which of the new ones is written there last
        for i, label in enumerate(y.tolist()):
            key = (n + i).to_bytes(16, "big")
            gone = self.buffer.insert(Item(key, {}, label))
            if gone is not None:
                if gone.key == key:
                    continue
                self._free.append(self._row_of.pop(gone.key))
            row = self._row_of[key] = self._free.pop()
            taken[row] = i
        if not taken:
            return
        rows, new = torch.tensor(list(taken)), torch.tensor(list(taken.values()))
        self.x.index_copy_(0, rows, x.index_select(0, new))
        self.y.index_copy_(0, rows, y.index_select(0, new))
        self.outputs.index_copy_(0, rows, outputs.index_select(0, new))
        self.at.index_copy_(0, rows, (n + new).float())

    def sample(self, k: int, rng: Random, retrieval: Retrieval) -> list[int]:
        """Rows of the tensors of the items drawn."""
        return [self._row_of[item.key] for item in self.buffer.sample(k, rng, retrieval)]

    @property
    def megabytes(self) -> float:
        """Return the megabytes that the rows, the outputs and the buffer take."""
        tensors = (self.x, self.y, self.outputs)
        return (sum(t.nbytes for t in tensors) + len(pickle.dumps(self.buffer))) / 1e6


class Scaler:
    """Running standardisation of the inputs; kept rows are scaled anew whenever they are drawn."""

    def __init__(self, wide: int) -> None:
        self._n = 0
        self._mean = torch.zeros(wide, dtype=torch.float64)
        self._squares = torch.zeros(wide, dtype=torch.float64)
        self._shift = torch.zeros(wide)
        self._factor = torch.zeros(wide)

    def learn(self, x: Tensor) -> None:
        """Count rows (Chan, Golub and LeVeque's update of mean and squares)."""
        n, mean = len(x), x.double().mean(0)
        total, apart = self._n + n, mean - self._mean
        self._squares += (x.double() - mean).square().sum(0)
        self._squares += apart.square() * (self._n * n / total)
        self._mean += apart * (n / total)
        self._n = total
        deviation = (self._squares / total).sqrt()
        self._shift = self._mean.float()
        moves = deviation > 1e-6 * (1 + self._mean.abs())  # else it is the rounding of a constant
        self._factor = torch.where(moves, 1 / deviation, 0.0).float()

    def __call__(self, x: Tensor) -> Tensor:
        return ((x - self._shift) * self._factor).clamp_(-10, 10)


class Rehearser:
    """A module, its memory and its learning rate.

    Parameters:
        module: Takes (rows, ``wide``), gives (rows, ``classes``): linear layers with rectifiers
            between them.  It is learned in place.
        capacity: Items of the memory.
        rate: Of plain gradient descent.
        scale: Standardise the inputs by the rows so far.
    """

    def __init__(
        self,
        module: nn.Module,
        method: Method,
        *,
        wide: int,
        classes: int,
        capacity: int,
        rate: float,
        seed: int,
        scale: bool = False,
    ) -> None:
        self._method = method
        self._rate, self._capacity, self._classes = rate, capacity, classes
        layers = DenseLayers.of(module)
        assert layers is not None
        self._layers = layers
        self._answering = copy.deepcopy(layers) if method.average else layers
        self._scaler = Scaler(wide) if scale else None
        self._rng = Random(seed)
        self._share = torch.full((classes,), 1 / classes)
        self._weights: dict[tuple[int, int], Tensor] = {}  # of rows, by how many are fresh, drawn
        self._rows = self._passes = 0
        self.kept: Kept | None = None
        if method.buffer is not None:
            self.kept = Kept(method.buffer(capacity, seed), wide, classes)

    def outputs(self, x: Tensor) -> Tensor:
        """Return what is answered for rows; changes nothing."""
        return self._answering.forward(x if self._scaler is None else self._scaler(x))

    def accuracy(self, x: Tensor, y: Tensor) -> float:
        """Share of the rows that are answered right."""
        return float((self.outputs(x).argmax(1) == y).float().mean())

    def step(self, x: Tensor, y: Tensor) -> None:
        """Learn fresh rows and drawn ones, as many times as the rule says; then keep the fresh."""
        rule, n = self._method.rehearsal, max(self._rows, 1)
        if self._scaler is not None:
            self._scaler.learn(x)
        passes = 1 if self.kept is None else rule.whole_passes(n, self._capacity, self._rng)
        before = self._learn(x, y, self._drawn(len(y)))
        for _ in range(passes - 1):
            self._learn(x, y, self._drawn(len(y)))
        if self.kept is not None:
            self.kept.insert(self._rows, x, y, before)
        self._rows += len(y)

    def _drawn(self, fresh: int) -> list[int]:
        if self.kept is None or not len(self.kept.buffer):
            return []
        rule, n = self._method.rehearsal, max(self._rows, 1)
        k = int(rule.rows(n, self._capacity) * fresh + self._rng.random())
        return self.kept.sample(k, self._rng, self._method.retrieval)

    def _learn(self, x: Tensor, y: Tensor, drawn: list[int]) -> Tensor:
        """One pass; outputs of the fresh rows before it."""
        n, kept = len(y), self.kept
        at = None
        if drawn:
            assert kept is not None
            at = torch.tensor(drawn)
            x = torch.cat((x, kept.x.index_select(0, at)))
            y = torch.cat((y, kept.y.index_select(0, at)))
        outputs = self._layers.forward(x if self._scaler is None else self._scaler(x))
        slope = self._slope(outputs, y, n)
        if kept is not None and at is not None and self._method.distil:
            slope[n:] += self._pull(outputs[n:], kept, at)
        if not math.isfinite(self._layers.descend(slope, self._rate, self._method.clip)):
            self._layers.parameters[0].fill_(math.nan)  # it has diverged, and shall answer so
        if self._method.average:
            self._follow()
        return outputs[:n]

    def _slope(self, outputs: Tensor, y: Tensor, fresh: int) -> Tensor:
        """Gradient of the cross-entropies at the outputs; closed: cheaper than to differentiate."""
        drawn = len(y) - fresh
        weights = self._weights.get((fresh, drawn))
        if weights is None:
            weights = torch.full((len(y), 1), 1 / fresh)
            weights[fresh:] = 1 / max(drawn, 1)
            self._weights[fresh, drawn] = weights
        right = torch.zeros_like(outputs).scatter_(1, y[:, None], weights)
        if adjust := self._method.adjust:
            self._share.lerp_(right.sum(0).div_(2 if drawn else 1), 1 - _SHARE_DECAY)
            outputs = outputs + (self._share + _SHARE_MIN).log_().mul_(adjust)
        return torch.softmax(outputs, 1).mul_(weights).sub_(right)

    def _pull(self, outputs: Tensor, kept: Kept, at: Tensor) -> Tensor:
        """Gradient of the distance of the drawn rows' outputs from the kept ones."""
        apart = outputs - kept.outputs.index_select(0, at)
        apart.mul_(2 * self._method.distil / len(outputs))
        if self._scaler is not None:
            age = self._rows - kept.at[at]
            apart *= torch.exp2(-age / self._method.distil_half)[:, None]
        return apart

    def _follow(self) -> None:
        """The average after a pass."""
        self._passes += 1
        old = min(self._method.average, self._passes / (self._passes + 9))
        of = self._layers.parameters
        for average, tensor in zip(self._answering.parameters, of, strict=True):
            average.lerp_(tensor, 1 - old)
