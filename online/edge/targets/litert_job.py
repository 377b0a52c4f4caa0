"""Makes and asks LiteRT files, where ``ai-edge-litert`` is; imports nothing of ours.

The file is written by hand, with the schema's classes that come with the runtime: no converter.
Standard input and output are npz: with ``x`` and ``data`` it asks the file, else it makes one.
"""

from __future__ import annotations

import io
import sys
from importlib import import_module
from typing import Any

import numpy as np

ACTIVATIONS = {"relu": "RELU", "tanh": "TANH", "sigmoid": "LOGISTIC", "softmax": "SOFTMAX"}
OPTIONS = {
    "SUB": "Sub", "MUL": "Mul", "FULLY_CONNECTED": "FullyConnected", "SOFTMAX": "Softmax"
}  # fmt: skip


class Graph:
    """Tensors, operators and buffers as they come."""

    def __init__(self, schema: Any) -> None:
        self.s = schema
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.buffers: list[Any] = [schema.BufferT()]
        self.codes: list[str] = []

    def tensor(self, name: str, shape: list[int], buffer: int = 0) -> int:
        """A tensor's place; with buffer 0 it is a row of numbers, of any number of rows."""
        made = self.s.TensorT()
        made.name, made.shape, made.buffer = name.encode(), shape, buffer
        made.type = self.s.TensorType.FLOAT32
        if not buffer:
            made.shapeSignature = [-1, *shape[1:]]
        self.tensors.append(made)
        return len(self.tensors) - 1

    def constant(self, name: str, table: Any) -> int:
        """A tensor of the file's own numbers."""
        buffer = self.s.BufferT()
        stored = np.ascontiguousarray(table, "<f4")
        buffer.data = np.frombuffer(stored.tobytes(), np.uint8)
        self.buffers.append(buffer)
        return self.tensor(name, list(stored.shape), len(self.buffers) - 1)

    def node(self, kind: str, inputs: list[int], width: int) -> int:
        """An operator; the place of what it gives."""
        if kind not in self.codes:
            self.codes.append(kind)
        out = self.tensor(f"t{len(self.operators)}", [1, width])
        made = self.s.OperatorT()
        made.opcodeIndex = self.codes.index(kind)
        made.inputs, made.outputs = inputs, [out]
        if kind in OPTIONS:
            made.builtinOptionsType = getattr(self.s.BuiltinOptions, f"{OPTIONS[kind]}Options")
            made.builtinOptions = getattr(self.s, f"{OPTIONS[kind]}OptionsT")()
            if kind == "SOFTMAX":
                made.builtinOptions.beta = 1.0
        self.operators.append(made)
        return out

    def model(self, x: int, y: int) -> Any:
        """Return the whole model, from tensor ``x`` to tensor ``y``."""
        graph = self.s.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs, graph.name = [x], [y], b"main"
        made = self.s.ModelT()
        made.version, made.subgraphs, made.buffers = 3, [graph], self.buffers
        made.operatorCodes = []
        for kind in self.codes:
            code = self.s.OperatorCodeT()
            code.builtinCode = getattr(self.s.BuiltinOperator, kind)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = 1
            made.operatorCodes.append(code)
        return made


def make(job: Any) -> bytes:
    """The file of a scaler and layers."""
    graph = Graph(import_module("ai_edge_litert.schema_py_generated"))
    width = len(job["center"])
    x = h = graph.tensor("x", [1, width])
    for name, kind in (("center", "SUB"), ("rest", "SUB"), ("factor", "MUL")):
        h = graph.node(kind, [h, graph.constant(name, job[name])], width)
    for i, activation in enumerate(job["activations"].tolist()):
        bias = job[f"b{i}"]
        parts = [h, graph.constant(f"w{i}", job[f"w{i}"].T), graph.constant(f"b{i}", bias)]
        h = graph.node("FULLY_CONNECTED", parts, len(bias))
        if activation in ACTIVATIONS:
            h = graph.node(ACTIVATIONS[activation], [h], len(bias))
    builder = import_module("flatbuffers").Builder(1024)
    builder.Finish(graph.model(x, h).Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def ask(file: bytes, x: Any) -> Any:
    """Return what the interpreter answers to the rows."""
    module = import_module("ai_edge_litert.interpreter")
    interpreter = module.Interpreter(model_content=file, num_threads=1)
    (given,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(output["index"])


if __name__ == "__main__":
    given_ = np.load(io.BytesIO(sys.stdin.buffer.read()))
    out = io.BytesIO()
    if "data" in given_:
        np.savez(out, y=ask(given_["data"].tobytes(), given_["x"]))
    else:
        np.savez(out, data=np.frombuffer(make(given_), np.uint8))
    sys.stdout.buffer.write(out.getvalue())
