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

from online.edge import deltas, pack, runners
from online.edge.errors import PackCorrupt, TemplateUnfit
from online.edge.ir import Columns, EdgeModel, Layer, Mlp

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
    subprocess.run([node, "ask.mjs", str(len(given_))], cwd=folder, check=True, timeout=60)
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


@NODE
def test_ten_steps_in_a_row_stay_near_and_equal_in_node(tmp_path: Path) -> None:
    model = network(2, names=20, hidden=30)
    first = held = pack.encode(model)
    made, expected = [], []
    for seed in range(10):
        model = moved(model, seed)
        delta, held_next = deltas.steps(held, pack.encode(model))
        assert deltas.apply(held, delta) == held_next
        made.append(delta)
        expected.append(held_next)
        held = held_next
    assert in_node(first, made, tmp_path) == expected
    rows = [
        dict(zip(model.columns.names, row, strict=True))
        for row in np.random.default_rng(5).normal(size=(200, 20)).tolist()
    ]
    off = np.abs(runners.run_pack(held, rows) - runners.run_pack(pack.encode(model), rows))
    assert off.max() <= 5e-3
    assert sum(map(len, made)) < 0.5 * 10 * len(first)


def test_errors_do_not_add_up() -> None:
    """Ten differences, each of what the client holds: as near as one is."""
    model = network(3, names=20, hidden=30)
    held = pack.encode(model)
    errors = []
    for seed in range(10):
        model = moved(model, seed)
        _, held = deltas.steps(held, pack.encode(model))
        got: Any = pack.decode(held).body
        wanted: Any = model.body
        errors.append(np.abs(got.layers[0].weights - wanted.layers[0].weights).max())
    assert max(errors) <= 3 * errors[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.data())
def test_a_damaged_difference_is_refused_or_another_file(
    seed: int, whole: bool, data: st.DataObject
) -> None:
    old, new = pack.encode(network(seed)), pack.encode(moved(network(seed), seed))
    delta = deltas.exact(old, new) if whole else deltas.steps(old, new)[0]
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
    with pytest.raises(TemplateUnfit, match="send it whole"):
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
