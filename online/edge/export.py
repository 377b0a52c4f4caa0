"""Exports a served model to files: lower, convert, verify, describe.

Each target's file is run on the golden rows by its own runtime before it is kept.  A target that
fails, or that has no exact form of this model, is left out and named with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import Any, Final, Literal

import numpy as np

from evaluation.metrics import Task
from online.edge import manifest
from online.edge.errors import DifferenceUnfit, EdgeError, ExportRefused
from online.edge.lowering.ir import EdgeModel, Floats, bounded
from online.edge.lowering.lower import lower
from online.edge.releases.channel import Channel
from online.edge.releases.folder import Folder
from online.edge.targets import c_file, deltas, foreign, grid, pack, runners, tfjs_file
from online.edge.targets.gate import BOUNDS, Parity, gate
from online.edge.targets.golden import Golden, golden
from online.edge.targets.pack import Precision
from online.models.base import Model
from replay.example import Features, Label

DELTA_SHARE_MAX: Final = 0.7
"""Largest size of a delta as a share of the file; a larger one is not worth it."""

DELTAS: Final = 3
"""Number of previous releases from which a client can update by a delta."""

_MINIMUM_JS: Final = {"name": "edge.js", "min": "ES2020"}
_MINIMUM_ONNX: Final = {"name": "onnxruntime", "min": "1.15", "opset": 18, "ml_opset": 3, "ir": 8}
_MINIMUM_TFJS: Final = {"name": "tfjs-layers", "min": "4"}
_MINIMUM_C: Final = {"name": "edge_model.h", "min": "C99"}


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        suffix: Suffix of the file's name.
        convert: Makes the file's bytes.
        ask: Predicts rows with the target's runtime: bytes, model and rows to outputs.
        runtime: What a device needs.
        nearly: For an approximate target: how weights are stored, the largest difference allowed,
            and the least share of rows with the same label.  It is made only if it is named.
        beside: Makes a second file that belongs to it: name and bytes.
    """

    suffix: str
    precision: Precision
    convert: Callable[[EdgeModel], bytes]
    ask: Callable[[bytes, EdgeModel, runners.Rows], Floats]
    runtime: Mapping[str, Any]
    nearly: tuple[str, float, float] | None = None
    beside: Callable[[EdgeModel], tuple[str, bytes]] | None = None


def _ask_pack(data: bytes, model: EdgeModel, rows: runners.Rows) -> Floats:
    return runners.run_pack(data, rows)


def _onnx(precision: Precision) -> Callable[[EdgeModel], bytes]:
    def convert(model: EdgeModel) -> bytes:
        from online.edge.targets import onnx_file  # an optional extra

        return onnx_file.convert(model, precision)

    return convert


def _ask_tfjs(data: bytes, model: EdgeModel, rows: runners.Rows) -> Floats:
    return tfjs_file.evaluate(data, tfjs_file.weights_file(model)[1], model, rows)


def _foreign(kind: foreign.Kind, suffix: str, runtime: Mapping[str, Any]) -> Target:
    def ask(data: bytes, model: EdgeModel, rows: runners.Rows) -> Floats:
        return foreign.ask(kind, data, model, rows)

    return Target(suffix, "float32", lambda model: foreign.make(kind, model), ask, runtime)


def _small(stored: Literal["float16", "int8"]) -> Callable[[EdgeModel], bytes]:
    def convert(model: EdgeModel) -> bytes:
        from online.edge.targets import onnx_small  # an optional extra

        return onnx_small.small(model, stored)

    return convert


TARGETS: Final[Mapping[str, Target]] = {
    "edgepack": Target(
        ".edgepack", "float32", lambda m: pack.encode(m, "float32"), _ask_pack, _MINIMUM_JS
    ),
    "edgepack64": Target(
        ".float64.edgepack", "float64", lambda m: pack.encode(m, "float64"), _ask_pack, _MINIMUM_JS
    ),
    "onnx": Target(".onnx", "float32", _onnx("float32"), runners.run_onnx, _MINIMUM_ONNX),
    "onnx64": Target(".float64.onnx", "float64", _onnx("float64"), runners.run_onnx, _MINIMUM_ONNX),
    "c99": Target(".h", "float32", lambda m: c_file.convert(m).encode(),
                  lambda _, model, rows: runners.run_c(model, rows), _MINIMUM_C),
    "tfjs": Target(
        ".tfjs.json", "float32", tfjs_file.convert, _ask_tfjs, _MINIMUM_TFJS,
        beside=tfjs_file.weights_file,
    ),
    "litert": _foreign("litert", ".tflite", {"name": "litert", "min": "1.0"}),
    "coreml": _foreign("coreml", ".mlpackage.zip", {"name": "coreml", "min": "iOS 16"}),
    "onnx16": Target(
        ".float16.onnx", "float32", _small("float16"), runners.run_onnx, _MINIMUM_ONNX,
        ("float16", 2e-3, 0.999),
    ),
    "onnx8": Target(
        ".int8.onnx", "float32", _small("int8"), runners.run_onnx, _MINIMUM_ONNX,
        ("int8", 2e-2, 0.998),
    ),
}  # fmt: skip

EXACT: Final = tuple(name for name, target in TARGETS.items() if target.nearly is None)
"""Targets that predict exactly as the model does."""


_STEPPED: Final = replace(TARGETS["edgepack"], nearly=("steps", grid.OFF_MAX, grid.AGREE_LEAST))


@dataclass(frozen=True)
class Steps:
    """Quantize weights (:mod:`online.edge.targets.grid`); ``held`` is the clients' present pack."""

    held: bytes | None = None


@dataclass(frozen=True)
class Asked:
    """Golden rows that devices verify a release with.

    Attributes:
        most: Number of rows, if they are new.
        origin: Origin of the rows, for the manifest: ``journal`` or ``stream``.
        features, held: The rows that devices have, which are reused while the features have these
            names.
    """

    most: int
    origin: str
    features: Sequence[str] = ()
    held: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Exported:
    """Files by name, the manifest, and the targets that were left out with the reason."""

    files: Mapping[str, bytes]
    manifest: Mapping[str, Any]
    left_out: Mapping[str, str]


def export(
    served: Model,
    task: Task,
    rows: Sequence[Features],
    *,
    about: Mapping[str, Any],
    shown: Mapping[Label, Label] | None = None,
    targets: Sequence[str] = EXACT,
    asked: Asked | None = None,
    steps: Steps | None = None,
    seed: int = 0,
    ends: Mapping[str, tuple[float, float, float, float]] | None = None,
) -> Exported:
    """Export the model in its present state.

    Parameters:
        rows: Real rows, for the golden rows; see :func:`online.edge.targets.golden.golden`.
        about: Entries of the manifest beside the targets: ``model``, ``sequence``, ``created``,
            ``expires``, ``freshness``.
        shown: Labels as callers know them, by the model's own labels.
        asked: The rows that devices verify; None: all rows that were verified here.
        steps: Quantize the weights of ``edgepack``, if a grid is accurate enough.
        ends: By feature: lower and upper bound, and the values that replace numbers below and above
            (:mod:`online.learning.bounds`).

    Raises ExportRefused if the model has no exact form, or no target is left.
    """
    edge = bounded(lower(served, task), ends or {})
    names = shown or {}
    called = replace(edge, classes=tuple(names.get(label, label) for label in edge.classes))
    same = asked is not None and list(asked.features) == list(edge.columns.names)
    held = asked.held if asked is not None and same else ()
    proofs = {
        precision: golden(served, edge, rows, precision, np.random.default_rng(seed), held=held)
        for precision in {TARGETS[name].precision for name in targets}
    }
    written = _Written(called, str(about["model"]), asked, len(held))
    for name in targets:
        proof = proofs[TARGETS[name].precision]
        made = None
        if steps is not None and name == "edgepack":
            step = partial(_in_steps, called, steps, proof, seed)
            made = _tried("steps", step, written.left_out)
            if made is not None:
                written.add(name, _STEPPED, *made)
        if made is None:
            step = partial(_prove, name, TARGETS[name], called, proof)
            made = _tried(name, step, written.left_out)
            if made is not None:
                written.add(name, TARGETS[name], *made)
    if not written.described:
        raise ExportRefused(str(about["model"]), f"no target is left: {written.left_out}")
    whole = {
        "spec": manifest.SPEC, **about, "task": task, "classes": list(called.classes),
        "features": list(edge.columns.names), "targets": written.described,
    }  # fmt: skip
    return Exported({**written.files, **_companions(written.described)}, whole, written.left_out)


@dataclass
class _Written:
    """The files of an export so far with their descriptions, and the targets left out.

    Attributes:
        held: Number of rows that devices have already.
    """

    called: EdgeModel
    model: str
    asked: Asked | None
    held: int
    files: dict[str, bytes] = field(default_factory=dict)
    described: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, target: Target, data: bytes, parity: Parity, proof: Golden) -> None:
        """Add a target's file, with the rows that devices verify it with."""
        asked, file = self.asked, f"{self.model}{target.suffix}"
        self.files[file] = data
        again = proof
        if asked is not None:
            again = proof.last(self.held) if self.held else proof.some(asked.most)
        self.files[again.name()] = again.file()
        self.described[name] = _described(file, data, target, again, parity)
        if asked is not None and name == "edgepack":
            parts = again.parts()
            self.files |= parts
            self.described[name]["parity"] |= {
                "origin": asked.origin,
                "parts": {n: _named(data) for n, data in parts.items()},
            }
        if target.beside is not None:
            weights, content = target.beside(self.called)
            self.files[weights] = content
            self.described[name]["weights"] = {"file": weights, **_named(content)}


def with_delta(made: Exported, since: bytes) -> Exported:
    """Add a delta from an older edgepack, for clients that have that one.

    There is none if the structure has changed, or if it has more than 70 % of the file's size.
    """
    target = made.manifest["targets"].get("edgepack")
    if target is None:
        choose = made.manifest["task"] == "choose"
        why = "of a file of choices there is none" if choose else "no edgepack is written"
        return replace(made, left_out={**made.left_out, "difference": why})
    new = made.files[target["file"]]
    try:
        delta = _difference(since, new)
    except EdgeError as error:
        return replace(made, left_out={**made.left_out, "difference": str(error)})
    name = f"{target['file']}.{sha256(since).hexdigest()[:16]}.delta"
    described = {
        "from_sha256": sha256(since).hexdigest(), "file": name, "size": len(delta),
        "sha256": sha256(delta).hexdigest(),
    }  # fmt: skip
    targets = {**made.manifest["targets"], "edgepack": {**target, "deltas": [described]}}
    return replace(
        made, files={**made.files, name: delta}, manifest={**made.manifest, "targets": targets}
    )


def with_deltas(
    folder: Folder, channel: Channel, manifest: Mapping[str, Any], files: Mapping[str, bytes]
) -> tuple[dict[str, Any], dict[str, bytes], dict[int, str]]:
    """The document of a release with deltas from the newest releases, and the deltas by hash.

    The third value has, by sequence, the reason why there is no delta from a release.

    Parameters:
        folder, channel: What is published so far.
        manifest, files: Of the new release; other files are in the folder.
    """
    about = {name: value for name, value in manifest.items() if name != "sequence"}
    target = about["targets"].get("edgepack")
    if target is None:
        return about, {}, {}
    new = files.get(target["sha256"]) or folder.file(target["sha256"])
    deltas: list[dict[str, Any]] = []
    made: dict[str, bytes] = {}
    whole: dict[int, str] = {}
    for release in reversed(channel.releases[-DELTAS:]):
        base = release.about["targets"].get("edgepack", {}).get("sha256")
        if base in (None, target["sha256"], *(one["from_sha256"] for one in deltas)):
            continue
        try:
            delta = _difference(folder.file(base), new)
        except DifferenceUnfit as error:
            whole[release.sequence] = str(error)
            continue
        digest = sha256(delta).hexdigest()
        made[digest] = delta
        deltas.append({"from_sha256": base, "size": len(delta), "sha256": digest})
    about["targets"] = {**about["targets"], "edgepack": {**target, "deltas": deltas}}
    return about, made, whole


def _difference(old: bytes, new: bytes) -> bytes:
    """Return the delta from ``old`` to ``new``.  Raises DifferenceUnfit if it is too large."""
    delta = deltas.smallest(old, new)
    if len(delta) > DELTA_SHARE_MAX * len(new):
        smaller = (
            "" if delta[:4] == deltas.STEPS else " (weights in steps make it smaller: --steps)"
        )
        raise DifferenceUnfit(f"it takes {len(delta):,} bytes of {len(new):,}{smaller}")
    return delta


def _in_steps(
    model: EdgeModel, steps: Steps, proof: Golden, seed: int
) -> tuple[bytes, Parity, Golden]:
    """The quantized pack, its error, and golden rows with this pack's own predictions.

    The pack is compared with the model here; devices must reproduce the reference reader's
    predictions of the same bytes as precisely as for an exact pack.
    """
    data = grid.on_grid(model, steps.held, proof.rows, np.random.default_rng(seed))
    answers = runners.run_pack(data, proof.rows)
    parity = gate("edgepack", answers, proof, grid.OFF_MAX, grid.AGREE_LEAST)
    return data, parity, replace(proof, expected=answers)


def _companions(targets: Iterable[str]) -> dict[str, bytes]:
    """Return the runtime files for the targets, by name."""
    files: dict[str, bytes] = {}
    if any(t.startswith("edgepack") for t in targets):
        files["edge.js"] = runners.runtime_js()
    if any(t.startswith("c99") for t in targets):
        files["edge_model.h"] = c_file.interpreter().encode()
    return files


def _tried(
    name: str, make: Callable[[], tuple[bytes, Parity, Golden]], left_out: dict[str, str]
) -> tuple[bytes, Parity, Golden] | None:
    """Return the result of ``make``, or None with the refusal noted in ``left_out``."""
    try:
        return make()
    except EdgeError as error:
        left_out[name] = str(error)
        return None


def _prove(
    name: str, target: Target, model: EdgeModel, proof: Golden
) -> tuple[bytes, Parity, Golden]:
    if target.precision == "float64" and model.computed == "float32":
        raise ExportRefused(name, "the model itself computes in float32")
    data = target.convert(model)
    answers = target.ask(data, model, proof.rows)
    if target.nearly is not None:
        return data, gate(name, answers, proof, *target.nearly[1:]), proof
    return data, gate(name, answers, proof, BOUNDS[target.precision]), proof


def _described(
    file: str, data: bytes, target: Target, proof: Golden, parity: Parity
) -> dict[str, Any]:
    measured = {k: v for k, v in asdict(parity).items() if k != "worst"}
    return {
        "file": file,
        **_named(data),
        "dtype": target.nearly[0] if target.nearly else target.precision,
        "runtime": dict(target.runtime),
        "parity": {"golden": proof.name(), **_named(proof.file()), **measured},
    }


def _named(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": sha256(data).hexdigest()}
