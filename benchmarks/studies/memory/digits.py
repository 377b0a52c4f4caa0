"""Images of digits as tasks that come one after the other."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

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


def permuted(digits: Digits, seed: int, tasks: int = 20) -> list[Task]:
    """All images once a task, in a random order, with their pixels in a random order."""
    draw = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(digits.x.shape[1], generator=draw) for _ in range(tasks)]
    return _seen(digits, [partial(_ordered, order=order) for order in orders], draw)


def _ordered(x: Tensor, order: Tensor) -> Tensor:
    return x[:, order]


def rotated(digits: Digits, seed: int, tasks: int = 20) -> list[Task]:
    """All images once a task, in a random order, turned by a random angle below 180°."""
    draw = torch.Generator().manual_seed(seed)
    angles = (180 * torch.rand(tasks, generator=draw)).tolist()
    return _seen(digits, [partial(_at_angle, degrees=angle) for angle in angles], draw)


def _at_angle(x: Tensor, degrees: float) -> Tensor:
    return turned(x, torch.full((len(x),), degrees))


def _seen(digits: Digits, views: list[View], draw: torch.Generator) -> list[Task]:
    tasks = []
    for view in views:
        order = torch.randperm(len(digits.y), generator=draw)
        x, y = digits.x[order], digits.y[order]
        tasks.append(Task(x, y, digits.asked_x, digits.asked_y, view))
    return tasks


def turned(x: Tensor, degrees: Tensor) -> Tensor:
    """Square images, each turned by its angle."""
    side = math.isqrt(x.shape[1])
    angle = degrees * (math.pi / 180)
    cosine, sine, none = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
    turn = torch.stack((cosine, -sine, none, sine, cosine, none), 1).view(-1, 2, 3)
    grid = functional.affine_grid(turn, [len(x), 1, side, side], align_corners=False)
    image = x.view(-1, 1, side, side)
    return functional.grid_sample(image, grid, align_corners=False).view(len(x), -1)


def turning(digits: Digits, seed: int, rows: int = 20_000, rounds: int = 3) -> list[Task]:
    """One task without boundaries: pairs of digits that come back, slowly turning once round.

    In each round come (0, 1), (1, 2) … (8, 9), each for as long; what is asked are all digits at
    angles drawn evenly.  After MNIST-360 (Buzzega et al. 2020), on 10,000 images.
    """
    draw = torch.Generator().manual_seed(seed)
    images = torch.randperm(len(digits.y), generator=draw)[:10_000]
    x, y = digits.x[images], digits.y[images]
    each = rows // (rounds * (CLASSES - 1))
    parts = []
    for i in range(rounds * (CLASSES - 1)):
        first = i % (CLASSES - 1)
        of_pair = ((y == first) | (y == first + 1)).nonzero()[:, 0]
        parts.append(of_pair[torch.randint(len(of_pair), (each,), generator=draw)])
    at = torch.cat(parts)
    degrees = torch.linspace(0, 360, len(at))
    asked = turned(digits.asked_x, 360 * torch.rand(len(digits.asked_y), generator=draw))
    return [Task(turned(x[at], degrees), y[at], asked, digits.asked_y)]
