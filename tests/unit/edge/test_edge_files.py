"""Manifests, golden rows and the command `online export`."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from typer.testing import CliRunner

pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[edge]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install '.[edge]'")

from evaluation.streams import open_stream
from online.commands.cli import app
from online.edge import errors, manifest
from online.edge.errors import ExportRefused, ManifestRefused, PackCorrupt, ParityFailed
from online.edge.export import EXACT, export
from online.edge.lowering.lower import lower
from online.edge.targets import deltas, onnx_file, onnx_small, pack, runners
from online.edge.targets.gate import compare, gate
from online.edge.targets.golden import golden
from online.models.loading.from_settings import load_model
from online.models.loading.load import load
from online.rows.prediction_ids import Keys
from online.settings import config
from online.settings.places import snapshots_path
from paramserver.core.state import SnapshotState
from paramserver.snapshots.format import encode
from paramserver.snapshots.places import lineage_place, open_snapshots

ABOUT = {"model": "m", "sequence": 7, "created": 1.0, "expires": 100.0, "freshness": {}}


def phishing(learner: str = "logreg", rows: int = 300) -> tuple[Any, list[Any]]:
    played = list(islice(open_stream("phishing").rows, rows))
    params = {"inputs": list(played[0][0])} if learner == "mlp" else {}
    model = load(learner, params, task="binary", classes=None, key=b"k", base_dir=Path()).model
    for x, y in played:
        model.learn(x, y, 1.0)
    return model, played


# -- packs and golden rows ---------------------------------------------------------------------


def test_a_pack_is_whole_or_refused() -> None:
    model, _ = phishing()
    whole = pack.encode(lower(model, "binary"))
    for size in range(len(whole)):
        with pytest.raises(PackCorrupt):
            pack.decode(whole[:size])
    with pytest.raises(PackCorrupt, match="its header says"):
        pack.decode(whole + b"\0")


def test_golden_rows_are_named_by_their_content() -> None:
    model, played = phishing()
    edge = lower(model, "binary")
    made = [
        golden(model, edge, [x for x, _ in played[:40]], "float64", np.random.default_rng(1))
        for _ in range(2)
    ]
    assert made[0].file() == made[1].file()
    assert made[0].name() == f"golden-{sha256(made[0].file()).hexdigest()[:32]}.json"
    told = json.loads(made[0].file())
    assert any(row["nan"] for row in told["rows"])
    assert any("a name never seen" in row["x"] for row in told["rows"])
    assert len(told["expected"]) == len(told["rows"])
    assert golden(model, edge, [], "float64", np.random.default_rng(1)).rows, "drawn ones"


def test_the_gate_names_the_row_and_the_difference() -> None:
    model, played = phishing()
    edge = lower(model, "binary")
    proof = golden(model, edge, [x for x, _ in played[:40]], "float64", np.random.default_rng(1))
    found = proof.expected.copy()
    assert gate("t", found, proof, 0.0).max_abs == 0.0
    found[3] += 1e-3
    with pytest.raises(ParityFailed, match=r"golden row 3 differs by 0\.001"):
        gate("t", found, proof, 1e-6)
    found[3] = np.nan
    assert compare(found, proof).max_abs == np.inf
    clear = int(np.abs(proof.expected[:, 0] - 0.5).argmin())
    other = proof.expected.copy()
    other[clear] = 1.0 - other[clear]
    with pytest.raises(ParityFailed):
        gate("t", other, proof, 1.0)


def test_errors_survive_pickling() -> None:
    made: list[Exception] = [
        ExportRefused("n", "r"), PackCorrupt("r"), ParityFailed("t", 0.1, 0.01, 3),
        errors.TargetUnavailable("t", "p"), ManifestRefused("r"),
        errors.StepsUnfit("r"), errors.DifferenceUnfit("r"),
    ]  # fmt: skip
    for error in made:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))


# -- the manifest ------------------------------------------------------------------------------


@pytest.fixture
def signed() -> tuple[bytes, bytes, Ed25519PublicKey, dict[str, bytes]]:
    model, played = phishing()
    made = export(model, "binary", [x for x, _ in played[:64]], about=ABOUT, targets=("edgepack",))
    key = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
    data, signature = manifest.sign(made.manifest, key)
    return data, signature, key.public_key(), dict(made.files)


def test_a_client_follows_a_manifest_in_the_order_of_tuf(signed: Any) -> None:
    data, signature, key, files = signed
    assert len(data) <= 1536
    told = manifest.verify(data, signature, key, now=99.0, model="m", sequence=7)
    target = told["targets"]["edgepack"]
    manifest.check_file(told, "edgepack", files[target["file"]])
    assert target["parity"]["golden"] in files
    attacks: list[tuple[dict[str, Any], str]] = [
        ({"data": data.replace(b'"sequence":7', b'"sequence":9')}, "signature"),
        ({"signature": bytes(64)}, "signature"),
        ({"sequence": 8}, "older than 8"),
        ({"now": 100.0}, "expired"),
        ({"model": "other"}, "not 'other'"),
        ({"data": data + b" " * manifest.BYTES_MAX}, "at most"),
        ({"key": Ed25519PrivateKey.generate().public_key()}, "signature"),
    ]
    for change, why in attacks:
        given: dict[str, Any] = {
            "data": data, "signature": signature, "key": key, "now": 99.0, "model": "m",
            "sequence": 7, **change,
        }  # fmt: skip
        with pytest.raises(ManifestRefused, match=why):
            manifest.verify(given.pop("data"), given.pop("signature"), given.pop("key"), **given)


def test_a_file_that_is_not_the_one_named_is_refused(signed: Any) -> None:
    data, signature, key, files = signed
    told = manifest.verify(data, signature, key, now=1.0, model="m", sequence=0)
    content = files["m.edgepack"]
    for other in (content[:-1], content + b"\0", content[:-1] + b"\1"):
        with pytest.raises(ManifestRefused):
            manifest.check_file(told, "edgepack", other)
    with pytest.raises(ManifestRefused, match="names no file"):
        manifest.check_file(told, "onnx", content)


# -- the command -------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder as a service leaves it: a key, and a snapshot of the default model."""
    (tmp_path / "online.yaml").write_text(
        "models:\n- {name: mails, task: binary, learner: logreg, "
        "classes: {negative: ham, positive: spam}}\n"
    )
    settings = config.load(tmp_path / "online.yaml", {"state_dir": tmp_path / "state"}, {})
    keys = Keys.from_file(settings.key_path)
    loaded = load_model(settings.models[0], settings, keys.secret, keys.old_secrets)
    for x, y in islice(open_stream("phishing").rows, 200):
        loaded.model.learn(x, y, 1.0)
    place = lineage_place(snapshots_path(settings), "mails", loaded.spec_hash)
    for count in (9, 10):
        held = SnapshotState("mails", loaded.spec_hash, loaded.spec_text, (1, count),
                             loaded.model.cut() if count == 9 else {}, {1: count})  # fmt: skip
        if count == 9:
            open_snapshots(place).publish("1-9", encode(held))
            values = held.values
        else:
            open_snapshots(place).publish("1-10", encode(replace(held, values=values)))
    return tmp_path


def run(state: Path, *words: str) -> Any:
    command = ["export", "--config", str(state / "online.yaml"), "--state-dir",
               str(state / "state"), "--out", str(state / "out"), *words]  # fmt: skip
    return CliRunner().invoke(app, command)


def test_the_command_writes_proved_files_and_a_signed_manifest(state: Path) -> None:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )  # fmt: skip
    (state / "key.pem").write_bytes(pem)
    done = run(state, "--sign", str(state / "key.pem"), "--stream", "phishing", "--json")
    assert done.exit_code == 0, done.output
    out = state / "out"
    data = (out / "manifest.json").read_bytes()
    told = manifest.verify(
        data, (out / "manifest.sig").read_bytes(), key.public_key(), now=0.0, model="mails",
        sequence=0,
    )  # fmt: skip
    assert told["freshness"]["version"] == [1, 10], "the newest one"
    assert {"edgepack", "edgepack64", "onnx", "onnx64"} <= set(told["targets"])
    for name, target in told["targets"].items():
        manifest.check_file(told, name, (out / target["file"]).read_bytes())
        assert target["parity"]["agree"] == 1.0
        assert (out / target["parity"]["golden"]).exists()
    assert (out / "edge.js").read_bytes() == runners.runtime_js()
    assert pack.decode((out / "mails.edgepack").read_bytes()).classes == ("ham", "spam")
    here = str(state).encode()
    assert not any(here in path.read_bytes() for path in out.iterdir())


def test_the_command_takes_a_snapshot_by_name_or_file_and_some_targets(state: Path) -> None:
    done = run(state, "1-9", "--targets", "edgepack", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["manifest"]["freshness"]["version"] == [1, 9]
    (file,) = (state / "state").rglob("1-9.snapshot")
    assert run(state, str(file), "--targets", "onnx").exit_code == 0


def test_the_command_writes_the_difference_from_an_older_pack(state: Path) -> None:
    assert run(state, "--targets", "edgepack").exit_code == 0
    old = (state / "out" / "mails.edgepack").read_bytes()
    model, _ = phishing(rows=10)
    edge = lower(model, "binary")
    other = pack.encode(replace(edge, classes=("ham", "spam")))
    for since, same in ((old, True), (other, len(other) == len(old))):
        (state / "old.edgepack").write_bytes(since)
        done = run(state, "--targets", "edgepack", "--since", str(state / "old.edgepack"), "--json")
        assert done.exit_code == 0, done.output
        told = json.loads(done.output)
        named = told["manifest"]["targets"]["edgepack"].get("deltas")
        assert bool(named) == same or told["left_out"]["difference"]
        if named:
            delta = (state / "out" / named[0]["file"]).read_bytes()
            assert deltas.apply(since, delta) == old
            assert named[0]["from_sha256"] == sha256(since).hexdigest()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--targets", "executorch"], "'executorch' is not a target"),
        (["--model", "other"], "'other' is not served"),
        (["--sign", "nowhere.pem"], "No such file"),
        (["--since", "nowhere.edgepack"], "No such file"),
        (["7-7"], "7-7"),
    ],
)
def test_the_command_refuses_with_a_reason(state: Path, words: list[str], why: str) -> None:
    done = run(state, *words)
    assert done.exit_code != 0
    assert why in str(done.exception) + done.output
    assert not (state / "out").exists()


@pytest.mark.parametrize(
    ("learner", "params", "task", "left_out"),
    [
        ("logreg", {}, "binary", {"onnx"}),
        ("linreg", {}, "regression", {"onnx"}),
        ("ftrl", {"scale": False}, "regression", set()),
        ("linear", {"text": ["t"]}, "binary", set()),
        ("softmax", {}, "multiclass", None),
        ("linear", {}, "multiclass", None),
    ],
)
def test_a_model_that_has_learned_nothing(
    learner: str, params: dict[str, Any], task: Any, left_out: set[str] | None
) -> None:
    model = load(learner, params, task=task, classes=None, key=b"k", base_dir=Path()).model
    if left_out is None:
        with pytest.raises(ExportRefused, match="learned no class yet"):
            export(model, task, [], about=ABOUT)
        return
    made = export(model, task, [], about=ABOUT, targets=("edgepack", "onnx"))
    assert set(made.left_out) == left_out


# -- files that answer nearly alike ----------------------------------------------------------------


def test_weights_in_fewer_bits_are_made_by_name_only_and_say_how_far_off_they_are() -> None:
    model, rows = phishing("mlp")
    asked = [x for x, _ in rows[:50]]
    exact = export(model, "binary", asked, about=ABOUT, targets=("onnx",))
    made = export(model, "binary", asked, about=ABOUT, targets=("onnx16", "onnx8"))
    size = exact.manifest["targets"]["onnx"]["size"]
    told = made.manifest["targets"]
    assert [told[name]["dtype"] for name in told] == ["float16", "int8"]
    assert told["onnx8"]["size"] < told["onnx16"]["size"] < 0.8 * size
    for name, most in (("onnx16", 2e-3), ("onnx8", 2e-2)):
        assert 1e-6 < told[name]["parity"]["max_abs"] <= most, "near, not equal"
        onnx_file.check(made.files[told[name]["file"]])
    assert not {"onnx16", "onnx8"} & set(EXACT)
    assert json.dumps(made.manifest).count("float16") == 2, "nothing else is rounded"


def test_weights_that_are_rounded_too_far_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = phishing("mlp")
    monkeypatch.setattr(onnx_small, "_STEPS", 3)
    with pytest.raises(ExportRefused, match="differs by"):
        export(model, "binary", [x for x, _ in rows], about=ABOUT, targets=("onnx8",))


def test_trees_and_small_models_are_not_rounded() -> None:
    model, rows = phishing()
    with pytest.raises(ExportRefused, match="no tensor has 64 numbers"):
        export(model, "binary", [x for x, _ in rows[:9]], about=ABOUT, targets=("onnx16",))
    with pytest.raises(ExportRefused, match="in networks only"):
        export(model, "binary", [x for x, _ in rows[:9]], about=ABOUT, targets=("onnx8",))
