"""Layers learned without autograd, beside autograd and torch's optimizer."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from evaluation.dense import DenseLayers


def chain(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        parts += [nn.Linear(a, b, dtype=torch.float64), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def layers_of(module: nn.Module) -> DenseLayers:
    layers = DenseLayers.of(module)
    assert layers is not None
    return layers


@settings(deadline=None)
@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    rows=st.integers(1, 12),
    longest=st.sampled_from([0.0, 1e-3, 0.5, 100.0]),
    seed=st.integers(0, 2**16),
)
def test_steps_are_those_of_autograd(
    widths: list[int], rows: int, longest: float, seed: int
) -> None:
    module = chain(*widths, seed=seed)
    other = copy.deepcopy(module)
    layers, optimizer = layers_of(module), torch.optim.SGD(other.parameters(), lr=0.3)
    for _ in range(3):
        x = torch.randn(rows, widths[0], dtype=torch.float64)
        slope = torch.randn(rows, widths[-1], dtype=torch.float64)
        outputs = other(x)
        assert torch.allclose(layers.forward(x), outputs, rtol=0, atol=1e-9)
        optimizer.zero_grad()
        outputs.backward(slope)
        length = float(torch.cat([p.grad.view(-1) for p in other.parameters()]).norm())
        if longest and length > longest:
            for parameter in other.parameters():
                parameter.grad.mul_(longest / length)
        optimizer.step()
        assert layers.descend(slope, 0.3, longest) == pytest.approx(length, rel=1e-9, abs=1e-6)
    for mine, its in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, its, rtol=0, atol=1e-9)


def test_a_copy_learns_by_itself() -> None:
    module = chain(3, 4, 2)
    layers = layers_of(module)
    before, other = module[0].weight.clone(), copy.deepcopy(layers)
    x = torch.ones(1, 3, dtype=torch.float64)
    other.forward(x)
    other.descend(torch.ones(1, 2, dtype=torch.float64), 0.1)
    assert torch.equal(module[0].weight, before)
    assert not torch.equal(other.forward(x), layers.forward(x))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_changes_nothing(broken: float) -> None:
    module = chain(3, 4, 2)
    before = copy.deepcopy(module.state_dict())
    layers = layers_of(module)
    layers.forward(torch.ones(2, 3, dtype=torch.float64))
    slope = torch.ones(2, 2, dtype=torch.float64)
    slope[1, 0] = broken
    assert not layers.descend(slope, 0.1) < float("inf")
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def test_rows_that_cancel_each_other_have_the_length_of_what_is_left() -> None:
    module = nn.Sequential(nn.Linear(20, 3))
    layers = layers_of(module)
    x = 1e4 * torch.rand(1, 20)
    layers.forward(torch.cat((x, x * (1 + 1e-6), x)))
    slope = torch.tensor([[0.5, -0.25, 0.0], [-0.5, 0.25, 0.0], [1e-6, 0.0, 1e-6]])
    expected = layers._given[0].double().t() @ slope.double()
    length = math.hypot(float(expected.norm()), float(slope.double().sum(0).norm()))
    assert layers.descend(slope, 0.0) == pytest.approx(length, rel=0.01)


def _frozen() -> nn.Module:
    module = chain(2, 2, 2)
    module[0].bias.requires_grad_(False)
    return module


def _tied() -> nn.Module:
    module = chain(2, 2, 2)
    module[2].weight = module[0].weight
    return module


def _twice() -> nn.Module:
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.ReLU(), layer)


def _hooked() -> nn.Module:
    module = chain(2, 2, 2)
    module[0].register_forward_hook(lambda layer, x, y: 2 * y)
    return module


@pytest.mark.parametrize(
    "module",
    [
        _tied(),
        _twice(),
        _hooked(),
        nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 2))),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))),
        nn.Sequential(nn.Linear(2, 2).half()),
        nn.Linear(2, 2),
        nn.Sequential(),
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2, bias=False)),
        nn.Sequential(nn.ReLU(), nn.Linear(2, 2)),
        nn.Sequential(chain(2, 2), nn.ReLU(), nn.Linear(2, 2)),
        type("Mine", (nn.Sequential,), {})(nn.Linear(2, 2)),
        _frozen(),
    ],
)
def test_other_modules_are_not_taken(module: Any) -> None:
    assert DenseLayers.of(module) is None
