"""Exports of models trained on real streams, each asked by its own runtime."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[edge]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install '.[edge]'")

from benchmarks.edge.exported import CASES, Case, cortex_bytes, trained
from evaluation.errors import StreamUnusable
from online.edge.errors import ExportRefused
from online.edge.lowering.ir import EdgeModel
from online.edge.lowering.lower import lower
from online.edge.targets import c_file, onnx_file, pack, runners
from online.edge.targets.gate import BOUNDS, compare
from online.edge.targets.golden import Golden, golden
from online.edge.targets.pack import Precision

ROWS: Final = {
    "ARF(10) regressor, median": 150, "ARF(10) regressor, mean": 150,
    "MLP": 150, "MLP, ids": 150, "MLP, 6 classes": 100, "ARF(10) majority": 1500,
    "ARF(10) adaptive": 800, "MLP, limited": 150,
    "HT adaptive, 6 classes": 1500, "linear experts, 6 classes": 1000, "softmax": 1500,
    "auto, 6 classes": 300, "auto, words": 800, "auto, regression": 800,
}  # fmt: skip
"""Fewer than the bench plays, where learning takes time."""

NODE = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
GCC = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")

Made = tuple[EdgeModel, dict[Precision, Golden]]
_made: dict[str, Made] = {}


def data() -> Path | None:
    directory = os.environ.get("ONLINE_DATA_DIR")
    return Path(directory) if directory else None


def made(what: str) -> Made:
    """The model of a case as tables, and golden rows with all thresholds; made once."""
    if what not in _made:
        case = CASES[what]
        try:
            model, rows = trained(case, data(), ROWS.get(what))
        except StreamUnusable as error:
            pytest.skip(str(error))
        edge = lower(model, case.task)
        proofs = {
            precision: golden(
                model, edge, rows, precision, np.random.default_rng(0), thresholds=100
            )
            for precision in BOUNDS
        }
        _made[what] = edge, proofs
    return _made[what]


def check(found: Any, proof: Golden, bound: float) -> None:
    parity = compare(found, proof)
    assert parity.max_abs <= bound, (parity, proof.rows[parity.worst])
    assert parity.agree == 1.0, parity


def bound(edge: EdgeModel, precision: Precision) -> float:
    """A float32 network has no exact float64 form: there its own rounding is the bound."""
    return BOUNDS["float32"] if edge.computed == "float32" else BOUNDS[precision]


PRECISIONS: Final[tuple[Precision, ...]] = ("float64", "float32")
by_case = pytest.mark.parametrize("what", CASES)
by_precision = pytest.mark.parametrize("precision", PRECISIONS)


@pytest.mark.data
@by_case
@by_precision
def test_onnx_runtime_answers_as_the_model(what: str, precision: Precision) -> None:
    edge, proofs = made(what)
    converted = onnx_file.convert(edge, precision)
    onnx_file.check(converted)
    found = runners.run_onnx(converted, edge, proofs[precision].rows)
    check(found, proofs[precision], bound(edge, precision))


@pytest.mark.data
@NODE
@by_case
def test_javascript_answers_as_the_model_to_doubles(what: str) -> None:
    """Whatever the pack rounds its tables to, rows are doubles and branch exactly."""
    edge, proofs = made(what)
    for precision in PRECISIONS:
        data_ = pack.encode(edge, precision)
        answers = runners.run_node(data_, proofs["float64"].rows)
        check(answers["outputs"], proofs["float64"], bound(edge, precision))


@pytest.mark.data
@by_case
def test_the_numpy_reader_answers_as_the_model(what: str) -> None:
    edge, proofs = made(what)
    for precision in PRECISIONS:
        found = runners.run_pack(pack.encode(edge, precision), proofs["float64"].rows)
        check(found, proofs["float64"], bound(edge, precision))


@pytest.mark.data
@GCC
@by_case
def test_c_answers_as_the_model(what: str) -> None:
    edge, proofs = made(what)
    if what.endswith("median") or what.startswith("auto"):
        with pytest.raises(ExportRefused, match=r"median|bins"):
            c_file.convert(edge)
        return
    check(runners.run_c(edge, proofs["float32"].rows), proofs["float32"], BOUNDS["float32"])


@pytest.mark.data
@NODE
def test_a_network_of_doubles_has_an_exact_float64_form() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from online.models.network import Network

    torch.manual_seed(1)
    names = [f"x{i}" for i in range(6)]
    module = torch.nn.Sequential(
        torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Sequential(torch.nn.Linear(16, 8)),
        torch.nn.Sigmoid(), torch.nn.Linear(8, 3),
    ).double()  # fmt: skip
    model = Network(module, names, labels=["a", "b", "c"]).model_for("multiclass")
    rng = np.random.default_rng(2)
    rows = [dict(zip(names, rng.normal(5, 3, 6).tolist(), strict=True)) for _ in range(100)]
    for i, row in enumerate(rows):
        model.learn(row, "abc"[i % 3], 1.0)
    edge = lower(model, "multiclass")
    proof = golden(model, edge, rows, "float64", rng)
    check(runners.run_onnx(onnx_file.convert(edge, "float64"), edge, proof.rows), proof, 1e-12)
    packed = pack.encode(edge, "float64")
    check(runners.run_node(packed, proof.rows)["outputs"], proof, 1e-12)


# -- sizes and content -------------------------------------------------------------------------


@pytest.mark.data
def test_sizes_stay_within_their_bounds() -> None:
    edge, _ = made("logistic")
    assert len(onnx_file.convert(edge, "float32")) <= 500
    assert len(onnx_file.convert(edge, "float64")) <= 500
    assert len(c_file.words(edge)) == 4 * (3 + 1 + 8 * 3)
    forest, _ = made("ARF(10) majority")
    leaves = len(forest.body.base)  # type: ignore[union-attr]
    assert len(pack.encode(forest)) <= 1024 + 8192 * leaves / 240


def test_the_javascript_runtime_is_small() -> None:
    assert len(gzip.compress(runners.runtime_js(), 9)) <= 4096


@pytest.mark.data
def test_logistic_regression_takes_300_bytes_of_flash() -> None:
    edge, _ = made("logistic")
    if (flash := cortex_bytes(edge)) is None:
        pytest.skip("arm-none-eabi-gcc is not installed")
    assert flash <= 300


@pytest.mark.data
@by_case
def test_no_file_tells_of_the_machine_that_made_it(what: str) -> None:
    edge, proofs = made(what)
    files = [pack.encode(edge), onnx_file.convert(edge), proofs["float32"].file()]
    if not what.endswith("median") and not what.startswith("auto"):
        files.append(c_file.convert(edge).encode())
    here = re.compile(rb"\.py\b|site-packages|stack_trace|%s" % str(Path.cwd()).encode())
    for content in files:
        assert not here.search(content)


# -- a microcontroller -------------------------------------------------------------------------

START = """
#include <stdint.h>
#include "model.h"
#include "rows.h"
extern uint32_t stack_top;
static void say(const char *text) {
  register int op __asm__("r0") = 4;
  register const char *at __asm__("r1") = text;
  __asm__ volatile("bkpt 0xab" : "+r"(op) : "r"(at) : "memory");
}
int main(void);
void reset(void) { main(); }
__attribute__((section(".vectors"), used)) static const void *const vectors[] = {
  &stack_top, (const void *)reset
};
int main(void) {
  static char line[10];
  unsigned i, o, k;
  for (i = 0; i < sizeof rows / sizeof *rows; i++) {
    float y[EDGE_OUTPUTS];
    edge_predict(rows[i], y);
    for (o = 0; o < EDGE_OUTPUTS; o++) {
      union { float f; uint32_t u; } bits;
      bits.f = y[o];
      for (k = 0; k < 8; k++) line[k] = "0123456789abcdef"[(bits.u >> (28 - 4 * k)) & 15];
      line[8] = '\\n';
      say(line);
    }
  }
  {
    register int op __asm__("r0") = 0x18;
    register int why __asm__("r1") = 0x20026;
    __asm__ volatile("bkpt 0xab" : : "r"(op), "r"(why) : "memory");
  }
  for (;;) {}
}
"""
LAYOUT = """
MEMORY { flash (rx) : ORIGIN = 0, LENGTH = 256K  ram (rwx) : ORIGIN = 0x20000000, LENGTH = 16K }
SECTIONS {
  .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) *(.ARM.*) } > flash
  .bss : { *(.data*) *(.bss*) *(COMMON) end = .; } > ram
  stack_top = ORIGIN(ram) + LENGTH(ram);
}
"""


def on_cortex_m0(edge: EdgeModel, rows: Any, folder: Path) -> Any:
    """Outputs of an emulated Cortex-M0 (BBC micro:bit: 256 kB flash, 16 kB RAM)."""
    gcc, qemu = shutil.which("arm-none-eabi-gcc"), shutil.which("qemu-system-arm")
    if gcc is None or qemu is None:
        pytest.skip("arm-none-eabi-gcc or qemu-system-arm is not installed")
    x = runners.onnx_inputs(edge, rows, np.float32)["x"]
    words = [", ".join("NAN" if np.isnan(v) else f"{float(v).hex()}f" for v in row) for row in x]
    body = ",\n".join(f"{{{row}}}" for row in words)
    (folder / "rows.h").write_text(f"static const float rows[][EDGE_COLUMNS] = {{{body}}};")
    (folder / "edge_model.h").write_text(c_file.interpreter())
    (folder / "model.h").write_text(c_file.convert(edge))
    (folder / "start.c").write_text(START)
    (folder / "layout.ld").write_text(LAYOUT)
    flags = ["-mcpu=cortex-m0", "-mthumb", "-Os", "-nostartfiles", "-T", "layout.ld",
             "--specs=nano.specs", "--specs=nosys.specs"]  # fmt: skip
    command = [gcc, *runners.C_FLAGS[1:], "-std=gnu99", *flags, "start.c", "-o", "a.elf", "-lm"]
    built = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    assert built.returncode == 0, built.stderr.decode()
    run = [qemu, "-M", "microbit", "-nographic", "-semihosting-config", "enable=on,target=native",
           "-monitor", "none", "-serial", "none", "-kernel", "a.elf"]  # fmt: skip
    done = subprocess.run(run, cwd=folder, capture_output=True, timeout=240, check=False)
    said = (done.stderr + done.stdout).split()
    bits = np.array([int(word, 16) for word in said], dtype=np.uint32)
    return bits.view(np.float32).astype(np.float64).reshape(len(rows), edge.outputs)


@pytest.mark.data
@GCC
@pytest.mark.parametrize("what", ["logistic", "MLP", "HT adaptive", "ARF(10) majority"])
def test_a_cortex_m0_answers_as_the_model(what: str, tmp_path: Path) -> None:
    edge, proofs = made(what)
    proof = proofs["float32"]
    some = Golden(proof.rows[-60:], proof.expected[-60:], proof.labels)
    found = on_cortex_m0(edge, some.rows, tmp_path)
    check(found, some, BOUNDS["float32"])
    if what.endswith("majority"):  # nothing but sums of the same floats
        np.testing.assert_array_equal(found, runners.run_c(edge, some.rows))


# -- what a gate has to catch ------------------------------------------------------------------


@pytest.mark.data
def test_the_gate_catches_thresholds_that_are_rounded_to_the_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edge, proofs = made("ARF(10) majority")
    proof = proofs["float32"]
    monkeypatch.setattr(onnx_file, "floor32", lambda x: x.astype(np.float32))
    naive = runners.run_onnx(onnx_file.convert(edge, "float32"), edge, proof.rows)
    assert compare(naive, proof).max_abs > 1e-3


@pytest.mark.data
def test_the_gate_catches_frozen_leaves() -> None:
    edge, proofs = made("HT naive Bayes")
    shares = replace(edge.body, slope=np.zeros_like(edge.body.slope))  # type: ignore[type-var, union-attr]
    frozen = pack.encode(replace(edge, body=shares))  # type: ignore[arg-type]
    parity = compare(runners.run_pack(frozen, proofs["float64"].rows), proofs["float64"])
    assert parity.max_abs > 0.1
    assert parity.agree < 1.0


@pytest.mark.data
def test_the_gate_catches_another_seed_of_the_hash() -> None:
    edge, proofs = made("FTRL, words")
    assert edge.tokens is not None
    other = pack.encode(replace(edge, tokens=replace(edge.tokens, seed=1)))
    assert (
        compare(runners.run_pack(other, proofs["float64"].rows), proofs["float64"]).max_abs > 0.01
    )


@pytest.mark.data
def test_the_gate_catches_a_missing_number_that_goes_the_other_way() -> None:
    edge, proofs = made("ARF(10) majority")
    flipped = replace(edge.body, flags=edge.body.flags ^ 2)  # type: ignore[type-var, union-attr]
    found = runners.run_pack(pack.encode(replace(edge, body=flipped)), proofs["float64"].rows)  # type: ignore[arg-type]
    assert compare(found, proofs["float64"]).max_abs > 1e-3


def test_a_forest_without_a_split_has_no_onnx_form() -> None:
    from river import tree

    from online.models.loading.load import _wrap

    model = _wrap("t", tree.HoeffdingTreeClassifier(leaf_prediction="mc"), "binary", b"k", ())
    model.learn({"a": 1.0}, True, 1.0)
    edge = lower(model, "binary")
    assert runners.run_pack(pack.encode(edge), [{"a": 2.0}]).tolist() == [[1.0]]
    with pytest.raises(ExportRefused, match="no branch yet"):
        onnx_file.convert(edge)


def test_cases_cover_each_kind_of_leaf() -> None:
    assert isinstance(CASES["logistic"], Case)
    assert {"HT majority", "HT naive Bayes", "HT adaptive", "HT regressor, mean",
            "HT regressor, model", "HT regressor, adaptive"} <= set(CASES)  # fmt: skip
