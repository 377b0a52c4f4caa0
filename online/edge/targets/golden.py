"""Golden rows: inputs with expected outputs, verified before publishing and on each device.

They are real rows (from the journal or a stream) and generated edge cases: each threshold and its
neighbours in float64 and float32; missing values, as absent and as NaN; constant columns that
change; unseen names, words and texts in several scripts.  The expected outputs are those of the
served model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import numpy as np

from online.edge.lowering.ir import Columns, EdgeModel, Floats, Forest, floor32
from online.edge.targets.pack import Precision
from online.models.base import Model, Prediction
from replay.example import Features

THRESHOLDS_MAX: Final = 32
"""Most branches whose thresholds are tested; each gives five rows."""

TEXTS: Final = (
    "", "free", "FREE prize! Call 08001234", "naïve café", "İstanbul ΣΊΣΥΦΟΣ", "汉字 かな 한글",
    "straße ﬁ ǅ", "e\u0301 \u200d👩‍🔬 🎉🎉", "a_b c-d 1½ ²³ Ⅷ", 'q"u\\o\tte\n\x7f', "नमस्ते दुनिया",
)  # fmt: skip


@dataclass(frozen=True)
class Golden:
    """Rows, and the model's outputs.

    Attributes:
        rows: Features; NaN is a missing number.
        expected: Outputs, shape (rows, outputs).
        labels: Whether the outputs are probabilities of labels.
    """

    rows: tuple[Mapping[str, Any], ...]
    expected: Floats
    labels: bool

    def file(self) -> bytes:
        """Return rows and outputs as canonical JSON."""
        return _json({"rows": json_rows(self.rows), "expected": self.expected.tolist()})

    def parts(self) -> dict[str, bytes]:
        """``rows`` and ``expected``, each as canonical JSON."""
        return {"rows": _json(json_rows(self.rows)), "expected": _json(self.expected.tolist())}

    def last(self, count: int) -> Golden:
        """The last ``count`` rows."""
        return Golden(self.rows[-count:], self.expected[-count:], self.labels)

    def some(self, most: int) -> Golden:
        """At most ``most`` rows, evenly spaced, so that real rows and edge cases are included."""
        at = np.unique(np.linspace(0, len(self.rows) - 1, most).round().astype(int))
        return Golden(tuple(self.rows[i] for i in at), self.expected[at], self.labels)

    def name(self) -> str:
        """Name of the file, derived from its content."""
        return f"golden-{sha256(self.file()).hexdigest()[:32]}.json"


def json_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as JSON data, with the names of their NaN values beside them, because JSON has none."""
    return [
        {"x": _present(row), "nan": [name for name, value in row.items() if _nan(value)]}
        for row in rows
    ]


def rows_of(part: bytes) -> tuple[Mapping[str, Any], ...]:
    """Parse the rows that :meth:`Golden.parts` has written."""
    return tuple(
        {**row["x"], **dict.fromkeys(row["nan"], math.nan)} for row in json.loads(part)
    )  # fmt: skip


def golden(
    served: Model,
    edge: EdgeModel,
    rows: Sequence[Features],
    precision: Precision,
    rng: np.random.Generator,
    *,
    thresholds: int = THRESHOLDS_MAX,
    held: Sequence[Mapping[str, Any]] = (),
) -> Golden:
    """Make golden rows: the given rows, generated edge cases, and the rows that devices have.

    Parameters:
        served, edge: The model, and its lowering with the model's own labels.
        rows: Real rows; if empty, numbers are drawn around the columns' centers.
        precision: ``float32``: numbers are rounded first, because the target's inputs are float32.
        thresholds: Number of branches to test, drawn by ``rng``.
        held: Rows that devices have; all of them come last.
    """
    real: list[dict[str, Any]] = [dict(row) for row in rows] or list(_drawn(edge, rng))
    beside = _at_thresholds(edge, real, rng, thresholds)
    tried = [*real, *beside, *_odd(edge, real), *_texts(edge, real)]
    if precision == "float32":
        tried = [_rounded(row) for row in tried]
        tried = [row for row in tried if not any(_infinite(v) for v in row.values())]
    tried += map(dict, held)
    predict = getattr(served, "plain", served.predict)  # files know no labels
    expected = [answer(edge, predict(_within(edge, _present(row)))) for row in tried]
    outputs = np.array(expected).reshape(len(tried), edge.outputs)
    return Golden(tuple(tried), outputs, edge.task != "regression")


def _within(edge: EdgeModel, row: dict[str, Any]) -> dict[str, Any]:
    """The row as the service passes it to its model, with numbers clipped to their bounds."""
    if edge.columns.ends is None:
        return row
    out = dict(row)
    for name, (low, high, least, most) in zip(
        edge.columns.names, edge.columns.ends.T.tolist(), strict=True
    ):
        if isinstance(value := out.get(name), (int, float)) and not low <= value <= high:
            out[name] = most if value > high else least
    return out


def answer(edge: EdgeModel, given: Prediction) -> list[float]:
    """Convert the served model's prediction to outputs."""
    if edge.task == "regression":
        return [float(given.label or 0.0)]
    shares = given.probabilities or {}
    if edge.outputs == 1 and len(edge.classes) == 2:
        return [float(shares.get(edge.classes[1], 0.0))]
    return [float(shares.get(label, 0.0)) for label in edge.classes]


def _drawn(edge: EdgeModel, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    columns = edge.columns
    spread = np.where(columns.factor != 0, 1.0 / np.where(columns.factor, columns.factor, 1), 0.0)
    if isinstance(body := edge.body, Forest) and len(body.threshold):
        typical = np.array(
            [_typical(body, i) for i in range(len(columns.names))]
        )  # thresholds say where the numbers are
        center, spread = typical[:, 0], np.maximum(typical[:, 1], 1e-9)
    else:
        center = columns.center
    for _ in range(128):
        x = center + spread * rng.standard_normal(len(columns.names))
        yield {
            n: v for n, v in zip(columns.names, x.tolist(), strict=True)
            if n not in columns.vocabularies
        }  # fmt: skip


def _typical(body: Forest, column: int) -> tuple[float, float]:
    own = body.threshold[(body.feature == column) & np.isfinite(body.threshold)]
    if not len(own):
        return 0.0, 1.0
    return float(own.mean()), float(own.std()) or abs(float(own.mean())) or 1.0


def _at_thresholds(
    edge: EdgeModel, real: Sequence[Mapping[str, Any]], rng: np.random.Generator, most: int
) -> Iterator[dict[str, Any]]:
    """Real rows with one number replaced by a threshold that they are compared with, or next to."""
    body = edge.body
    if not isinstance(body, Forest) or not len(body.feature):
        return
    paths = _branches_on_the_way(edge, body, real)
    chosen = rng.permutation(sorted(paths))[:most]
    for branch in chosen.tolist():
        name = edge.columns.names[int(body.feature[branch])]
        threshold = float(body.threshold[branch])
        if name in edge.columns.vocabularies or not math.isfinite(threshold):
            continue
        low = np.float32(floor32(np.array([threshold]))[0])
        for value in (
            threshold, math.nextafter(threshold, math.inf), math.nextafter(threshold, -math.inf),
            float(low), float(np.nextafter(low, np.float32(np.inf))),
        ):  # fmt: skip
            yield {**paths[branch], name: value}


def _branches_on_the_way(
    edge: EdgeModel, body: Forest, real: Sequence[Mapping[str, Any]]
) -> dict[int, Mapping[str, Any]]:
    """Branches that real rows reach, each with such a row."""
    branches: dict[int, Mapping[str, Any]] = {}
    for row in real[:256]:
        for at in body.roots.tolist():
            while at >= 0:
                branches.setdefault(at, row)
                value = row.get(edge.columns.names[int(body.feature[at])])
                left = isinstance(value, (int, float)) and value <= body.threshold[at]
                at = int((body.left if left else body.right)[at])
    return branches


def _odd(edge: EdgeModel, real: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows with numbers that are absent, NaN, new for a constant column, or far away; new names."""
    names = [n for n in edge.columns.names if n not in edge.columns.vocabularies]
    if not real:
        return
    for i, name in enumerate(names[:32]):
        row = dict(real[i % len(real)])
        yield {n: v for n, v in row.items() if n != name}
        yield {**row, name: math.nan}
    for i, name in enumerate(edge.columns.names):
        if edge.columns.factor[i] == 0:
            yield {**real[0], name: float(edge.columns.center[i]) + 1.0}
    yield from _beyond(edge.columns, real[0])
    if names:
        yield dict.fromkeys(names, math.nan)
        yield {names[0]: 0.0}
        yield {**real[0], "a name never seen": 7.5}
        far = 50.0 * (1.0 / edge.columns.factor[0] if edge.columns.factor[0] else 1.0)
        if edge.columns.names[0] == names[0]:
            yield {**real[0], names[0]: float(edge.columns.center[0] + far)}


def _beyond(columns: Columns, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows with numbers just inside the clipping bounds, and beyond them."""
    if columns.ends is None:
        return
    ends = zip(columns.names, columns.ends.T.tolist(), strict=True)
    known = [(name, both[0], both[1]) for name, both in ends if math.isfinite(both[0])]
    for name, low, high in known[:16]:
        for value in (low + 0.99 * (high - low), high + (high - low), low - 2.0 * (high - low)):
            yield {**row, name: value}
    yield {**row, **{name: 1e30 for name, _, _ in known}}


def _texts(edge: EdgeModel, real: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    row = dict(real[0]) if real else {}
    for name, words in edge.columns.vocabularies.items():
        for word in (*words[:16], "never seen"):
            yield {**row, name: word}
    if (tokens := edge.tokens) is None:
        return
    for text in TEXTS:
        for name in (*tokens.text[:4], "kind", "名前"):
            yield {**row, name: text}
    if tokens.spelling == "service":
        yield {**row, "flag": True, "gone": None, "other": False}


def _present(row: Mapping[str, Any]) -> dict[str, Any]:
    return {n: v for n, v in row.items() if not _nan(v)}


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _infinite(value: Any) -> bool:
    return isinstance(value, float) and math.isinf(value)


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    with np.errstate(over="ignore"):
        return {
            n: float(np.float32(v))
            if isinstance(v, (int, float)) and not isinstance(v, bool)
            else v
            for n, v in row.items()
        }
