"""Hashing of Unicode text: JavaScript, C and ONNX beside river's hasher and the service's rows."""

from __future__ import annotations

import random
import shutil
import unicodedata
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pytest
from river import preprocessing

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install '.[edge]'")
pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[edge]'")

from online.edge.lowering.fronts import front_of
from online.edge.lowering.ir import Columns, EdgeModel, Linear, Tokens
from online.edge.targets import onnx_file, pack, runners
from online.models.features.hashed import Hashed

COUNT: Final = 10_000
BLOCKS: Final = (
    (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF),
    (0x600, 0x6FF), (0x900, 0x97F), (0x1E00, 0x1FFF), (0x2000, 0x2BFF), (0x3040, 0x30FF),
    (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFB00, 0xFB4F), (0xFF00, 0xFFEF), (0x10400, 0x1044F),
    (0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0, 0x1F), (0x130, 0x131), (0x3A3, 0x3A3),
)  # fmt: skip


def texts(count: int, seed: int) -> list[str]:
    """Texts of assigned characters, several scripts in one now and then."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        out: list[str] = []
        block = draw.choice(BLOCKS)
        for _ in range(draw.randrange(0, 14)):
            if draw.random() < 0.2:
                block = draw.choice(BLOCKS)
            char = chr(draw.randint(*block))
            if unicodedata.category(char) != "Cn":
                out.append(char)
        made.append("".join(out))
    return made


def model(tokens: Tokens, keys: set[int], seed: int) -> EdgeModel:
    """A sum of weights by hash: whole numbers, so that sums are exact in float32, too."""
    held = np.array(sorted(keys), dtype=np.uint32)
    weights = np.random.default_rng(seed).integers(1, 1000, (len(held), 1)).astype(np.float64)
    body = Linear(np.zeros((0, 1)), weights, np.zeros(1), np.ones(1), "identity")
    columns = Columns((), np.zeros(0), np.zeros(0))
    return EdgeModel("regression", (), columns, replace(tokens, keys=held), body)


def weights_of(edge: EdgeModel) -> dict[int, float]:
    assert edge.tokens is not None
    table = edge.body.table[:, 0].tolist()  # type: ignore[union-attr]
    return dict(zip(edge.tokens.keys.tolist(), table, strict=True))


def mismatches(edge: EdgeModel, rows: list[Any], expected: list[float]) -> dict[str, int]:
    """Rows that come out otherwise, by runtime."""
    found = {"onnx": runners.run_onnx(onnx_file.convert(edge, "float64"), edge, rows)}
    if shutil.which("node"):
        found["javascript"] = runners.run_node(pack.encode(edge), rows)["outputs"]
    if shutil.which("gcc"):
        found["c"] = runners.run_c(edge, rows)
    return {name: int((y[:, 0] != np.array(expected)).sum()) for name, y in found.items()}


@pytest.mark.parametrize(("buckets", "signed"), [(2**20, True), (10_007, False)])
def test_rivers_hasher_in_every_runtime(buckets: int, signed: bool) -> None:
    hasher = preprocessing.FeatureHasher(n_features=buckets, seed=42, alternate_sign=signed)
    empty = front_of([hasher]).tokens
    assert empty is not None
    rows = [{"naïve 名": text} for text in texts(COUNT, 1)]
    hashed = [hasher.transform_one(row) for row in rows]
    edge = model(empty, {key for row in hashed for key in row}, 2)
    weights = weights_of(edge)
    expected = [sum(weights[key] * number for key, number in row.items()) for row in hashed]
    found = mismatches(edge, rows, expected)
    assert set(found.values()) == {0}, found


@pytest.mark.parametrize(("bits", "seed"), [(22, 0), (31, 3_000_000_000)])
def test_the_services_rows_in_every_runtime(bits: int, seed: int) -> None:
    """Names, words in small letters, texts as JSON, null, true: 10,000 tokens and more."""
    service = Hashed(("text",), bits, seed, None)
    given = texts(COUNT, 3)
    rows: list[dict[str, Any]] = [
        {
            "text": f"{given[i]} {given[i + 1]}", "kind": given[i + 2],
            f"{given[i + 3]}é": None, f"b{given[i]}": i % 3 == 0, f"n{given[i + 1]}": float(i % 7),
        }
        for i in range(0, COUNT - 4, 4)
    ]  # fmt: skip
    hashed = [service.row(row, learns=False) for row in rows]
    keys = {int(key) for row in hashed for key in row if key != "bias"}
    empty = Tokens("service", ("text",), 2**bits, seed, numbers=True)
    edge = model(empty, set(sorted(keys)[::2]), 4)  # half of the tokens are unseen
    weights = weights_of(edge)
    expected = [
        sum(weights.get(int(k), 0.0) * x for k, x in row.items() if k != "bias") for row in hashed
    ]
    assert sum(len(row) for row in hashed) > COUNT
    found = mismatches(edge, rows, expected)
    assert set(found.values()) == {0}, found


def test_a_vocabulary_of_words() -> None:
    words = tuple(sorted({f"kind_{t}" for t in texts(400, 5)}))
    table = np.arange(1.0, len(words) + 1)[:, None]
    body = Linear(np.zeros((0, 1)), table, np.zeros(1), np.ones(1), "identity")
    columns = Columns((), np.zeros(0), np.zeros(0))
    edge = EdgeModel("regression", (), columns, Tokens("onehot", words=words), body)
    rows = [{"kind": word.removeprefix("kind_")} for word in words] + [{"kind": "never seen"}]
    expected = [*table[:, 0].tolist(), 0.0]
    found = {"onnx": runners.run_onnx(onnx_file.convert(edge, "float64"), edge, rows)}
    if shutil.which("node"):
        found["javascript"] = runners.run_node(pack.encode(edge), rows)["outputs"]
    for name, y in found.items():
        assert y[:, 0].tolist() == expected, name
