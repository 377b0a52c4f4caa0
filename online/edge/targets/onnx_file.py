"""Writes a model as ONNX: opset 18, ai.onnx.ml 3, IR 8, which ONNX Runtime reads since 1.15.

Inputs: ``x`` (rows, columns), NaN for missing numbers; with tokens also ``tokens`` (rows, texts) of
strings and ``values`` (rows, texts) of their numbers, 0 for padding.  Output: ``y`` (rows,
outputs).  Hashing is part of the graph (``com.microsoft``'s MurmurHash3).  The file contains no
names, paths or other text, except for the words of a vocabulary.

A float32 graph has float32 inputs.  Its thresholds are rounded down, so that each float32 goes
where the float64 threshold sends it; centers are pairs of float32, so that subtracting them is
exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from online.edge.errors import ExportRefused, TargetUnavailable
from online.edge.lowering.ir import (
    EQUAL,
    MISSING_LEFT,
    SQUASH,
    TENTS,
    Array,
    EdgeModel,
    Floats,
    Forest,
    Linear,
    Mlp,
    floor32,
    leaf_weights,
    term_constants,
)
from online.edge.targets.pack import Precision

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:  # an optional extra
    raise TargetUnavailable("onnx", f"onnx can't be imported ({error})") from None

OPSET: Final = 18
ML_OPSET: Final = 3
IR: Final = 8
_ML: Final = "ai.onnx.ml"
_MICROSOFT: Final = "com.microsoft"
_DENSE_MAX: Final = 2**24  # numbers of a leaf table that is dense in this target


def convert(model: EdgeModel, precision: Precision = "float32") -> bytes:
    """Convert the model; the result is deterministic.  Raises ExportRefused."""
    return _Graph(model, precision).file(_initializers(model, precision))


def _initializers(model: EdgeModel, precision: Precision) -> dict[str, Array]:
    """The tensors of the graph by name, as they are stored."""
    dtype = np.dtype(precision)
    columns, body = model.columns, model.body
    tensors: dict[str, Floats] = {}
    if _scaled(model):
        tensors["c"] = columns.center
        if precision == "float32" and not _doubled(model):
            low = columns.center - columns.center.astype(np.float32)
            if low.any():
                tensors["d"] = low
        if not _folded(model):
            tensors["f"] = columns.factor
    if columns.ends is not None:
        tensors |= dict(zip(("lo", "hi", "le", "mo"), columns.ends, strict=True))
    if columns.limit != float("inf"):
        tensors |= {"m": np.array(-columns.limit), "n": np.array(columns.limit)}
    if isinstance(body, Linear):
        factor = columns.factor[:, None] if _folded(model) else 1.0
        if len(columns.names):
            tensors |= {"w": body.weights * factor}
        tensors |= {"b": body.bias}
        if body.bent is not None:
            tensors |= {"tw": body.bent, "tk": np.arange(TENTS, dtype=np.float64)}
        if model.tokens is not None:
            tensors["t"] = np.concatenate([body.table, np.zeros((1, body.table.shape[1]))])
        if len(body.votes) > 1:
            tensors["v"] = body.votes[:, None]
    elif isinstance(body, Mlp):
        for i, layer in enumerate(body.layers):
            tensors |= {f"w{i}": layer.weights, f"b{i}": layer.bias}
        tensors |= {f"t{k}": table for k, table in enumerate(body.embeddings)}
    else:
        tensors |= _leaf_tables(body, len(columns.names))
    exact = ("c", "f") if _doubled(model) else ()
    return {
        name: np.ascontiguousarray(table, dtype=np.float64 if name in exact else dtype)
        for name, table in tensors.items()
    }


def _doubled(model: EdgeModel) -> bool:
    """Whether leaves compute in float64 in any precision, because large terms cancel."""
    return isinstance(model.body, Forest) and model.body.kind == "bayes"


def _scaled(model: EdgeModel) -> bool:
    columns = model.columns
    used = not isinstance(model.body, Forest) or model.body.kind != "table"
    return used and bool((columns.center != 0).any() or (columns.factor != 1).any())


def _folded(model: EdgeModel) -> bool:
    """Whether the factor is folded into the weights, which saves a node and a tensor."""
    bent = isinstance(model.body, Linear) and model.body.bent is not None
    return isinstance(model.body, Linear) and model.columns.limit == float("inf") and not bent


def _leaf_tables(body: Forest, width: int) -> dict[str, Floats]:
    """Tables by leaf, dense over the columns, because ONNX gathers whole rows."""
    leaves, outputs = body.base.shape
    if body.kind == "table":
        return {"l": body.base}
    if leaves * outputs * width > _DENSE_MAX:
        raise ExportRefused("onnx forest", f"{leaves:,} leaves x {width:,} columns are too many")
    owner = np.repeat(np.arange(leaves), np.diff(body.term_start))
    slope = np.zeros((leaves, outputs, width))
    slope[owner, :, body.term_feature] = body.slope
    if body.kind == "linear":
        return {"l": body.base, "s": slope[:, 0, :]}
    mean = np.zeros_like(slope)
    mean[owner, :, body.term_feature] = body.mean
    constant = np.zeros_like(slope)
    constant[owner, :, body.term_feature] = term_constants(body)
    weights = leaf_weights(body)
    base = np.where(weights[:, None] == 0, 0.0, body.base)
    return {"l": base, "s": slope, "u": mean, "g": constant, "h": weights}


class _Graph:
    """Builds the graph; each method returns the name of its last value."""

    def __init__(self, model: EdgeModel, precision: Precision) -> None:
        self._model, self._precision = model, precision
        self._type = TensorProto.FLOAT if precision == "float32" else TensorProto.DOUBLE
        self._nodes: list[Any] = []
        self._constants: dict[str, Array] = {}
        self._domains: set[str] = set()
        self._x = "x"

    def file(self, tensors: Mapping[str, Array]) -> bytes:
        model = self._model
        inputs = []
        if model.columns.names:
            inputs.append(helper.make_tensor_value_info("x", self._type, ["N", self._width]))
        if model.tokens is not None:
            inputs += [
                helper.make_tensor_value_info("tokens", TensorProto.STRING, ["N", "K"]),
                helper.make_tensor_value_info("values", self._type, ["N", "K"]),
            ]
        if "lo" in tensors:
            self._x = self._within("x")
        body = model.body
        if isinstance(body, Linear):
            last = self._linear(body, tensors)
        elif isinstance(body, Mlp):
            last = self._mlp(body, tensors)
        else:
            last = self._forest(body, tensors)
        self._nodes[-1].output[0] = "y"
        assert last in ("y", self._last), "the answer is what the last node gives"
        output = helper.make_tensor_value_info("y", self._type, ["N", model.outputs])
        stored = {**tensors, **self._constants}
        graph = helper.make_graph(
            self._nodes, "g", inputs, [output],
            [numpy_helper.from_array(table, name) for name, table in stored.items()],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", OPSET)]
        for domain, version in ((_ML, ML_OPSET), (_MICROSOFT, 1)):
            if domain in self._domains:
                opsets.append(helper.make_opsetid(domain, version))
        made = helper.make_model(graph, opset_imports=opsets, ir_version=IR)
        return bytes(made.SerializeToString(deterministic=True))

    @property
    def _width(self) -> int:
        return len(self._model.columns.names)

    def _node(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        self._last = f"_{len(self._nodes)}"
        node = helper.make_node(kind, inputs, [self._last], domain=domain, **attributes)
        self._nodes.append(node)
        self._domains.add(domain)
        return self._last

    def _constant(self, name: str, value: Any, dtype: Any = None) -> str:
        self._constants[name] = np.array(value, dtype=dtype or self._precision)
        return name

    # -- front -------------------------------------------------------------------------------

    def _double(self, value: str) -> str:
        return self._node("Cast", value, to=TensorProto.DOUBLE)

    def _within(self, x: str) -> str:
        """Clip numbers to the ends; NaN stays, as comparisons with it are false."""
        near = self._node("Where", self._node("Less", x, "lo"), "le", x)
        return self._node("Where", self._node("Greater", x, "hi"), "mo", near)

    def _scale(self, tensors: Mapping[str, Array], *, double: bool = False) -> str:
        """The scaled numbers z, NaN where x is missing."""
        z = self._double(self._x) if double else self._x
        for name, kind in (("c", "Sub"), ("d", "Sub"), ("f", "Mul")):
            if name in tensors:
                z = self._node(kind, z, name)
        return self._node("Clip", z, "m", "n") if "m" in tensors else z

    def _filled(self, z: str) -> tuple[str, str]:
        """A mask of missing numbers, and z with 0 in their place."""
        gone = self._node("IsNaN", z)
        dtype = np.float64 if _doubled(self._model) else None
        return gone, self._node("Where", gone, self._constant("o", 0.0, dtype), z)

    def _token_sums(self, wide: int) -> str:
        tokens = self._model.tokens
        assert tokens is not None
        values = "values"
        if tokens.spelling == "onehot":
            at = self._node(
                "LabelEncoder", "tokens", domain=_ML, keys_strings=list(tokens.words),
                values_int64s=range(tokens.rows), default_int64=tokens.rows,
            )  # fmt: skip
        else:
            signed = tokens.spelling == "river"
            hashed = self._node(
                "MurmurHash3", "tokens", domain=_MICROSOFT,
                seed=tokens.seed - 2**32 if tokens.seed >= 2**31 else tokens.seed,
                positive=0 if signed else 1,
            )  # fmt: skip
            hashed = self._node("Cast", hashed, to=TensorProto.INT64)
            if tokens.signed:
                below = self._node("Less", hashed, self._constant("z", 0, np.int64))
                sign = self._node("Where", below, self._constant("i", -1.0),
                                  self._constant("j", 1.0))  # fmt: skip
                values = self._node("Mul", values, sign)
            hashed = self._node("Mod", hashed, self._constant("k", tokens.buckets, np.int64))
            at = self._node(
                "LabelEncoder", hashed, domain=_ML, keys_int64s=tokens.keys.tolist() or [-1],
                values_int64s=list(range(tokens.rows)) or [0], default_int64=tokens.rows,
            )  # fmt: skip
        rows = self._node("Gather", "t", at)
        last = self._constant("a", [-1], np.int64)
        weighted = self._node("Mul", rows, self._node("Unsqueeze", values, last))
        return self._node("ReduceSum", weighted, self._constant("e", [1], np.int64), keepdims=0)

    # -- bodies ------------------------------------------------------------------------------

    def _linear(self, body: Linear, tensors: Mapping[str, Array]) -> str:
        wide, experts = len(body.bias), len(body.votes)
        if not self._width and self._model.tokens is None:
            raise ExportRefused("onnx", "it has learned no feature yet, so it has no input")
        if self._width:
            gone, z = self._filled(self._scale(tensors))
            raw = self._node("Gemm", z, "w", "b")
            if body.bent is not None:
                raw = self._node("Add", raw, self._tents(gone, z))
            if self._model.tokens is not None:
                raw = self._node("Add", raw, self._token_sums(wide))
        else:
            raw = self._node("Add", self._token_sums(wide), "b")
        if experts == 1:
            return self._link(body.link, raw)
        n = wide // experts
        raw = self._node("Reshape", raw, self._constant("p", [-1, experts, n], np.int64))
        shares = self._node("Mul", self._link(body.link, raw), "v")
        return self._node("ReduceSum", shares, self._constant("e", [1], np.int64), keepdims=0)

    def _tents(self, gone: str, z: str) -> str:
        """Return the contribution of each column's tents; missing numbers contribute nothing."""
        last, one = self._constant("ta", [2], np.int64), self._constant("to", 1.0)
        squashed = self._node("Sigmoid", self._node("Mul", z, self._constant("ts", SQUASH)))
        p = self._node("Mul", squashed, self._constant("tg", TENTS - 1.0))
        off = self._node("Abs", self._node("Sub", self._node("Unsqueeze", p, last), "tk"))
        high = self._node("Relu", self._node("Sub", one, off))
        there = self._node("Cast", self._node("Not", gone), to=self._type)
        high = self._node("Mul", high, self._node("Unsqueeze", there, last))
        flat = self._constant("tf", [-1, self._width * TENTS], np.int64)
        return self._node("MatMul", self._node("Reshape", high, flat), "tw")

    def _link(self, kind: str, raw: str) -> str:
        if kind == "identity":
            return raw
        return self._node("Sigmoid", raw) if kind == "sigmoid" else self._node("Softmax", raw)

    def _mlp(self, body: Mlp, tensors: Mapping[str, Array]) -> str:
        kinds = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
        _, h = self._filled(self._scale(tensors))
        if body.embeddings:
            h = self._embedded(body, h)
        for i, layer in enumerate(body.layers):
            h = self._node("Gemm", h, f"w{i}", f"b{i}", transB=1)
            if layer.activation != "none":
                h = self._node(kinds[layer.activation], h)
        return self._link(body.link, h)

    def _embedded(self, body: Mlp, z: str) -> str:
        """Concatenate the numbers and a row of each table: ``floor(x) mod rows``."""
        numbers = self._width - len(body.embeddings)
        embedded = []
        if numbers:
            embedded.append(self._node("Gather", z, self._constant("xn", range(numbers), np.int64),
                                    axis=1))  # fmt: skip
        for k, table in enumerate(body.embeddings):
            own = self._node("Gather", z, self._constant(f"xi{k}", numbers + k, np.int64), axis=1)
            whole = self._node("Cast", self._node("Floor", own), to=TensorProto.INT64)
            row = self._node("Mod", whole, self._constant(f"xm{k}", len(table), np.int64))
            embedded.append(self._node("Gather", f"t{k}", row))
        return self._node("Concat", *embedded, axis=1)

    def _forest(self, body: Forest, tensors: Mapping[str, Array]) -> str:
        if not self._width:
            raise ExportRefused("onnx forest", "its trees have no branch yet, so it has no input")
        scores = self._node(
            "TreeEnsembleRegressor", self._x, domain=_ML, **_ensemble(body, self._precision)
        )
        at = self._node("Cast", scores, to=TensorProto.INT64)
        base = self._node("Gather", "l", at)
        one = self._constant("e", [1], np.int64)
        if body.kind == "bayes":
            out = self._bayes(tensors, at, base, one)
        else:
            if body.kind == "linear":
                _, z = self._filled(self._scale(tensors))
                z = self._node("Unsqueeze", z, one)
                last = self._constant("a", [-1], np.int64)
                terms = self._node("Mul", self._node("Gather", "s", at), z)
                base = self._node("Add", base, self._node("ReduceSum", terms, last, keepdims=1))
            if body.median:
                return self._median(base, len(body.roots), one)
            out = self._node("ReduceSum", base, one, keepdims=0)
        if self._model.task == "regression":
            return out
        total = self._node("ReduceSum", out, one, keepdims=1)
        least = self._constant("q", np.finfo(self._precision).tiny)
        return self._node("Div", out, self._node("Max", total, least))

    def _median(self, each: str, trees: int, one: str) -> str:
        """The middle of the trees' numbers, or of the two in the middle their mean."""
        half = self._constant("w", [trees // 2 + 1], np.int64)
        upper = helper.make_node("TopK", [each, half], ["_upper", "_places"], axis=1)
        self._nodes.append(upper)
        middle = [trees // 2] if trees % 2 else [trees // 2 - 1, trees // 2]
        picked = self._node("Gather", "_upper", self._constant("x1", middle, np.int64), axis=1)
        return self._node("ReduceMean", picked, one, keepdims=0)

    def _bayes(self, tensors: Mapping[str, Array], at: str, base: str, one: str) -> str:
        double = self._precision == "float32"
        gone, z = self._filled(self._scale(tensors, double=double))
        table = self._double if double else str
        axes = self._constant("r", [1, 2], np.int64)
        last = self._constant("a", [-1], np.int64)
        off = self._node(
            "Sub", self._node("Unsqueeze", z, axes), table(self._node("Gather", "u", at))
        )
        square = self._node(
            "Mul", self._node("Mul", off, off), table(self._node("Gather", "s", at))
        )
        terms = self._node("Sub", table(self._node("Gather", "g", at)), square)
        gone = self._node("Unsqueeze", gone, axes)
        terms = self._node("Where", gone, "o", terms)
        votes = self._node("Add", table(base), self._node("ReduceSum", terms, last, keepdims=0))
        shares = self._node("Softmax", votes)
        if double:
            shares = self._node("Cast", shares, to=TensorProto.FLOAT)
        scale = self._node("Unsqueeze", self._node("Gather", "h", at), last)
        return self._node("ReduceSum", self._node("Mul", shares, scale), one, keepdims=0)


def _ensemble(body: Forest, precision: Precision) -> dict[str, Any]:
    """Attributes of an ensemble with one target a tree, whose value is the leaf's number."""
    out: dict[str, list[Any]] = {
        name: []
        for name in ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids",
                     "falsenodeids", "missing_value_tracks_true")
    }  # fmt: skip
    target: dict[str, list[Any]] = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}

    def put(tree: int, node: int, feature: int, mode: str, value: float, kids: tuple[int, int],
            missing: int) -> None:  # fmt: skip
        row = (tree, node, feature, mode, value, *kids, missing)
        for held, item in zip(out.values(), row, strict=True):
            held.append(item)

    for tree, root in enumerate(body.roots.tolist()):
        todo, next_id = [(root, 0)], 1
        while todo:
            at, node = todo.pop()
            if at < 0:
                put(tree, node, 0, "LEAF", 0.0, (0, 0), 0)
                for held, item in zip(target.values(), (tree, node, tree, float(~at)), strict=True):
                    held.append(item)
                continue
            mode = "BRANCH_EQ" if body.flags[at] & EQUAL else "BRANCH_LEQ"
            put(tree, node, int(body.feature[at]), mode, float(body.threshold[at]),
                (next_id, next_id + 1), int(body.flags[at] & MISSING_LEFT) // 2)  # fmt: skip
            todo += [(int(body.right[at]), next_id + 1), (int(body.left[at]), next_id)]
            next_id += 2
    return _attributes(out, target, len(body.roots), precision)


def _attributes(
    out: dict[str, list[Any]], target: dict[str, list[Any]], trees: int, precision: Precision
) -> dict[str, Any]:
    values = np.array(out.pop("values"), dtype=np.float64)
    weights = np.array(target.pop("weights"), dtype=np.float64)
    made: dict[str, Any] = {f"nodes_{name}": held for name, held in out.items()}
    made |= {f"target_{name}": held for name, held in target.items()}
    made["n_targets"] = trees
    if not any(out["missing_value_tracks_true"]):
        del made["nodes_missing_value_tracks_true"]
    if precision == "float32":
        made |= {"nodes_values": floor32(values), "target_weights": weights.astype(np.float32)}
    else:
        made |= {
            "nodes_values_as_tensor": numpy_helper.from_array(values, "nodes_values"),
            "target_weights_as_tensor": numpy_helper.from_array(weights, "target_weights"),
        }
    return made


def check(data: bytes) -> None:
    """onnx's own checker.  Raises its ValidationError."""
    onnx.checker.check_model(data, full_check=True)
