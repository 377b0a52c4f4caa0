"""Asks each target's own runtime: ONNX Runtime, Node, and what gcc compiles.

Each returns outputs of shape (rows, outputs).  A runtime that is not installed raises
TargetUnavailable, so that a gate can say what was not run.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from online.edge.errors import TargetUnavailable
from online.edge.lowering.evaluate import evaluate
from online.edge.lowering.ir import EdgeModel, Floats
from online.edge.lowering.rows import Encoder
from online.edge.targets import c_file
from online.edge.targets.golden import json_rows
from online.edge.targets.pack import decode

_TIMEOUT_S: Final = 120.0
C_FLAGS: Final = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off")

Rows = Sequence[Mapping[str, Any]]


def runtime_js() -> bytes:
    """The JavaScript runtime, a module without dependencies."""
    return (files("online.edge") / "edge.js").read_bytes()


def run_pack(data: bytes, rows: Rows) -> Floats:
    """An edgepack by the NumPy reader."""
    return evaluate(decode(data), rows)


def run_onnx(data: bytes, edge: EdgeModel, rows: Rows) -> Floats:
    """An ONNX file by ONNX Runtime; ``edge`` tells how rows become inputs."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise TargetUnavailable("onnx", f"onnxruntime can't be imported ({error})") from None
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    named = {given.name: given.type for given in session.get_inputs()}
    double = any("double" in kind for kind in named.values())
    fed = onnx_inputs(edge, rows, np.float64 if double else np.float32)
    (outputs,) = session.run(None, {name: fed[name] for name in named})
    answers: Floats = outputs.astype(np.float64)
    return answers


def onnx_inputs(edge: EdgeModel, rows: Rows, dtype: Any) -> dict[str, Any]:
    """Rows as ``x``, ``tokens`` and ``values``."""
    encoder = Encoder(edge)
    x = np.array([encoder.row(row).x for row in rows], dtype=dtype)
    texts = [encoder.texts(row) for row in rows]
    longest = max(1, *(len(t) for t in texts))
    tokens = np.full((len(rows), longest), "", dtype=object)
    values = np.zeros((len(rows), longest), dtype=dtype)
    for i, spelled in enumerate(texts):
        for k, (text, number) in enumerate(spelled):
            tokens[i, k], values[i, k] = text, number
    return {"x": x.reshape(len(rows), -1), "tokens": tokens, "values": values}


_ASK_JS: Final = """
import { readFileSync, writeFileSync } from "node:fs";
import { load, hash } from "./edge.mjs";
const rows = JSON.parse(readFileSync("rows.json"));
const model = load(readFileSync("model.edgepack"));
for (const { x, nan } of rows) for (const name of nan) x[name] = NaN;
const out = rows.map(({ x }) => Array.from(model.outputs(x)));
for (let i = 0; i < 2000; i++) model.outputs(rows[i % rows.length].x);
const begun = process.cpuUsage().user;
for (let i = 0; i < 2000; i++) model.outputs(rows[i % rows.length].x);
const us = (process.cpuUsage().user - begun) / 2000;
const first = rows.length && model.predict(rows[0].x);
writeFileSync("out.json", JSON.stringify({ out, us, first }));
"""


class NodeAnswers(dict[str, Any]):
    """``outputs``; ``us``, the processor's time a row after 2,000 to warm up; ``first``."""


def run_node(data: bytes, rows: Rows) -> NodeAnswers:
    """An edgepack by the JavaScript runtime in Node."""
    node = _tool("node", "edgepack in JavaScript")
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "edge.mjs").write_bytes(runtime_js())
        (folder / "model.edgepack").write_bytes(data)
        (folder / "rows.json").write_text(json.dumps(json_rows(rows)))
        (folder / "ask.mjs").write_text(_ASK_JS)
        _run([node, "ask.mjs"], folder)
        made = json.loads((folder / "out.json").read_text())
    outputs = [[math.nan if n is None else n for n in row] for row in made["out"]]
    return NodeAnswers(outputs=np.array(outputs), us=made["us"], first=made["first"])


_ASK_C: Final = """
#include <stdio.h>
#include "model.h"
int main(void) {
  float x[EDGE_COLUMNS + 1], y[EDGE_OUTPUTS];
  static char text[1 << 20];
  static edge_token tokens[1 << 12];
  uint32_t n, i, length;
  while (fread(&n, 4, 1, stdin) == 1) {
    char *end = text;
    if (EDGE_COLUMNS && fread(x, sizeof(float), EDGE_COLUMNS, stdin) != EDGE_COLUMNS) return 1;
    for (i = 0; i < n; i++) {
      if (fread(&length, 4, 1, stdin) != 1 || fread(&tokens[i].value, 4, 1, stdin) != 1) return 1;
      if (fread(end, 1, length, stdin) != length) return 1;
      tokens[i].text = end;
      tokens[i].length = length;
      end += length;
    }
    EDGE_ASK
    if (fwrite(y, sizeof(float), EDGE_OUTPUTS, stdout) != EDGE_OUTPUTS) return 1;
  }
  return 0;
}
"""


def c_program(edge: EdgeModel) -> str:
    """A main that reads rows from standard input and writes outputs, as floats."""
    takes_tokens = "edge_token" in c_file.convert(edge).split("edge_predict")[1]
    ask = "edge_predict(x, tokens, (int)n, y);" if takes_tokens else "edge_predict(x, y);"
    return _ASK_C.replace("EDGE_ASK", ask)


def c_input(edge: EdgeModel, rows: Rows) -> bytes:
    """Rows as that program reads them."""
    encoder = Encoder(edge)
    out = bytearray()
    for row in rows:
        spelled = encoder.texts(row)
        out += struct.pack("<I", len(spelled)) + encoder.row(row).x.astype("<f4").tobytes()
        for text, number in spelled:
            raw = text.encode()
            out += struct.pack("<If", len(raw), number) + raw
    return bytes(out)


def run_c(edge: EdgeModel, rows: Rows) -> Floats:
    """The C99 header, compiled by gcc with warnings as errors."""
    gcc = _tool("gcc", "c99")
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "edge_model.h").write_text(c_file.interpreter())
        (folder / "model.h").write_text(c_file.convert(edge))
        (folder / "main.c").write_text(c_program(edge))
        _run([gcc, *C_FLAGS, "-pedantic", "-O2", "main.c", "-o", "ask", "-lm"], folder)
        raw = _run([str(folder / "ask")], folder, c_input(edge, rows))
    outputs: Floats = np.frombuffer(raw, "<f4").astype(np.float64).reshape(len(rows), edge.outputs)
    return outputs


def _tool(name: str, target: str) -> str:
    if (path := shutil.which(name)) is None:
        raise TargetUnavailable(target, f"{name} is not installed")
    return path


def _run(command: Sequence[str], folder: Path, given: bytes = b"") -> bytes:
    done = subprocess.run(
        command, cwd=folder, input=given, capture_output=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} fails: {done.stderr.decode()[-2000:]}")
    return done.stdout
