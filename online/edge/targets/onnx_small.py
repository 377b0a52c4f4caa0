"""Smaller ONNX files that answer nearly alike: weights stored in 16 or 8 bits, computed in 32.

Half of the bytes (``float16``), or a quarter (``int8``: a scale for each row of a layer's weights).
Opset 18 has both conversions, so ONNX Runtime 1.15 reads these, too.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np

from online.edge.errors import ExportRefused
from online.edge.lowering.ir import EdgeModel, Linear, Mlp
from online.edge.targets.onnx_file import convert

try:
    from onnx import TensorProto, helper, load_from_string, numpy_helper
except ImportError as error:  # an optional extra
    from online.edge.errors import TargetUnavailable

    raise TargetUnavailable("onnx", f"onnx can't be imported ({error})") from None

Stored = Literal["float16", "int8"]

_FEWEST: Final = 64
"""Numbers of a tensor below which nothing is gained."""

_STEPS: Final = 127


def small(model: EdgeModel, stored: Stored) -> bytes:
    """The float32 file with its weights stored otherwise.  Raises ExportRefused.

    Trees are refused: what moves a threshold sends rows elsewhere.  So are numbers that float16
    does not hold.
    """
    body = model.body
    if not isinstance(body, Linear | Mlp) or (stored == "int8" and not isinstance(body, Mlp)):
        what = "networks" if stored == "int8" else "networks and linear models"
        raise ExportRefused(f"onnx {stored}", f"weights are rounded in {what} only")
    made = load_from_string(convert(model, "float32"))
    graph = made.graph
    kept, nodes = [], []
    for tensor in graph.initializer:
        table = numpy_helper.to_array(tensor)
        if tensor.name[0] not in "wt" or table.ndim != 2 or table.size < _FEWEST:
            kept.append(tensor)
            continue
        given, node = _half(tensor.name, table) if stored == "float16" else _eighth(
            tensor.name, table
        )  # fmt: skip
        kept += given
        nodes.append(node)
    if not nodes:
        raise ExportRefused(f"onnx {stored}", f"no tensor has {_FEWEST} numbers")
    nodes += graph.node
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    return bytes(made.SerializeToString(deterministic=True))


def _half(name: str, table: Any) -> tuple[list[Any], Any]:
    if np.abs(table).max() > np.finfo(np.float16).max:
        raise ExportRefused("onnx float16", f"a weight of {np.abs(table).max():.3g} is too large")
    stored = numpy_helper.from_array(table.astype(np.float16), f"{name}h")
    return [stored], helper.make_node("Cast", [f"{name}h"], [name], to=TensorProto.FLOAT)


def _eighth(name: str, table: Any) -> tuple[list[Any], Any]:
    most = np.abs(table).max(axis=1)
    scale = np.where(most > 0, most / _STEPS, 1.0).astype(np.float32)
    steps = np.clip(np.rint(table / scale[:, None]), -_STEPS, _STEPS).astype(np.int8)
    given = [numpy_helper.from_array(steps, f"{name}q"), numpy_helper.from_array(scale, f"{name}s")]
    return given, helper.make_node("DequantizeLinear", [f"{name}q", f"{name}s"], [name], axis=0)
