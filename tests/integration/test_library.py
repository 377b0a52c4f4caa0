"""Durable, deduplicated learning as a library: the promises of the service without HTTP."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import tomllib
import weakref
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from river import linear_model, optim, preprocessing

import online
from benchmarks.fixtures.learners import COUNT_LABEL, counting
from online.client import NotANumber
from online.errors import ConfigError, RequestError, StartRefused
from online.replica.replica import ModelReplica

ROOT = Path(__file__).parents[2]
STEP = 2.0**-10


def model(lr: float = 0.1) -> Any:
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(lr))


def rows(n: int = 40) -> list[tuple[dict[str, float], bool]]:
    return [({"x": float(i % 3), "y": i / n}, i % 3 > 0) for i in range(n)]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A folder of states; no thread of a learner outlives the test."""
    yield tmp_path / "state"
    left = [t.name for t in threading.enumerate() if t.name.startswith(("online", "parameter"))]
    assert left == []


def test_it_learns_as_the_plain_library_does_and_goes_on_after_a_restart(state: Path) -> None:
    plain = model()
    for part in (rows()[:20], rows()[20:]):
        with online.Learner(model(), state, filters="none") as learner:
            for x, y in part:
                assert learner.predict_proba_one(x)["true"] == pytest.approx(
                    plain.predict_proba_one(x)[True], abs=1e-9
                )
                assert learner.learn_one(x, y).status == "learned"
                plain.learn_one(x, y)
                assert learner.predict_one(x) == plain.predict_one(x)
    with online.Learner(model(), state, filters="none") as learner:
        report = learner.report()
        assert report["learned"] == 40
        assert "learned 40" in repr(report)
        assert "majority" in report._repr_html_()


def test_a_repeat_counts_once_for_ever(state: Path) -> None:
    for repeat in (False, True):
        with online.Learner(model(), state) as learner:
            receipt = learner.learn_one({"x": 1.0}, True, event_id="a")
            assert (receipt.duplicate, receipt.status == "duplicate") == (repeat, repeat)
            assert learner.learn_one({"x": 1.0}, False, event_id="a").status == "conflict"
            assert learner.report()["learned"] == 1


def test_many_rows_are_one_commit_and_their_repeats_are_known(state: Path) -> None:
    with online.Learner(model(), state, settings={"limits": {"rows_max": 16}}) as learner:
        for repeat in (False, True):
            receipts = learner.learn_many(rows(), event_ids=map(str, range(40)))
            assert [r.duplicate for r in receipts] == [repeat] * 40
        refused = learner.learn_many([({"x": 1.0}, True), ({}, True), ({"x": 2.0}, False)])
        assert [r.status for r in refused] == ["learned", "refused", "learned"]
        assert learner.report()["learned"] == 42


def test_a_row_for_which_there_is_no_id_is_not_left_out_in_silence(state: Path) -> None:
    with online.Learner(model(), state, settings={"limits": {"rows_max": 16}}) as learner:
        with pytest.raises(ValueError, match=r"rows\[20\] has no id"):
            learner.learn_many(rows(), event_ids=map(str, range(20)))
        assert learner.report()["learned"] == 16, "the commit before"
        assert len(learner.learn_many(rows(), event_ids=map(str, count()))) == 40


def test_values_of_numpy_are_numbers_and_what_is_none_is_refused_by_name(state: Path) -> None:
    with online.Learner(model(), state) as learner:
        x = {"x": np.float32(0.5), "y": np.int64(2), "z": np.bool_(True)}
        assert learner.learn_one(x, np.bool_(True)).status == "learned"
        assert learner.predict_one(x) in (True, False)
        for wrong in (math.nan, np.float64("nan"), np.inf):
            with pytest.raises(NotANumber, match=r"features\.y is (nan|inf)"):
                learner.learn_one({"x": 1.0, "y": wrong}, True)
        with pytest.raises(RequestError, match="a number is needed") as error:
            learner.learn_one({"x": "red"}, True)
        assert error.value.field == "features.x"
        assert any("numbers only" in note for note in error.value.__notes__)
        assert learner.report()["learned"] == 1


def test_a_folder_of_before_goes_on_with_the_scaler_that_it_began_with(state: Path) -> None:
    """The limited scaler is for models that begin: nothing is learned anew, nothing is refused."""
    told: dict[str, Any] = {"task": "binary", "filters": "none"}
    with online.Learner("logreg", state, params={"scale": "plain"}, **told) as learner:
        for x, y in rows():
            learner.learn_one({**x, "far": 1e6 if x["y"] == 0.75 else x["y"]}, y)
        answer = learner.predict_proba_one({"x": 1.0, "y": 0.5, "far": 40.0})
    said: list[str] = []
    with online.Learner("logreg", state, say=said.append, **told) as learner:
        again = learner.predict_proba_one({"x": 1.0, "y": 0.5, "far": 40.0})
        assert again == pytest.approx(answer, rel=0, abs=1e-12)
        assert learner.learn_one({"x": 1.0, "y": 0.5, "far": 0.5}, True).status == "learned"
    assert any("goes on with `scale: plain`" in line for line in said)
    with pytest.raises(StartRefused, match="settings have changed"):
        online.Learner("logreg", state, params={"scale": "limited"}, **told)


def test_a_model_that_was_renamed_and_a_key_that_is_gone_are_said(state: Path) -> None:
    def lines(name: str) -> list[str]:
        """What a start says of what it does not find."""
        said: list[str] = []
        with online.Learner(model(), state, name=name, say=said.append) as learner:
            learner.learn_one({"x": 1.0}, True)
        return [
            line for line in said if "was served from" in line or "a new one was created" in line
        ]

    assert lines("spam") == []
    (said,) = lines("mail")
    assert "model spam was served from this state before, which has 1 event of it" in said
    assert lines("mail") == [], "once"
    (state / "key").unlink()
    (said,) = lines("mail")
    assert f"{state / 'key'} was missing" in said


def test_it_works_in_a_notebook_and_a_second_one_on_the_folder_closes_the_first(
    state: Path,
) -> None:
    async def cell() -> float:
        first = online.Learner(model(), state)
        await asyncio.gather(*(asyncio.to_thread(first.learn_one, x, y) for x, y in rows()))
        with online.Learner(model(), state) as second:
            with pytest.raises(StartRefused, match="the service is stopped"):
                first.predict_one({"x": 1.0})
            assert "closed" in repr(first)
            return float(second.report()["learned"])

    assert asyncio.run(cell()) == 40


def test_a_start_that_fails_leaves_nothing_open(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failed(self: ModelReplica) -> None:
        await begun(self)
        raise StartRefused("it does not start", "Try again")

    begun, opened = ModelReplica.start, list[int]()
    monkeypatch.setattr(ModelReplica, "start", failed)
    for _ in range(2):
        with pytest.raises(StartRefused, match="it does not start"):
            online.Learner(model(), state)
        opened.append(len(os.listdir("/proc/self/fd")))
    assert opened[0] == opened[1]


def test_a_closed_learner_is_not_kept(state: Path) -> None:
    learner = online.Learner(model(), state)
    kept = weakref.ref(learner)
    learner.close()
    del learner
    gc.collect()
    assert kept() is None


def test_a_service_takes_the_folder_over_and_gives_it_back(state: Path) -> None:
    with online.Learner(model(), state, name="clicks") as learner:
        learner.learn_many(rows(), event_ids=map(str, range(40)))
        before = learner.predict_proba_one({"x": 1.0})
        with pytest.raises(StartRefused, match="in use by another service"):
            online.serve(model(), name="clicks", state_dir=state, say=_quiet)
    with online.serve(model(), name="clicks", state_dir=state, say=_quiet) as service:
        shown = service.client.predict("clicks", {"x": 1.0}).probabilities
        assert shown == pytest.approx(before, abs=1e-12)
        service.client.feedback("clicks", True, features={"x": 1.0}, event_id="http")
    with online.Learner(model(), state, name="clicks") as learner:
        assert learner.learn_one({"x": 1.0}, True, event_id="http").duplicate
        assert learner.report()["learned"] == 41


def test_another_model_is_refused_or_learns_the_journal(state: Path) -> None:
    with online.Learner(model(), state) as learner:
        learner.learn_many(rows())
    with pytest.raises(StartRefused, match="code or settings have changed"):
        online.Learner(model(lr=0.5), state)
    said: list[str] = []
    with online.Learner(model(lr=0.5), state, relearn=True, say=said.append) as learner:
        assert learner.report()["learned"] == 40
    assert "model model: learned 40 events again" in said
    with pytest.raises(ConfigError, match="replicas"):
        online.Learner(model(), state, settings={"replicas": 2})


def test_the_lines_of_the_page_run(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "embedded.md").read_text(encoding="utf-8")
    lines = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)[1]
    script = f"{lines}\nimport sys\nprint(*sorted(HEAVY & set(sys.modules)))".replace(
        "HEAVY", "{'fastapi', 'uvicorn', 'starlette', 'ray', 'torch'}"
    )
    for status in ("learned", "duplicate"):
        ended = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=240,
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        )  # fmt: skip
        assert (ended.returncode, ended.stderr) == (0, "")
        said, imported = ended.stdout.splitlines()
        assert said.startswith(f"{status} <model: version")
        assert "learned 2," in said
        assert imported == ""


def _quiet(_: str) -> None:
    """Say nothing about the start."""


# -- in the tests of others ------------------------------------------------------------------------

THEIRS = """
from river import linear_model


def test_clicks(online_service):
    service = online_service(linear_model.LogisticRegression(), name="clicks", say=lambda _: None)
    asked = service.model.predict({"x": 1.0})
    assert service.model.feedback(True, id=asked.id).status == "learned"
    again = online_service(linear_model.LogisticRegression(), name="clicks", say=lambda _: None)
    assert again.model.status()["learned"] == 1


def test_others(online_service, tmp_path):
    service = online_service(linear_model.LogisticRegression(), name="clicks", say=lambda _: None)
    assert service.model.status()["learned"] == 0
    assert service.state_dir.is_relative_to(tmp_path)


def test_nothing_is_left():
    import threading

    assert not [t.name for t in threading.enumerate() if t.name.startswith("online")]
"""
LIGHT = """
import sys

def test_nothing():
    heavy = {"river", "numpy", "httpx", "pydantic", "msgspec", "fastapi", "ray"} & set(sys.modules)
    assert not heavy
"""


@pytest.mark.parametrize("text", [THEIRS, LIGHT])
def test_the_fixture_serves_in_tests_and_costs_other_runs_nothing(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "test_theirs.py").write_text(text)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "online.service.pytest_plugin", "-p",
         "no:cacheprovider", "-p", "no:hypothesispytest", str(tmp_path)],
        capture_output=True, text=True, timeout=240, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout


def test_pytest_finds_the_fixture_by_itself() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name = "online.service.pytest_plugin"  # as `-p` names it: it is not registered twice then
    assert project["entry-points"]["pytest11"] == {name: name}


# -- kills -----------------------------------------------------------------------------------------

# Sums are exact: with averages an adopted row would count as one of another replica.
COUNTED: dict[str, Any] = {"task": "regression", "filters": "none", "sync": {"merge": "sum"}}
NURSERY = """
import os, random, sys
from benchmarks.fixtures.learners import COUNT_LABEL, counting
import online.service.library, online.learning.merged  # before the forks: a start is short then
import online

COUNTED = {"task": "regression", "filters": "none", "sync": {"merge": "sum"}}
state = sys.argv[1]
for line in sys.stdin:  # number of the first event
    pid = os.fork()
    if pid:
        os.write(1, b"pid %d\\n" % pid)
        os.waitpid(pid, 0)
        os.write(1, b"ended\\n")
        continue
    draw = random.Random(int(line))
    with online.Learner(counting, state, **COUNTED) as learner:
        for i in range(int(line), 10**9):
            for repeated in (i, draw.randrange(i + 1))[: 1 + (draw.random() < 0.2)]:
                x = {f"e{repeated}": 1.0}
                assert learner.learn_one(x, COUNT_LABEL, event_id=f"e{repeated}").seen
            os.write(1, b"%d\\n" % i)
"""


def _killed(out: IO[str], after: int) -> list[int]:
    """Kill the process that learns once it has said so many events; all that it has said."""
    pid = int(out.readline().removeprefix("pid "))
    said = [int(out.readline()) for _ in range(after)]
    os.kill(pid, signal.SIGKILL)
    said += [int(line) for line in iter(out.readline, "ended\n")]
    return said


@pytest.mark.parametrize("rounds", [5, pytest.param(100, marks=pytest.mark.long)])
def test_what_was_answered_is_learned_exactly_once_whenever_it_is_killed(
    state: Path, rounds: int
) -> None:
    draw = random.Random(rounds)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    answered: set[int] = set()
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=environment,
    ) as nursery:  # fmt: skip
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        for i in range(rounds):
            first = max(answered, default=-1) + 1
            print(first, file=nursery.stdin, flush=True)
            # Some die while they start, and some in their first commits.
            answered |= set(_killed(nursery.stdout, 0 if i % 5 == 4 else draw.randrange(1, 60)))
        nursery.stdin.close()
        assert nursery.wait(240) == 0
    with online.Learner(counting, state, **COUNTED) as learner:

        def times(events: Iterable[int]) -> list[float]:
            none = learner.predict_one({"stranger": 1.0})
            return [(learner.predict_one({f"e{i}": 1.0}) - none) / STEP for i in events]

        assert times(answered) == [1.0] * len(answered)
        ends = max(answered) + 2  # the one that nobody was told of may be learned
        for i in range(ends):  # a client sends again what was not answered
            assert learner.learn_one({f"e{i}": 1.0}, COUNT_LABEL, event_id=f"e{i}").seen
        assert times(range(ends)) == [1.0] * ends
        assert learner.report()["learned"] == ends
