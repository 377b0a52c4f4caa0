"""Built-ins and examples over HTTP: they learn, survive a kill, and restore.

One of each kind is among the usual tests: torch, scikit-learn, hashed text, a table, and one that
is learned whole.  The long form has every built-in and example, in one process and in three
replicas.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.service import Running, form, launch, settle, status, write_settings
from online.models.loading.load import BUILT_IN

pytestmark = pytest.mark.ray

EXAMPLES = Path(__file__).parents[2] / "examples"
INPUTS = ["a", "b", "c"]
SORTS = ["apple", "pear", "quince"]
ROWS = 300
Row = tuple[dict[str, Any], Any]


def _linear(row: dict[str, float]) -> float:
    return 2.0 * row["a"] - row["b"] + 0.5 * row["c"]


LABELS: dict[str, Callable[[dict[str, float]], Any]] = {
    "binary": lambda row: _linear(row) > 0,
    "multiclass": lambda row: SORTS[INPUTS.index(max(INPUTS, key=row.__getitem__))],
    "regression": _linear,
}
MERGEABLE = [
    {"name": "logreg", "task": "binary", "learner": "logreg"},
    {"name": "softmax", "task": "multiclass", "learner": "softmax"},
    {"name": "linreg", "task": "regression", "learner": "linreg"},
    {"name": "ftrl", "task": "multiclass", "learner": "ftrl"},
    {"name": "linear", "task": "multiclass", "learner": "linear"},
    {"name": "fm", "task": "regression", "learner": "fm"},
    {"name": "fm-table", "task": "regression", "learner": "fm", "params": {"table": True}},
    {"name": "auto", "task": "multiclass", "learner": "auto"},
    {
        "name": "mlp",
        "task": "binary",
        "learner": "mlp",
        "params": {"inputs": INPUTS},
        "replay": {"policy": "balanced", "capacity": 100},
        "training": {"warm_up": 20, "l2": 1e-4},
    },
    {"name": "pipeline", "task": "binary", "learner": f"{EXAMPLES}/pipeline.py:build"},
    {"name": "network", "task": "binary", "learner": f"{EXAMPLES}/network.py:build"},
    {"name": "sgd", "task": "multiclass", "learner": f"{EXAMPLES}/sgd.py:build"},
]
WHOLE = [
    {"name": "forest", "task": "binary", "learner": f"{EXAMPLES}/forest.py:build"},
    {"name": "own", "task": "regression", "learner": f"{EXAMPLES}/own_class.py:MeanByShop"},
]

EVERY = [*MERGEABLE, *WHOLE]
KINDS = ("mlp", "sgd", "ftrl", "forest", "fm-table")
A_KIND = [model for model in EVERY if model["name"] in KINDS]


def rows(task: str, first: int, n: int) -> list[Row]:
    """Rows ``first …``: the same for whoever asks."""
    out = []
    for i in range(first, first + n):
        draw = random.Random(i)
        row: dict[str, Any] = {name: draw.gauss(0.0, 1.0) for name in INPUTS}
        label = LABELS[task](row)
        if task == "regression":
            row["shop"] = i % 3
        out.append((row, label))
    return out


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="online-models-") as name:
        yield Path(name)


def learn(running: Running, model: dict[str, Any], first: int, n: int) -> None:
    """Each row is learned, whatever dies meanwhile: what was not answered is sent again."""
    events = [
        {"features": x, "label": y, "event_id": f"{first + i}"}
        for i, (x, y) in enumerate(rows(model["task"], first, n))
    ]
    for start in range(0, n, 20):
        body = {"events": events[start : start + 20]}
        deadline = time.monotonic() + 240
        while True:
            assert time.monotonic() < deadline
            with (
                contextlib.suppress(OSError, http.client.HTTPException),
                contextlib.closing(Connection(running.url)) as client,
            ):
                code, answer = client.post(f"/v1/models/{model['name']}/feedback", body)
                if code == 200:
                    told = {r["status"] for r in answer["events"]}
                    assert told <= {"learned", "duplicate"}, answer
                    break
            time.sleep(0.1)  # what starts needs the processor


def answers(url: str, model: dict[str, Any]) -> list[Any]:
    """Predictions for rows that were not learned; probabilities where there are some."""
    asked = [x for x, _ in rows(model["task"], 10_000, 60)]
    with contextlib.closing(Connection(url)) as client:
        code, answer = client.post(f"/v1/models/{model['name']}/predict", {"instances": asked})
    assert code == 200, answer
    return [row.get("probabilities") or row["prediction"] for row in answer["predictions"]]


def quality(url: str, model: dict[str, Any]) -> float:
    """Share of right labels; in regression, of the variance that is explained."""
    given = rows(model["task"], 10_000, 60)
    with contextlib.closing(Connection(url)) as client:
        _, answer = client.post(
            f"/v1/models/{model['name']}/predict", {"instances": [x for x, _ in given]}
        )
    pairs = [
        (row["prediction"], y) for row, (_, y) in zip(answer["predictions"], given, strict=True)
    ]
    if model["task"] != "regression":
        return sum(p == y for p, y in pairs) / len(pairs)
    mean = sum(y for _, y in pairs) / len(pairs)
    return 1 - sum((p - y) ** 2 for p, y in pairs) / sum((y - mean) ** 2 for _, y in pairs)


def close(some: list[Any]) -> list[Any]:
    """To be compared with: the same up to rounding."""
    return [
        pytest.approx(one, rel=1e-6, abs=1e-6) if not isinstance(one, (str, bool)) else one
        for one in some
    ]


def killed(running: Running) -> Running:
    """The service after a kill of one replica, or of the one process that it is."""
    victim = next(iter(running.replica_urls()))
    if victim:
        os.kill(int(victim.partition(":")[0]), signal.SIGKILL)
        return running
    running.process.kill()
    running.process.wait()
    return launch(running.folder)


def restored(running: Running, name: str, replicas: int) -> list[str]:
    """Where to ask for the model, once all of its rows are there again."""
    if replicas > 1:
        settle(running, name, ROWS)
        return list(running.replica_urls().values())
    deadline = time.monotonic() + 240
    while (learned := status(running, name)["learned"]) != ROWS:
        assert time.monotonic() < deadline, (name, learned)
        time.sleep(0.1)
    return [running.url]


ROW = {"a": 1.0, "b": -1.0, "c": 0.5}
REFUSED: list[tuple[str, dict[str, Any], Any, int, str]] = [
    ("mlp", {**ROW, "a": 1e300}, True, 422, "invalid_value"),
    ("mlp", {**ROW, "a": "text"}, True, 422, "invalid_value"),
    ("mlp", {**ROW, "a": None}, True, 422, "invalid_value"),
    ("mlp", ROW, "yes", 422, "invalid_value"),
    ("sgd", ROW, "plum", 422, "failed"),
    ("sgd", {**ROW, "a": [1.0]}, "pear", 422, "invalid_value"),
    ("ftrl", {**ROW, "a": {"b": 1}}, "pear", 422, "invalid_value"),
    ("ftrl", {**ROW, "a": "long " * 1000}, "pear", 422, "invalid_value"),
]
TAKEN: list[tuple[str, dict[str, Any], Any]] = [
    ("mlp", {**ROW, "a": 1e12}, True),
    ("mlp", {"a": 1.0, "new": 2.0}, False),
    ("mlp", {"other": 1.0}, True),  # as it is answered: a row of means
    ("ftrl", {"a": "now text", "b": None, "c": True, "new": 1e12}, "appears once"),
]


def refuses_without_a_trace(running: Running) -> None:
    """A clear answer, and every prediction as it was."""
    models = {model["name"]: model for model in MERGEABLE}
    with contextlib.closing(Connection(running.url)) as client:
        for i, (name, row, label, status, code) in enumerate(REFUSED):
            before = answers(running.url, models[name])
            body = {"features": row, "label": label, "event_id": f"bad-{i}"}
            got, answer = client.post(f"/v1/models/{name}/feedback", body)
            told = answer["status"] if "status" in answer else answer["error"]["code"]
            assert (got, told) == (status, code), (row, answer)
            assert answers(running.url, models[name]) == close(before), row
        for i, (name, row, label) in enumerate(TAKEN):
            body = {"features": row, "label": label, "event_id": f"odd-{i}"}
            assert client.post(f"/v1/models/{name}/feedback", body)[0] == 200, row
            answers(running.url, models[name])  # finite, or it were 503


def test_no_built_in_model_is_left_out() -> None:
    """Another task has the rewards' model, one that looks for anomalies, or one that is frozen."""
    served = {model["learner"] for model in EVERY} | {"rewards", "anomaly", "sealed"}
    assert set(BUILT_IN) <= served, "add the settings of a new one to MERGEABLE or WHOLE"


@pytest.mark.parametrize(
    ("replicas", "models"),
    [
        pytest.param(1, A_KIND, id="a kind"),
        pytest.param(1, EVERY, id="1", marks=pytest.mark.long),
        pytest.param(3, EVERY, id="3", marks=pytest.mark.long),
    ],
)
def test_learns_survives_a_kill_and_restores(replicas: int, models: list[dict[str, Any]]) -> None:
    with folder() as place:
        write_settings(place, {**form(replicas), "models": models})
        running = launch(place)
        try:
            for model in models:
                learn(running, model, 0, ROWS // 2)
            running = killed(running)
            for model in models:
                learn(running, model, ROWS // 2, ROWS // 2)
            for model in models:
                assert settle(running, model["name"], ROWS)["learned"] == ROWS
                if model["name"] != "own":  # there the target has nothing to do with the shop
                    assert quality(running.url, model) >= 0.75, model["name"]
            before = {model["name"]: answers(running.url, model) for model in models}
        finally:
            running.stop()
        running = launch(place)
        try:
            for model in models:
                for url in restored(running, model["name"], replicas):
                    assert answers(url, model) == close(before[model["name"]]), model["name"]
            if replicas == 1:
                refuses_without_a_trace(running)
        finally:
            running.stop()
