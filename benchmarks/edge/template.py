"""An ONNX file as a template: convert once, then write each snapshot's weights into its bytes.

Weights are found by content, never by name: the template is made with random numbers, and each
tensor's bytes must stand in the file exactly once.  A second set of random numbers, written in,
must give the very file that a conversion gives; otherwise there is no template.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from online.edge.lowering.ir import Array, EdgeModel, Forest, take_apart
from online.edge.targets import onnx_file
from online.edge.targets.pack import Precision
from refusals import Refusal

_TRIES: Final = 8  # four random bytes may stand somewhere else too


class TemplateUnfit(Refusal):
    """A template into which these weights can't be spliced: a fresh one has to be made."""

    target: str
    reason: str
    text = "template for {target}: {reason}. Make a new one of this model"


class OnnxTemplate:
    """The file of models that differ in their numbers only.

    Trees are refused: their shape moves with each split, and converting them is as fast.
    """

    def __init__(self, model: EdgeModel, precision: Precision, rng: np.random.Generator) -> None:
        if isinstance(model.body, Forest):
            raise TemplateUnfit("onnx", "the shape of trees moves; convert them afresh")
        self._precision: Precision = precision
        self._shape = _shape(model)
        like = onnx_file.initializers(model, precision)
        for _ in range(_TRIES):
            first, second = _random(like, rng), _random(like, rng)
            data = onnx_file.write(model, precision, first)
            places = {name: _only(data, table.tobytes()) for name, table in first.items()}
            if all(at >= 0 for at in places.values()):
                break
        else:
            raise TemplateUnfit("onnx", "a tensor's bytes do not stand in it exactly once")
        self._data, self._places, self._like = data, places, like
        if self._written(second) != onnx_file.write(model, precision, second):
            raise TemplateUnfit("onnx", "a spliced file is not the converted one")

    def splice(self, model: EdgeModel) -> bytes:
        """The file of ``model``.  Raises TemplateUnfit if more than numbers has changed."""
        if _shape(model) != self._shape:
            raise TemplateUnfit("onnx", "names, classes, keys or sizes differ")
        tensors = onnx_file.initializers(model, self._precision)
        if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in self._like.items()}:
            raise TemplateUnfit("onnx", "tensors have other names or shapes")
        return self._written(tensors)

    def _written(self, tensors: dict[str, Array]) -> bytes:
        out = bytearray(self._data)
        for name, table in tensors.items():
            raw = table.tobytes()
            out[self._places[name] : self._places[name] + len(raw)] = raw
        return bytes(out)


def _shape(model: EdgeModel) -> Any:
    """Whatever is not a number of the model, to compare."""
    structure, tables = take_apart(model)
    keys = tables["keys"].tobytes() if "keys" in tables else b""
    return structure, keys


def _random(like: dict[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    return {name: rng.standard_normal(t.shape).astype(t.dtype) for name, t in like.items()}


def _only(data: bytes, raw: bytes) -> int:
    """Where the bytes stand; -1 unless that is one place."""
    if not raw:
        return 0
    at = data.find(raw)
    return at if at >= 0 and data.find(raw, at + 1) < 0 else -1
