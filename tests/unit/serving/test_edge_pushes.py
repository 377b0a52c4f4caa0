"""Devices push what their rows did to a release: counted once, bounded, and judged."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from replica_world import SPEC, World, play, until

from benchmarks.edge import devices as fleet
from benchmarks.edge.devices import Scene, scene_of
from evaluation.streams import open_stream
from online.edge import on_device
from online.edge.errors import ExportRefused
from online.edge.lowering.lower import lower
from online.edge.targets import pack
from online.errors import RequestError
from online.http.routes.edge import shipped
from online.models.base import learn_example
from online.models.device_delta import numbers
from online.models.loading.load import load
from online.replica.filtered import Filtered
from online.serving.device_pushes import NUMBERS_MAX, Push, _tensor
from online.serving.operating.status import Cluster
from online.settings.model import Devices, ModelSettings
from online.trust.filtering import SOURCES_MIN, filtering_for
from paramserver.filters.base import Event, Opinion, Source
from paramserver.filters.chain import Chain
from paramserver.filters.schema import Schema
from replay import codec
from replay.example import Moved, Tensor

DEVICES: Final = Devices(rate=0.05, clip=1.0, buffer=4, behind_max=2, hourly=3)
DIGITS: Final = list(open_stream("digits").rows)
ROWS: Final = list(islice(open_stream("phishing").rows, 400))


def model(learner: str, task: str, **params: Any) -> Any:
    given: Any = {"task": task, "classes": None, "key": bytes(32), "base_dir": Path()}
    return load(learner, params, **given)


def asked(settings: Devices) -> dict[str, Any]:
    return {"devices": settings, "root_set": Path("root")}


def with_logreg(
    act: Callable[[Scene, World], Awaitable[None]], settings: Devices = DEVICES
) -> Callable[[World], Awaitable[None]]:
    """A logistic regression of a real stream, published once."""

    async def run(world: World) -> None:
        build = model("logreg", "binary").build
        replica = await world.replica(build=build, task="binary", **asked(settings))
        scene = scene_of(replica, world.folder / "edge" / "m", settings, ROWS[:60])
        await scene.teach(ROWS[60:200])
        scene.publish()
        await act(scene, world)
        await scene.replica.stop(5)

    return run


def weights(scene: Any) -> dict[str, float]:
    final = scene.learner.serving.estimator["LogisticRegression"]
    return {**final.weights, "": final.intercept}


def body(scene: Scene, event: int = 1, sequence: int = 1, device: str = "d") -> dict[str, Any]:
    learned = on_device.learn(scene.packs[sequence], ROWS[200:216], DEVICES.rate)
    return learned.clipped(DEVICES.clip).body(device, event, sequence)


def rows_of(scene: Scene) -> list[Any]:
    """The journal's rows of devices."""
    journal = scene.replica.store.journal
    rows = journal.read(scene.replica.writer.partition, 1, 1000)
    return [row for row in rows if codec.decode(row.payload).moved is not None]


# -- counted once --------------------------------------------------------------------------------


def test_a_push_moves_the_model_once_by_a_part_and_a_repeat_is_a_duplicate(tmp_path: Path) -> None:
    async def act(scene: Scene, world: World) -> None:
        before, sent = weights(scene.replica), body(scene)
        status, receipt = await scene.pushes.take(Push.model_validate(sent))
        assert (status, receipt.status) in ((200, "learned"), (200, "clipped"))
        (row,) = rows_of(scene)
        after, change = weights(scene.replica), dict[str, float]()
        moved = codec.decode(row.payload).moved
        assert moved is not None
        for name, value in zip(moved.columns, numbers(moved.weights), strict=True):
            change[name] = float(value)
        change[""] = float(numbers(moved.bias)[0])
        assert any(change.values())
        for name, value in change.items():
            assert after[name] - before[name] == pytest.approx(row.factor * value / 4, abs=1e-12)
        counted = scene.replica.learner.tally.digest[0]
        assert await scene.push(sent) == "duplicate"
        other = {**sent, "bias": {"float32": base64.b64encode(bytes(4)).decode()}}
        assert await scene.push(other) == "conflict"
        # up to the last bit: a merge with the server may have come between
        assert weights(scene.replica) == pytest.approx(after, rel=1e-12, abs=1e-15)
        assert len(rows_of(scene)) == 1
        assert scene.replica.learner.tally.digest[0] == counted

    play(tmp_path, with_logreg(act))


def test_who_adopts_the_partition_learns_it_as_it_was_learned(tmp_path: Path) -> None:
    async def act(scene: Scene, world: World) -> None:
        world.client.down = True
        assert await scene.push(body(scene)) in ("learned", "clipped")
        world.client.down = False
        build = model("logreg", "binary").build
        second = await world.replica("second", build=build, task="binary")
        await second.exchange._adopt(scene.replica.writer.partition)
        await until(lambda: second.learner.tally.digest[0] == 141)
        for name, value in weights(scene.replica).items():
            assert weights(second)[name] == pytest.approx(value, abs=1e-12), name
        await second.stop(5)

    play(tmp_path, with_logreg(act))


def test_a_model_of_another_spec_passes_it_over(tmp_path: Path) -> None:
    async def act(scene: Scene, world: World) -> None:
        await scene.push(body(scene))
        (row,) = rows_of(scene)
        example, made = codec.decode(row.payload), model("logreg", "binary").build()
        for spec, moves in ((SPEC, True), ("0" * 64, False)):
            learn_example(made, example, spec=spec)
            assert bool(made.estimator["LogisticRegression"].weights) == moves
            made.reset({})

    play(tmp_path, with_logreg(act))


class Control:
    """Commands to the server in this process."""

    def __init__(self, world: World) -> None:
        self._server = world.server

    async def call(self, method: str, timeout_s: float, *args: object) -> Any:
        return getattr(self._server, method)(*args)


class Never(Schema):
    """Sets everything aside."""

    def judge(self, event: Event, source: Source) -> Opinion:
        return Opinion(0.0, score=3.0, reason="never: a test", stop=True)


def test_what_was_set_aside_is_released_by_an_operator_and_learned_once(tmp_path: Path) -> None:
    async def act(scene: Scene, world: World) -> None:
        before = weights(scene.replica)
        scene.pushes.chain = Chain([Never(None)])
        status, receipt = await scene.pushes.take(Push.model_validate(body(scene)))
        assert (status, receipt.status, receipt.reason) == (202, "quarantined", "never: a test")
        assert weights(scene.replica) == pytest.approx(before, abs=1e-12)
        (row,) = rows_of(scene)
        name, journals = f"{row.partition}:{row.offset}", {"m": scene.replica.store.journal}
        to: Any = {"m": Control(world)}
        operators = Cluster({"m": scene.replica}, to, journals, lambda name: {})
        shown = await operators.quarantined("m", name, None)
        assert (shown["source"], shown["label"], shown["reason"]) == (
            "device:d", None, "never: a test",
        )  # fmt: skip
        for _ in range(2):
            done = await operators.decide_rows("m", "released", [name])
            assert done["released"] == 1
        moved = codec.decode(row.payload).moved
        assert moved is not None
        after, by = weights(scene.replica), numbers(moved.bias)[0]
        assert by != 0.0
        assert after[""] - before[""] == pytest.approx(by / 4, abs=1e-12)
        assert await scene.push(body(scene)) == "duplicate"

    play(tmp_path, with_logreg(act))


def test_a_source_whose_rows_are_quarantined_does_not_go_on_by_deltas(tmp_path: Path) -> None:
    async def act(scene: Scene, world: World) -> None:
        filters = filtering_for(
            scene.replica.settings, scene.replica.learner, None, sources_max=100, vouched=True
        )
        assert filters is not None
        scene.replica.writer._filters = Filtered(filters)
        for i in range(SOURCES_MIN):
            filters._see(f"h{i}", 1.0)
        before = weights(scene.replica)
        filters.chain.sources.quarantine(filters.chain.sources.touch("device:d"))
        assert await scene.push(body(scene)) == "quarantined"
        assert weights(scene.replica) == pytest.approx(before, abs=1e-12)
        assert await scene.push(body(scene, device="e")) in ("learned", "clipped")
        assert "device:e" not in filters._seen, "only rows count for how many are compared"

    play(tmp_path, with_logreg(act))


# -- bounds --------------------------------------------------------------------------------------


def test_what_is_stale_too_often_or_too_long_is_refused_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    async def act(scene: Scene, world: World) -> None:
        first = body(scene)
        assert await scene.push({**first, "sequence": 2}) == "stale", "not there yet"
        for _ in range(DEVICES.behind_max):
            scene.publish()
        assert await scene.push(first) in ("learned", "clipped"), "at the bound"
        scene.publish()
        assert await scene.push({**first, "event": 2}) == "stale"
        assert await scene.push(first) == "duplicate", "what was answered once is known"
        old = scene.publish(time.time() - scene.replica.settings.dedupe_window - 1)
        assert await scene.push({**first, "event": 2, "sequence": old}) == "stale"
        newest = scene.publish()
        for event in range(2, 1 + DEVICES.hourly):
            fate = await scene.push({**first, "event": event, "sequence": newest})
            assert fate in ("learned", "clipped", "quarantined")
        late = Push.model_validate({**first, "event": 9, "sequence": newest})
        with pytest.raises(RequestError) as refused:
            await scene.pushes.take(late)
        assert refused.value.code == "too_often"
        assert 0 < (refused.value.retry_after_s or 0) <= 3600
        assert await scene.push({**first, "sequence": newest}) == "duplicate"
        assert await scene.push({**first, "sequence": newest, "device": "e"}) != "too_often"
        long = np.full(len(first), 1.0, "<f4")
        for wrong, value in (
            ("weights", {"float32": base64.b64encode(long.tobytes()).decode()}),
            ("weights", {"scale": 1.0, "int8": "AAA="}),
            ("bias", {"float32": base64.b64encode(np.float32(1.01).tobytes()).decode()}),
        ):
            sent = {**first, "device": "f", "sequence": newest, wrong: value}
            if wrong == "bias":
                sent["weights"] = {**first["weights"], "scale": 1e-9}
            assert await scene.push(sent) == "invalid_value"
        assert len(rows_of(scene)) == 2 + DEVICES.hourly - 1

    play(tmp_path, with_logreg(act))


def test_many_at_once_are_counted_before_they_are_written(tmp_path: Path) -> None:
    async def act(scene: Scene, world: World) -> None:
        first = body(scene)
        sent = [scene.push({**first, "event": i}) for i in range(12)]
        fates = Counter(await asyncio.gather(*sent))
        assert fates["too_often"] == 12 - DEVICES.hourly, fates
        assert len(rows_of(scene)) == DEVICES.hourly
        assert scene.replica.counts["deltas_refused_too_often"] == fates["too_often"]

    play(tmp_path, with_logreg(act))


def test_numbers_that_are_none_or_too_many_are_refused() -> None:
    def sent(values: Any, **more: Any) -> Any:
        text = base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()
        return Push.model_fields["weights"].annotation(**{"float32": text, **more})  # type: ignore[misc]

    assert numbers(_tensor(sent(np.ones(NUMBERS_MAX)), "weights")).size == NUMBERS_MAX
    for wrong in (
        sent([np.nan]), sent([np.inf]), sent([]), sent([1.0], int8="AA=="), sent([1.0], scale=1.0),
        sent([1.0], float32="AAA"), sent([1.0], float32="AAA="), sent([1.0], float32=None),
    ):  # fmt: skip
        with pytest.raises(RequestError) as refused:
            _tensor(wrong, "weights")
        assert refused.value.status == 422


def test_models_that_take_none(tmp_path: Path) -> None:
    about = {"name": "m", "task": "binary", "learner": "logreg", "devices": {}}
    with pytest.raises(ValueError, match="root_set"):
        ModelSettings.model_validate(about)
    with pytest.raises(ValueError, match="root_set"):
        ModelSettings.model_validate({**about, "task": "regression", "root_set": "r.csv"})

    async def scene(world: World) -> None:
        build = model("ftrl", "binary").build
        replica = await world.replica(build=build, task="binary", **asked(DEVICES))
        made = scene_of(replica, world.folder / "edge", DEVICES, ROWS[:60])
        sent = {
            "device": "d", "event": 1, "sequence": 1, "n": 1,
            "weights": {"scale": 1.0, "int8": "AA=="}, "bias": {"scale": 1.0, "int8": "AA=="},
        }  # fmt: skip
        assert await made.push(sent) == "no_deltas"
        await made.replica.stop(5)

    play(tmp_path, scene)


# -- hostile devices -----------------------------------------------------------------------------


def test_five_liars_of_twenty_do_not_stop_the_others_and_would_without_filters() -> None:
    found, devices = fleet.run("softmax, digits", liars=True, filters=True, rounds=6)
    assert found.after > found.before + 5.0
    flip, loud, nan, *labels = devices[:5]
    assert set(loud.fates) == set(nan.fates) == {"invalid_value"}
    assert "learned" not in flip.fates
    assert all("learned" not in one.fates for one in labels)
    assert found.liars_taken < 15.0
    assert found.honest_away < 15.0
    bare, _ = fleet.run("softmax, digits", liars=True, filters=False, rounds=6)
    assert bare.after < bare.before - 20.0, "negative control"


# -- the device's side ---------------------------------------------------------------------------

NODE = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
ASK: Final = """
import { readFileSync } from "node:fs";
import { body, learn } from "./learn.mjs";
const { rows, settings } = JSON.parse(readFileSync("plan.json"));
const made = learn(new Uint8Array(readFileSync("pack")), rows, settings);
console.log(JSON.stringify({
  weights: Array.from(made.weights), bias: Array.from(made.bias), body: body(made, "d", 7, 3),
}));
"""


def in_node(folder: Path, data: bytes, rows: Any, mutant: tuple[str, str] | None = None) -> Any:
    source = shipped("learn.js").decode()
    if mutant is not None:
        assert source.count(mutant[0]) == 1, mutant
        source = source.replace(*mutant)
    folder.mkdir(exist_ok=True)
    (folder / "learn.mjs").write_text(source)
    (folder / "ask.mjs").write_text(ASK)
    (folder / "pack").write_bytes(data)
    settings = {"rate": 0.1, "clip": 0.5}
    (folder / "plan.json").write_text(json.dumps({"rows": rows, "settings": settings}))
    node = shutil.which("node")
    assert node is not None
    done = subprocess.run(
        [node, "ask.mjs"], cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def trained(learner: str, task: str, rows: fleet.Rows, **params: Any) -> bytes:
    made = model(learner, task, **params).build()
    for x, y in rows[:150]:
        made.learn(x, y, 1.0)
    return pack.encode(lower(made, task))  # type: ignore[arg-type]


@NODE
@pytest.mark.parametrize("what", ["logreg", "softmax", "mlp"])
def test_javascript_learns_as_numpy_does(tmp_path: Path, what: str) -> None:
    binary = what == "logreg"
    rows = ROWS if binary else DIGITS
    data = trained(what, "binary" if binary else "multiclass", rows, **MLP.get(what, {}))
    fresh: list[Any] = [[dict(x), y] for x, y in rows[150:170]]
    fresh[0][0].pop(next(iter(fresh[0][0])))
    fresh[1][0]["nobody knows it"] = 1.0
    wanted = on_device.learn(data, [(x, y) for x, y in fresh], 0.1).clipped(0.5)
    found = in_node(tmp_path / "js", data, fresh)
    assert np.abs(wanted.weights).max() > 0.001
    np.testing.assert_allclose(found["weights"], wanted.weights, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["bias"], wanted.bias, rtol=0, atol=1e-12)
    sent, own = found["body"], wanted.body("d", 7, 3)
    assert {k: sent[k] for k in ("device", "event", "sequence", "n")} == {
        k: own[k] for k in ("device", "event", "sequence", "n")
    }
    js, py = (numbers(_tensor(Push.model_validate(one).weights, "w")) for one in (sent, own))
    np.testing.assert_allclose(js, py, rtol=0, atol=own["weights"]["scale"] * 1.001)
    mutant = ("Math.trunc(value / scale)", "2 * Math.trunc(value / scale)")
    twisted = in_node(tmp_path / "mutant", data, fresh, mutant)["body"]
    assert twisted["weights"]["int8"] != sent["weights"]["int8"], "negative control"


MLP: Final = {"mlp": {"inputs": [f"p{i}" for i in range(64)], "outputs": 10}}


def test_a_last_layer_learns_from_devices(tmp_path: Path) -> None:
    made = model("mlp", "multiclass", **MLP["mlp"]).build()
    for x, y in DIGITS[:150]:
        made.learn(x, y, 1.0)
    made.cut()
    learned = on_device.learn(pack.encode(lower(made, "multiclass")), DIGITS[150:200], 0.05)
    w, b = (Tensor(0.0, v.astype("<f4").tobytes()) for v in (learned.weights, learned.bias))
    moved = Moved(SPEC, 1, 50, (), (), w, b)
    assert made.misfit(moved) is None
    assert made.misfit(Moved(SPEC, 1, 50, (), (), b, w)) is not None
    last = [m for m in made.answering.modules() if hasattr(m, "weight")][-1]
    before = last.weight.detach().numpy().copy()
    made.move(moved, 0.5)
    change = 0.5 * learned.weights.reshape(before.shape)
    np.testing.assert_allclose(last.weight.detach().numpy() - before, change, atol=1e-6)
    blocks = made.cut()
    assert {name.split(".")[-1] for name in blocks} == {"weight", "bias"}
    assert len(blocks) == 2, "nothing else has moved"
    slope, mean = made.moved_slope(moved), made.mean_slope(DIGITS[150:200])
    assert slope @ mean > 0.5 * np.linalg.norm(slope) * np.linalg.norm(mean), "one direction"


def test_packs_that_devices_do_not_learn() -> None:
    made = model("linreg", "regression").build()
    made.learn({"a": 1.0}, 2.0, 1.0)
    with pytest.raises(ExportRefused, match="classifiers"):
        on_device.learn(pack.encode(lower(made, "regression")), [({"a": 1.0}, 2.0)], 0.1)
    ids = {"inputs": ["a", "who"], "ids": {"who": 3}}
    who = load("mlp", ids, task="binary", classes=None, key=b"k" * 32, base_dir=Path()).model
    packed = pack.encode(lower(who, "binary"))
    with pytest.raises(ExportRefused, match="last layers"):
        on_device.learn(packed, [({"a": 1.0, "who": 1}, True)], 0.1)
    assert "head.tokens||head.ids||" in shipped("learn.js").decode(), "as in Python"
