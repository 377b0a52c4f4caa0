"""edgepack and ONNX Runtime's wasm build in headless Chromium, beside the models themselves."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import threading
from base64 import b64encode
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from evaluation.errors import StreamUnusable

pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[edge]'")

from benchmarks.edge.exported import CASES, trained
from online.edge.lowering.lower import lower
from online.edge.targets import onnx_file, pack, runners
from online.edge.targets.gate import BOUNDS, compare
from online.edge.targets.golden import golden

BROWSER: Final = Path(os.environ.get("PLAYWRIGHT", Path(__file__).parent.parent / "browser" / "x"))
MODULES: Final = BROWSER.parent / "node_modules"
CHROMIUM: Final = shutil.which("chromium") or shutil.which("google-chrome")
STORY: Final = Path(__file__).parent.parent / "browser" / "edge_runtimes.mjs"
ASKED: Final = {
    "logistic": 500, "linear regression": 500, "softmax": 500, "MLP": 200, "HT adaptive": 2000,
    "ARF(10) majority": 800, "FTRL, words": 300,
}  # fmt: skip
"""Rows that each learns."""

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
    pytest.mark.skipif(
        not all((MODULES / name).exists() for name in ("playwright-core", "onnxruntime-web")),
        reason="packages are missing: npm install --prefix tests/browser",
    ),
]


class Handler(SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012  # as its base has it
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm",
    }  # fmt: skip

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_both_runtimes_answer_as_the_models(tmp_path: Path) -> None:
    data = os.environ.get("ONLINE_DATA_DIR")
    expected = {}
    for number, (what, rows) in enumerate(ASKED.items()):
        case = CASES[what]
        try:
            model, played = trained(case, Path(data) if data else None, rows)
        except StreamUnusable as error:
            pytest.skip(str(error))
        edge = lower(model, case.task)
        proof = golden(model, edge, played, "float32", np.random.default_rng(0))
        name = f"case{number}"
        expected[name] = what, proof
        (tmp_path / f"{name}.edgepack").write_bytes(pack.encode(edge))
        (tmp_path / f"{name}.onnx").write_bytes(onnx_file.convert(edge))
        (tmp_path / f"{name}.json").write_text(json.dumps(json.loads(proof.file())["rows"]))
        fed = {
            key: {"dims": list(table.shape), "strings": table.ravel().tolist()}
            if table.dtype == object
            else {"dims": list(table.shape), "floats": b64encode(table.tobytes()).decode()}
            for key, table in runners.onnx_inputs(edge, proof.rows, np.float32).items()
        }
        (tmp_path / f"{name}.inputs.json").write_text(json.dumps(fed))
    (tmp_path / "edge.js").write_bytes(runners.runtime_js())
    (tmp_path / "index.html").write_text("<!doctype html><title>runtimes</title>")
    (tmp_path / "ort").symlink_to(MODULES / "onnxruntime-web" / "dist")
    handler = functools.partial(Handler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        node = shutil.which("node")
        assert node is not None
        assert CHROMIUM is not None
        done = subprocess.run(
            [node, STORY, f"http://127.0.0.1:{server.server_port}", CHROMIUM, *expected],
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    for name, (what, proof) in expected.items():
        for runtime in ("edgepack", "onnx"):
            told = seen[name][runtime]
            parity = compare(np.array(told["out"], dtype=np.float64), proof)
            print(f"{what}, {runtime}: {parity}, first answer {told['ms']:.0f} ms")
            assert parity.max_abs <= BOUNDS["float32"], (what, runtime, parity)
            assert parity.agree == 1.0, (what, runtime, parity)
        seen[name]["edgepack"]["out"][0][0] += 1e-5
        spoiled = compare(np.array(seen[name]["edgepack"]["out"], dtype=np.float64), proof)
        assert spoiled.max_abs > BOUNDS["float32"] or proof.expected[0, 0] > 10, "it is noticed"
