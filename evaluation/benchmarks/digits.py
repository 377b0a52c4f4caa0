"""Images of digits as tasks that come one after the other."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from evaluation.errors import StreamUnusable

CLASSES: Final = 10
View = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Digits:
    """Images as rows of floats in [0, 1], with their labels: to learn, and to be asked."""

    x: Tensor
    y: Tensor
    asked_x: Tensor
    asked_y: Tensor


@dataclass(frozen=True, slots=True)
class Task:
    """Rows to learn in this order and rows to be asked; both are seen through ``view``."""

    x: Tensor
    y: Tensor
    asked_x: Tensor
    asked_y: Tensor
    view: View = lambda x: x


def mnist(data_dir: Path | None) -> Digits:
    """MNIST from its four idx files in ``data_dir``.  Raises StreamUnusable."""
    if data_dir is None:
        problem = "it is not bundled and no data directory is set"
        raise StreamUnusable("mnist", problem, "Set ONLINE_DATA_DIR")
    folder = data_dir / "mnist"
    return Digits(
        _images(folder / "train-images-idx3-ubyte.gz"),
        _bytes(folder / "train-labels-idx1-ubyte.gz", 8).long(),
        _images(folder / "t10k-images-idx3-ubyte.gz"),
        _bytes(folder / "t10k-labels-idx1-ubyte.gz", 8).long(),
    )


def _bytes(path: Path, header: int) -> Tensor:
    if not path.is_file():
        raise StreamUnusable("mnist", f"no file {path}", "Put it there, or name another directory")
    with gzip.open(path) as file:
        return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=header).copy())


def _images(path: Path) -> Tensor:
    return _bytes(path, 16).reshape(-1, 784).float() / 255


def split(digits: Digits, seed: int, rows: int | None) -> list[Task]:
    """Five tasks of two digits each; ``rows`` of each task at random, or all, in random order."""
    draw = torch.Generator().manual_seed(seed)
    tasks = []
    for first in range(0, CLASSES, 2):
        at = (digits.y // 2 == first // 2).nonzero()[:, 0]
        at = at[torch.randperm(len(at), generator=draw)][:rows]
        asked = digits.asked_y // 2 == first // 2
        tasks.append(Task(digits.x[at], digits.y[at], digits.asked_x[asked], digits.asked_y[asked]))
    return tasks
