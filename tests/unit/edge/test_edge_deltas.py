"""Differences between packs: the same bytes by Python and in Node, or a refusal."""

from __future__ import annotations

import shutil
import subprocess
import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online.edge.errors import DifferenceUnfit, PackCorrupt, StepsUnfit
from online.edge.lowering.evaluate import evaluate
from online.edge.lowering.ir import Columns, EdgeModel, Layer, Mlp
from online.edge.targets import deltas, grid, pack, runners

NODE = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
ASK: Final = """
import { readFileSync, writeFileSync } from "node:fs";
import { update } from "./edge.mjs";
let at = new Uint8Array(readFileSync("0.edgepack"));
for (let i = 1; i <= +process.argv[2]; i++) {
  at = await update(at, new Uint8Array(readFileSync(`${i}.delta`)));
  writeFileSync(`${i}.made`, at);
}
"""


def network(seed: int, names: int = 5, hidden: int = 7) -> EdgeModel:
    rng = np.random.default_rng(seed)
    layers = (
        Layer(rng.normal(size=(hidden, names)), rng.normal(size=hidden), "relu"),
        Layer(rng.normal(size=(3, hidden)), rng.normal(size=3), "none"),
    )
    columns = Columns(
        tuple(f"x{i}" for i in range(names)), rng.normal(size=names), rng.uniform(1, 2, names)
    )
    return EdgeModel("multiclass", ("a", "b", "c"), columns, None, Mlp(layers, "softmax"))


def moved(model: EdgeModel, seed: int, share: float = 0.01) -> EdgeModel:
    """Weights after a few steps: near the old ones, some not moved at all."""
    rng = np.random.default_rng(seed)
    body: Any = model.body
    layers = tuple(
        replace(
            layer,
            weights=layer.weights
            + share
            * rng.normal(size=layer.weights.shape)
            * (rng.random(layer.weights.shape) < 0.5),
        )
        for layer in body.layers
    )
    columns = replace(model.columns, center=model.columns.center + share)
    return replace(model, columns=columns, body=replace(body, layers=layers))


def in_node(first: bytes, given_: list[bytes], folder: Path) -> list[bytes]:
    (folder / "edge.mjs").write_bytes(runners.runtime_js())
    (folder / "ask.mjs").write_text(ASK)
    (folder / "0.edgepack").write_bytes(first)
    for i, delta in enumerate(given_, 1):
        (folder / f"{i}.delta").write_bytes(delta)
    node = shutil.which("node")
    assert node is not None
    subprocess.run([node, "ask.mjs", str(len(given_))], cwd=folder, check=True, timeout=240)
    return [(folder / f"{i}.made").read_bytes() for i in range(1, len(given_) + 1)]


@NODE
@pytest.mark.parametrize("hidden", [7, 8])
def test_exact_differences_in_node(hidden: int, tmp_path: Path) -> None:
    models = [network(1, hidden=hidden)]
    for seed in range(4):
        models.append(moved(models[-1], seed))
    packs = [pack.encode(m) for m in models]
    made = [deltas.exact(a, b) for a, b in pairwise(packs)]
    assert [deltas.apply(a, d) for a, d in zip(packs, made, strict=False)] == packs[1:]
    assert in_node(packs[0], made, tmp_path) == packs[1:]


def rows_of(model: EdgeModel, seed: int, count: int = 128) -> list[dict[str, float]]:
    names = model.columns.names
    numbers = np.random.default_rng(seed).normal(size=(count, len(names)))
    return [dict(zip(names, row, strict=True)) for row in numbers.tolist()]


def gridded(model: EdgeModel, held: bytes | None = None) -> bytes:
    return grid.on_grid(model, held, rows_of(model, 3, 60), np.random.default_rng(0))


@NODE
def test_ten_steps_in_a_row_stay_near_and_equal_in_node(tmp_path: Path) -> None:
    """Whole steps, among them long ones; each pack as near its model as the first."""
    model = network(2, names=20, hidden=30)
    packs, models = [gridded(model)], [model]
    for seed in range(10):
        model = moved(model, seed, share=0.05 if seed == 4 else 0.01)
        packs.append(gridded(model, packs[-1]))
        models.append(model)
    made = [deltas.smallest(a, b) for a, b in pairwise(packs)]
    assert {delta[:4] for delta in made[5:]} == {b"EPD8"}
    assert [deltas.apply(a, d) for a, d in zip(packs, made, strict=False)] == packs[1:]
    assert in_node(packs[0], made, tmp_path) == packs[1:]
    for held, of in zip(packs, models, strict=True):
        asked = rows_of(of, 5, 400)
        off = runners.run_pack(held, asked) - runners.run_pack(pack.encode(of), asked)
        assert np.abs(off).max() <= 3 * grid.OFF_MAX, "rows that the grid was not chosen by"
    assert deltas.apply(packs[5], deltas.steps(packs[5], packs[9])) == packs[9], "from any other"


def test_a_difference_on_a_grid_is_a_fraction_of_an_exact_one() -> None:
    model = network(3, names=30, hidden=40)
    held = gridded(model, gridded(network(5, names=30, hidden=40)))
    after = moved(model, 1, share=0.002)
    exact = deltas.exact(pack.encode(model), pack.encode(after))
    small = deltas.smallest(held, gridded(after, held))
    assert len(small) < 0.55 * len(exact)
    with pytest.raises(DifferenceUnfit, match="multiples of a common step"):
        deltas.steps(pack.encode(model), pack.encode(after))


def test_the_first_layer_takes_up_what_the_scaler_has_moved() -> None:
    model = network(4)
    after = moved(model, 1)
    behind = grid.behind(after, model.columns)
    asked = rows_of(model, 1)
    np.testing.assert_allclose(evaluate(behind, asked), evaluate(after, asked), atol=1e-12)
    assert behind.columns is model.columns
    still = replace(model.columns, factor=np.where(np.arange(5) == 2, 0.0, model.columns.factor))
    held = pack.encode(replace(model, columns=still))
    near = pack.decode(grid.on_grid(after, held, asked, np.random.default_rng(0)))
    assert (near.columns.factor != 0).all(), "it was constant, and is no longer"


def test_a_scaler_that_has_moved_far_is_sent() -> None:
    """A missing number is the mean: an old one would be another answer."""
    model = network(4)
    far = replace(model, columns=replace(model.columns, center=model.columns.center + 0.5))
    asked = [{**row, "x1": float("nan")} for row in rows_of(model, 3)]
    near = pack.decode(grid.on_grid(far, pack.encode(model), asked, np.random.default_rng(0)))
    assert np.abs(evaluate(near, asked) - evaluate(far, asked)).max() <= grid.OFF_MAX
    assert np.abs(near.columns.center - far.columns.center).max() < 0.02


def test_trees_and_answers_that_no_grid_gives_are_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr(grid, "OFF_MAX", 1e-30)
    with pytest.raises(StepsUnfit, match="no step keeps the answers"):
        gridded(network(1))


def test_steps_of_any_length_are_read_back() -> None:
    numbers = np.array([0, 1, -1, 126, 127, 128, 254, 255, -127, -128, -129, -256, -300, 5000])
    written = deltas._written(numbers)
    assert len(written) > 2 * len(numbers)
    back, used = deltas._read_back(np.frombuffer(written + b"\7", np.int8), len(numbers))
    assert (back.tolist(), used) == (numbers.tolist(), len(written))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.data())
def test_a_damaged_difference_is_refused_or_another_file(
    seed: int, whole: bool, data: st.DataObject
) -> None:
    if whole:
        old, new = pack.encode(network(seed)), pack.encode(moved(network(seed), seed))
    else:
        old = gridded(network(seed), gridded(moved(network(seed), seed + 1)))
        new = gridded(moved(network(seed), seed), old)
    delta = (deltas.exact if whole else deltas.smallest)(old, new)
    at = data.draw(st.integers(0, len(delta) - 1))
    changed = bytearray(delta)
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        made = deltas.apply(old, bytes(changed))
    except PackCorrupt:
        return
    assert len(made) == len(old)


def test_a_difference_of_other_packs_is_refused() -> None:
    old, other = pack.encode(network(1)), pack.encode(network(1, hidden=9))
    with pytest.raises(DifferenceUnfit, match="sent whole"):
        deltas.exact(old, other)
    delta = deltas.exact(old, pack.encode(moved(network(1), 2)))
    for bad in (b"", b"EPD1" + delta[4:], delta[:-3], delta + b"\0"):
        with pytest.raises(PackCorrupt):
            deltas.apply(old, bad)
    with pytest.raises(PackCorrupt):
        deltas.apply(other, delta)


def test_nothing_endless_is_read() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    endless = packer.compress(bytes(50_000_000)) + packer.flush()
    old = pack.encode(network(1))
    for kind in (b"EPD0", b"EPD8"):
        with pytest.raises(PackCorrupt):
            deltas.apply(old, kind + endless)
