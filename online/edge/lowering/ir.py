"""The one form that every exported model is brought to: names, and tables of numbers.

A row of features becomes ``x``, a number for each column (NaN where it is missing), and tokens,
which are looked up in a table.  ``z`` are the columns scaled: ``z = clip((x - center) · factor,
±limit)``; a missing one counts as z = 0 in sums and is skipped in leaves.  The body makes the
outputs of z, and of x where a tree branches.

Tables are float64 here; what a target rounds them to is its own affair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from evaluation.metrics import Task
from replay.example import Label

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Array = npt.NDArray[Any]

Link = Literal["identity", "sigmoid", "softmax"]
Activation = Literal["none", "relu", "tanh", "sigmoid"]
Spelling = Literal["service", "river", "onehot"]

TENTS: Final = 12
"""Tents of a column; part of the format, as the place SQUASH that a z has among them is."""

SQUASH: Final = 1.702

ROWS_MAX: Final = 2**22
"""Rows of a token table, and branches or leaves of a forest: more is no export for a device."""


@dataclass(frozen=True)
class Columns:
    """Named numbers, and how they are scaled.

    Attributes:
        names: In the order of x.
        center, factor: Of each column, shape (columns,).
        limit: Standard deviations beyond which z is cut; inf: never.
        vocabularies: Of columns that are text: the words by code.  x is the code, -1 for any other
            word.
        ends: Least and greatest x, and what stands for a smaller and for a greater one, shape (4,
            columns).  None: there are none.
    """

    names: tuple[str, ...]
    center: Floats
    factor: Floats
    limit: float = float("inf")
    vocabularies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ends: Floats | None = None


@dataclass(frozen=True)
class Tokens:
    """Values that are spelled as text, and how a text becomes a row of the table.

    ========= ===================================== ========================================
    spelling  a value becomes                       the row is found by
    ========= ===================================== ========================================
    service   as :mod:`online.models.features.hashed` says   ``murmur3(text) & (buckets - 1)``
    river     ``name=text``, or the name of a       ``murmur3(text)``, signed, modulo buckets;
              number, as ``FeatureHasher`` does     its sign times the value if ``signed``
    onehot    ``name_text``, as ``OneHotEncoder``   the word itself
    ========= ===================================== ========================================

    Attributes:
        keys: Hashes that have a row, ascending, uint32; empty for ``onehot``.
        words: Words that have a row, for ``onehot``.
        numbers: Whether numbers that are no column are tokens too.
    """

    spelling: Spelling
    text: tuple[str, ...] = ()
    buckets: int = 1
    seed: int = 0
    signed: bool = False
    numbers: bool = False
    keys: npt.NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    words: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return len(self.words) if self.spelling == "onehot" else len(self.keys)


@dataclass(frozen=True)
class Linear:
    """Σ_k votes_k · link(z · weights_k + tents(z) · bent_k + tokens · table_k + bias_k).

    Shapes: weights (columns, experts · outputs), table (token rows, experts · outputs), bias
    (experts · outputs), votes (experts).  ``bent``: a row for each tent of each column in turn
    (:mod:`online.models.auto`), shape (columns · TENTS, experts · outputs); None: there are none.
    A missing number is under no tent.
    """

    weights: Floats
    table: Floats
    bias: Floats
    votes: Floats
    link: Link
    bent: Floats | None = None


@dataclass(frozen=True)
class Layer:
    """activation(weights @ input + bias); weights (outputs, inputs), bias (outputs)."""

    weights: Floats
    bias: Floats
    activation: Activation


@dataclass(frozen=True)
class Mlp:
    """Layers, and a link behind the last one.

    The last columns are ids, one for each of ``embeddings``, shape (rows, width): the row
    ``floor(x) mod rows`` (0 if x is missing) stands for it behind the other columns' z.
    """

    layers: tuple[Layer, ...]
    link: Link
    embeddings: tuple[Floats, ...] = ()


@dataclass(frozen=True)
class Forest:
    """Trees over x, with leaves over z, whose sum is the output.

    A child is the place of a branch, or ``~leaf`` (below 0) of a leaf.  A branch goes left if
    ``x[feature] <= threshold`` (flag 1: ``==``), and with flag 2 if x is missing.

    ====== ===================================================================================
    leaves
    ====== ===================================================================================
    table  base
    bayes  weight of the tree · softmax(base + Σ (½ log(slope / π) - slope · (z - mean)²)); a
           class at -inf is out (all are: the answer is 0), and a slope of 0 leaves its term out
    linear base + Σ slope · z
    ====== ===================================================================================

    The sums go over the leaf's terms, ``term_start[leaf] … term_start[leaf + 1]``, those of
    missing columns left out.  Outputs of a classifier are divided by their sum if that is above 0.
    ``median``: of the trees, instead of their sum; in regression only.

    Shapes: base (leaves, outputs), weights (trees; only ``bayes``), slope and mean (terms,
    outputs; mean only ``bayes``).
    """

    kind: Literal["table", "bayes", "linear"]
    roots: Ints
    feature: Ints
    threshold: Floats
    flags: Ints
    left: Ints
    right: Ints
    base: Floats
    weights: Floats
    term_start: Ints
    term_feature: Ints
    slope: Floats
    mean: Floats
    median: bool = False


@dataclass(frozen=True)
class EdgeModel:
    """A model as tables.

    Attributes:
        classes: Labels of the outputs, in the order in which a tie is decided; empty in regression.
            With the link ``sigmoid`` there is one output, the probability of ``classes[1]``.
        computed: The type that the model itself computes in: a float32 network has no exact float64
            form.
    """

    task: Task
    classes: tuple[Label, ...]
    columns: Columns
    tokens: Tokens | None
    body: Linear | Mlp | Forest
    computed: Literal["float32", "float64"] = "float64"

    @property
    def outputs(self) -> int:
        """How many numbers an answer has."""
        if isinstance(self.body, Forest):
            return int(self.body.base.shape[1])
        if isinstance(self.body, Mlp):
            return len(self.body.layers[-1].bias)
        return len(self.body.bias) // len(self.body.votes)


EQUAL: Final = 1
MISSING_LEFT: Final = 2
"""Flags of a branch."""


def leaf_weights(body: Forest) -> Floats:
    """Weight of the tree of each leaf of a ``bayes`` forest; 0 of a leaf that has no answer."""
    weights = np.zeros(len(body.base))
    for tree, root in enumerate(body.roots.tolist()):
        todo = [root]
        while todo:
            at = todo.pop()
            if at >= 0:
                todo += [int(body.left[at]), int(body.right[at])]
            else:
                weights[~at] = body.weights[tree]
    weights[np.isneginf(body.base).all(axis=1)] = 0.0
    return weights


def term_constants(body: Forest) -> Floats:
    """½ log(slope / π) of each term, less the mean over its classes.

    What is common to all classes does not move a softmax, and smaller numbers round less.
    """
    constant = np.zeros_like(body.slope)
    np.log(body.slope / np.pi, out=constant, where=body.slope > 0)
    owner = np.repeat(np.arange(len(body.base)), np.diff(body.term_start))
    known = np.isfinite(body.base[owner])
    total = np.where(known, constant, 0.0).sum(axis=1, keepdims=True)
    mean = total / np.maximum(known.sum(axis=1, keepdims=True), 1)
    centered: Floats = 0.5 * (constant - mean)
    return centered


_FOREST: Final = (
    "roots", "feature", "threshold", "flags", "left", "right", "base", "weights", "term_start",
    "term_feature", "slope", "mean",
)  # fmt: skip
VALUES: Final = frozenset({"threshold", "base", "weights", "slope", "mean"})
"""Tables of a forest that hold numbers; the others hold its shape."""


def take_apart(model: EdgeModel) -> tuple[dict[str, Any], dict[str, Array]]:
    """The structure as JSON data, and the tables by name."""
    columns, tokens, body = model.columns, model.tokens, model.body
    structure: dict[str, Any] = {
        "task": model.task,
        "classes": list(model.classes),
        "columns": list(columns.names),
    }
    tables: dict[str, Array] = {"center": columns.center, "factor": columns.factor}
    if columns.ends is not None:
        tables["ends"] = columns.ends
    if columns.limit != float("inf"):
        structure["limit"] = columns.limit
    if columns.vocabularies:
        structure["vocabularies"] = {n: list(w) for n, w in columns.vocabularies.items()}
    if tokens is not None:
        structure["tokens"] = {
            "spelling": tokens.spelling, "text": list(tokens.text), "buckets": tokens.buckets,
            "seed": tokens.seed, "signed": tokens.signed, "numbers": tokens.numbers,
            "words": list(tokens.words),
        }  # fmt: skip
        tables["keys"] = tokens.keys
    if isinstance(body, Linear):
        # a runtime that knows no tents refuses a body of this name
        structure["body"] = "linear" if body.bent is None else "bent"
        structure["link"] = body.link
        tables |= {"weights": body.weights, "bias": body.bias, "votes": body.votes}
        if body.bent is not None:
            tables["bent"] = body.bent
        if tokens is not None:
            tables["table"] = body.table
    elif isinstance(body, Mlp):
        structure["body"], structure["link"] = "mlp", body.link
        structure["activations"] = [layer.activation for layer in body.layers]
        if body.embeddings:
            structure["ids"] = [table.shape[1] for table in body.embeddings]
            tables |= {f"rows{k}": table for k, table in enumerate(body.embeddings)}
        for i, layer in enumerate(body.layers):
            tables |= {f"weights{i}": layer.weights, f"bias{i}": layer.bias}
    else:
        structure["body"], structure["leaves"] = "forest", body.kind
        if body.median:
            structure["median"] = True
        tables |= {name: getattr(body, name) for name in _FOREST}
    return structure, tables


def put_together(structure: Mapping[str, Any], tables: Mapping[str, Array]) -> EdgeModel:
    """The model that :func:`take_apart` took apart.  KeyError, ValueError if parts do not fit."""
    columns = Columns(
        tuple(structure["columns"]),
        tables["center"].astype(np.float64),
        tables["factor"].astype(np.float64),
        structure.get("limit", float("inf")),
        {n: tuple(w) for n, w in structure.get("vocabularies", {}).items()},
        _float(tables["ends"]) if "ends" in tables else None,
    )
    tokens = None
    if (given := structure.get("tokens")) is not None:
        tokens = Tokens(
            given["spelling"], tuple(given["text"]), given["buckets"], given["seed"],
            given["signed"], given["numbers"], tables["keys"].astype(np.uint32),
            tuple(given["words"]),
        )  # fmt: skip
    body: Linear | Mlp | Forest
    if structure["body"] in ("linear", "bent"):
        weights = _float(tables["weights"])
        table = _float(tables.get("table", np.zeros((0, weights.shape[1]))))
        bent = _float(tables["bent"]) if structure["body"] == "bent" else None
        body = Linear(
            weights, table, _float(tables["bias"]), _float(tables["votes"]), structure["link"], bent
        )
    elif structure["body"] == "mlp":
        layers = [
            Layer(_float(tables[f"weights{i}"]), _float(tables[f"bias{i}"]), activation)
            for i, activation in enumerate(structure["activations"])
        ]
        ids = tuple(_float(tables[f"rows{k}"]) for k in range(len(structure.get("ids", ()))))
        body = Mlp(tuple(layers), structure["link"], ids)
    else:
        made: dict[str, Any] = {}
        for name in _FOREST:
            kind: Any = np.float64 if name in VALUES else np.int32
            made[name] = tables[name].astype(kind)
        body = Forest(structure["leaves"], **made, median=structure.get("median", False))
    return EdgeModel(structure["task"], tuple(structure["classes"]), columns, tokens, body)


def _float(table: Array) -> Floats:
    return table.astype(np.float64)


def with_tables(model: EdgeModel, tables: Mapping[str, Array]) -> EdgeModel:
    """The model with some of its tables replaced by others of the same shape."""
    structure, own = take_apart(model)
    return put_together(structure, {**own, **tables})


def bounded(model: EdgeModel, ends: Mapping[str, tuple[float, float, float, float]]) -> EdgeModel:
    """The model as the service asks it: ``ends`` by name, as of :class:`Columns`."""
    columns = model.columns
    own = [
        _NO_ENDS if name in columns.vocabularies else ends.get(name, _NO_ENDS)
        for name in columns.names
    ]
    if all(one == _NO_ENDS for one in own):
        return model
    return replace(model, columns=replace(columns, ends=np.array(own).T.copy()))


def within(columns: Columns, x: Floats) -> Floats:
    """x of shape (rows, columns) as an answer takes it; NaN stays."""
    if columns.ends is None:
        return x
    low, high, least, most = columns.ends
    near: Floats = np.where(x < low, least, np.where(x > high, most, x))
    return near


_NO_ENDS: Final = (float("-inf"), float("inf"), float("-inf"), float("inf"))


def floor32(numbers: Floats) -> npt.NDArray[np.float32]:
    """The largest float32 at most each number: ``x <= number`` stays so for every float32 x."""
    with np.errstate(over="ignore"):
        near = numbers.astype(np.float32)
    below: Any = np.nextafter(near, np.float32(-np.inf))
    low: npt.NDArray[np.float32] = np.where(near > numbers, below, near)
    return low
