"""The whole service in this process, without Ray: the same promises on the same state folder."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from river import linear_model, optim, preprocessing, tree

import online
from benchmarks.fixtures.service import launch, settle, write_settings
from online.client import Client, ServiceRefused
from online.errors import ConfigError, StartRefused
from online.models.errors import LearnerUnusable
from online.service.embedded import Embedded
from online.service.state.check_state import Models
from online.settings.config import load

HERE = Path(__file__).parent


def quiet(_: str) -> None:
    """Say nothing."""


def model(lr: float = 0.1) -> Any:
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(lr))


def teach(service: Embedded, name: str, rows: int = 30) -> None:
    for i in range(rows):
        service.client.feedback(name, i % 3 > 0, features={"x": float(i % 3), "y": i / rows})


def answers_of(client: Client, name: str) -> dict[str, float]:
    """The shares in five answers."""
    rows = [{"x": float(i), "y": 1.0 - i / 4} for i in range(5)]
    found = [client.predict(name, x).probabilities or {} for x in rows]
    return {f"{i} {label}": one[label] for i, one in enumerate(found) for label in one}


def answers(service: Embedded, name: str) -> dict[str, float]:
    return answers_of(service.client, name)


def close_to(expected: dict[str, float]) -> Any:
    """What was added up in another order, or in other pieces, may differ in the last digits."""
    return pytest.approx(expected, rel=0, abs=1e-12)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A folder of states; nothing of a service outlives the test."""
    yield tmp_path / "state"
    left = [t.name for t in threading.enumerate() if t.name.startswith(("online", "parameter"))]
    assert left == []


def test_answers_say_how_sure_they_are_and_go_on_so_after_a_restart(state: Path) -> None:
    given = {"name": "clicks", "state_dir": state, "say": quiet, "confidence": 0.9}
    with online.serve(model(), **given) as service:
        for i in range(40):
            asked = service.client.predict("clicks", {"x": float(i % 2)})
            assert asked.label_set
            service.client.feedback("clicks", i % 2 > 0, id=asked.id)
        found = service.client.status("clicks")["confidence"]
        assert (found["level"], found["n"]) == (0.9, 40)
        assert found["coverage"] >= 0.9
        with urllib.request.urlopen(f"{service.url}/metrics") as answer:
            assert b'online_confidence_coverage{model="clicks"}' in answer.read()
        many = service.client.predict_many("clicks", [{"x": 0.0}, {"x": 1.0}])
        assert [row.label_set for row in many.predictions] == [[False], [True]]
    with online.serve(model(), **given) as service:
        assert service.client.status("clicks")["confidence"] == found


def test_an_answer_is_explained_by_what_each_feature_has_added(state: Path) -> None:
    with online.serve(model(), name="clicks", state_dir=state, say=quiet) as service:
        teach(service, "clicks")
        said = service.client.predict("clicks", {"x": 2.0, "y": 0.5}, explain=True)
        why, shares = said.explanation, said.probabilities
        assert [round(why.contributions[name], 3) for name in "xy"] == [1.098, 0.023]  # docs/why.md
        assert isinstance(shares, dict)
        assert why.of is said.prediction is True
        assert (why.exact, list(why.contributions)) == (True, ["x", "y"])
        total = why.base + sum(why.contributions.values())
        assert total == pytest.approx(math.log(shares["true"] / shares["false"]), abs=1e-9)
        many = {f"f{i}": 1.0 for i in range(257)}
        with pytest.raises(ServiceRefused, match="at most 256 are explained"):
            service.client.predict("clicks", many, explain=True)


def test_an_object_is_served_learns_and_is_there_again_after_a_restart(state: Path) -> None:
    given = model()
    with online.serve(given, name="clicks", state_dir=state, say=quiet) as service:
        asked = service.client.predict("clicks", {"x": 1.0})
        assert asked.probabilities == {"false": 0.5, "true": 0.5}
        receipt = service.client.feedback("clicks", True, id=asked.id)
        assert receipt.status == "learned"
        assert service.client.predict("clicks", {"x": 1.0}, after=receipt.seen).includes
        teach(service, "clicks")
        before = answers(service, "clicks")
        status = service.client.status("clicks")
        assert (status["learned"], len(status["replicas"]), status["incident"]) == (31, 1, None)
    assert not service.alive()
    assert not (state / "run.json").exists()
    assert given["LogisticRegression"].weights == {}  # what is served is a copy
    lines: list[str] = []
    with online.serve(model(), name="clicks", state_dir=state, say=lines.append) as service:
        assert answers(service, "clicks") == close_to(before)
        assert service.client.status("clicks")["learned"] == 31
    assert any(f"the state stored in {state} serves, not what the object" in x for x in lines), (
        lines
    )


def test_a_snapshot_has_what_was_answered_before_it_was_asked_for(state: Path) -> None:
    with online.serve(model(), name="clicks", state_dir=state, say=quiet) as service:
        clicks = service.model
        for i in range(10):
            assert clicks.feedback(i % 2 == 0, features={"x": float(i)}).status == "learned"
            good = clicks.snapshot()["name"]
            before = answers(service, "clicks")
            assert clicks.feedback(True, features={"x": 7.0}).status == "learned"
            assert clicks.rollback(good)["undone"] == 1
            assert clicks.status()["learned"] == i + 1
            assert answers(service, "clicks") == close_to(before)


def test_a_repeat_of_an_event_is_known_after_a_restart(state: Path) -> None:
    for duplicate in (False, True):
        with online.serve(model(), state_dir=state, say=quiet) as service:
            receipt = service.client.feedback("model", True, features={"x": 1.0}, event_id="a")
            assert receipt.duplicate is duplicate
            assert service.client.status("model")["learned"] == 1


def test_a_second_service_of_the_name_replaces_the_first(state: Path) -> None:
    first = online.serve(model(), name="cell", state_dir=state, say=quiet)
    teach(first, "cell")
    before = answers(first, "cell")
    with online.serve(model(), name="cell", state_dir=state, say=quiet) as second:
        assert not first.alive()
        assert answers(second, "cell") == close_to(before)
    with online.serve(model(), name="cell", state_dir=state, say=quiet) as third:
        assert third.client.status("cell")["learned"] == 30
        with pytest.raises(StartRefused, match="in use by another service"):
            online.serve(model(), name="other", state_dir=state, say=quiet)
        assert answers(third, "cell") == close_to(before)


def test_services_of_two_names_run_side_by_side(state: Path) -> None:
    with (
        online.serve(model(), name="a", state_dir=state / "a", say=quiet) as a,
        online.serve(model(), name="b", state_dir=state / "b", say=quiet) as b,
    ):
        teach(a, "a", 10)
        teach(b, "b", 20)
        assert a.client.status("a")["learned"] == 10
        assert b.client.status("b")["learned"] == 20
        a.stop()
        assert b.client.feedback("b", True, features={"x": 1.0}).status == "learned"


def pushed(service: Embedded) -> None:
    """Wait until the server has all rows: a snapshot has those, and a rollback undoes those."""
    while service.model.predict({"x": 1.0}).own:
        assert service.alive()
        time.sleep(0.005)


def test_operators_work_by_the_client(state: Path) -> None:
    with online.serve(model(), name="clicks", state_dir=state, say=quiet) as service:
        clicks = service.model
        teach(service, "clicks")
        pushed(service)
        before = answers(service, "clicks")
        snapshot = clicks.snapshot(pin=True)["name"]
        assert clicks.snapshots()[0]["pinned"]
        receipt = clicks.feedback(True, features={"x": 9.0}, event_id="later")
        assert clicks.predict({"x": 9.0}, after=receipt.seen, until_included=True).includes
        pushed(service)
        assert clicks.rollback(snapshot)["undone"] == 1
        assert answers(service, "clicks") == close_to(before)
        assert [one["event_id"] for one in clicks.events("undone")["events"]] == ["later"]
        assert clicks.freeze()["complete"]
        assert clicks.feedback(True, features={"x": 9.0}).status == "frozen"
        assert clicks.unfreeze()["complete"]
        assert clicks.ban("bot")["complete"]
        kept = clicks.feedback(True, features={"x": 9.0}, event_id="b", source="bot")
        assert kept.status == "quarantined"
        (aside,) = clicks.quarantine(source="bot")["events"]
        assert clicks.release([aside["row"]])["released"] == 1
        assert clicks.relearn("undone")["learned"] == 1
        with pytest.raises(ServiceRefused, match="no challenger"):
            clicks.promote()
        assert "clicks (binary)" in clicks._repr_html_()
        assert "clicks (binary)" in service._repr_html_()


def test_tokens_and_other_settings_of_the_service_are_taken(state: Path) -> None:
    token = "t" * 24
    given = {"tokens": {role: [token] for role in ("predict", "feedback", "admin")}}
    with online.serve(model(), state_dir=state, settings=given, say=quiet) as service:
        assert service.client.feedback("model", True, features={"x": 1.0}).status == "learned"
        with pytest.raises(ServiceRefused, match="token"), Client(service.url) as stranger:
            stranger.predict("model", {"x": 1.0})
    with pytest.raises(ConfigError, match="replicas"):
        online.serve(model(), state_dir=state, settings={"replicas": 2}, say=quiet)


def test_it_runs_beside_the_event_loop_of_a_notebook(state: Path) -> None:
    async def cell() -> float:
        with online.serve(model(), state_dir=state, say=quiet) as service:
            receipt = await asyncio.to_thread(
                service.client.feedback, "model", True, features={"x": 1.0}
            )
            assert receipt.status == "learned"
            return float(service.client.status("model")["learned"])  # blocks this loop, not its own

    assert asyncio.run(cell()) == 1


def test_another_structure_is_refused_and_begins_anew_if_asked(state: Path) -> None:
    with online.serve(model(), state_dir=state, say=quiet) as service:
        teach(service, "model")
    with pytest.raises(StartRefused, match="code or settings have changed") as refused:
        online.serve(model(lr=0.5), state_dir=state, say=quiet)
    assert "--relearn" in str(refused.value)
    with online.serve(model(lr=0.5), state_dir=state, relearn=True, say=quiet) as service:
        assert service.client.status("model")["learned"] == 30


def test_what_needs_other_processes_is_refused_with_the_remedy(tmp_path: Path) -> None:
    one = {"name": "a", "task": "binary", "learner": "logreg"}
    for service, of_model, field in (
        ({"replicas": 2}, {}, "replicas"),
        ({"replicas": {"min": 1, "max": 4}}, {}, "replicas"),
        ({}, {"challenger": {"learner": "softmax"}}, "models.a.challenger"),
        ({}, {"learn": "background"}, "models.a.learn"),
        ({}, {"sync": {"merge": "overlay"}}, "models.a.sync.merge"),
        ({}, {"drift": {"on_rise": "relearn"}}, "models.a.drift.on_rise"),
        ({}, {"triggers": {"every": 1000}}, "models.a.triggers.every"),
    ):
        data = {"cluster": "embedded", "models": [{**one, **of_model}], **service}
        with pytest.raises(ConfigError, match="cluster: local") as refused:
            load(None, data, {})
        assert refused.value.field == field
        load(None, {**data, "cluster": "local"}, {})
    assert load(None, {"cluster": "embedded", "models": [one]}, {}).replicas == 1
    assert load(None, {"models": [one]}, {}).replicas == 2


def test_a_model_for_several_tasks_needs_one(state: Path) -> None:
    with pytest.raises(ConfigError, match="multiclass"):
        online.serve(tree.HoeffdingTreeClassifier(), state_dir=state, say=quiet)
    made = tree.HoeffdingTreeClassifier()
    with online.serve(made, task="multiclass", state_dir=state, say=quiet) as service:
        service.client.feedback("model", "red", features={"x": 1.0})
        assert service.client.predict("model", {"x": 1.0}).prediction == "red"
    with online.serve(made, task="multiclass", state_dir=state, say=quiet) as service:
        assert service.client.predict("model", {"x": 1.0}).prediction == "red"


def test_films_are_rated_by_a_factorization_machine_over_http(state: Path) -> None:
    given: dict[str, Any] = {"name": "stars", "task": "regression", "state_dir": state}
    rows = [{"user": f"u{i % 5}", "film": f"f{i % 7}"} for i in range(35)]
    with online.serve("fm", **given, say=quiet) as service:
        for x in rows:
            service.client.feedback("stars", float(x["user"] < "u2"), features=x)
        found = [service.client.predict("stars", x).prediction for x in rows]
        assert min(found[:2]) > max(found[2:5])
        again = service.client.predict("stars", {**rows[0], "city": "new"})
        assert again.prediction == pytest.approx(found[0], rel=1e-9)
    with online.serve("fm", **given, say=quiet) as service:
        shown = [service.client.predict("stars", x).prediction for x in rows]
        assert shown == pytest.approx(found, rel=1e-9)


class Counting:
    """A class of one's own: answers how many rows it has learned."""

    def __init__(self) -> None:
        self.rows = 0

    def learn_one(self, x: dict[str, Any], y: float) -> None:
        self.rows += 1

    def predict_one(self, x: dict[str, Any]) -> float:
        return float(self.rows)


def test_a_class_of_ones_own_is_served(state: Path) -> None:
    for rows in (1, 2):
        with online.serve(Counting(), task="regression", state_dir=state, say=quiet) as service:
            receipt = service.client.feedback("model", 1.0, features={"x": 1.0})
            assert (
                service.client.predict("model", {"x": 0.0}, after=receipt.seen).prediction == rows
            )


def test_what_can_not_be_served_leaves_nothing_behind(state: Path) -> None:
    with pytest.raises(LearnerUnusable):
        online.serve(object(), task="binary", state_dir=state, say=quiet)
    with online.serve(model(), state_dir=state, say=quiet) as service:
        port = int(service.url.rpartition(":")[2])
        with pytest.raises(StartRefused, match="can't be listened on"):
            online.serve(model(), name="b", state_dir=state / "b", port=port, say=quiet)
    with online.serve(model(), name="b", state_dir=state / "b", say=quiet) as service:
        with urllib.request.urlopen(f"{service.url}/readyz") as answer:
            assert answer.status == 200
        assert json.loads((state / "b" / "run.json").read_text())["url"] == service.url


COLD = """
import time
import fastapi, uvicorn
from river import linear_model
import psutil
bare = psutil.Process().memory_full_info().pss
begun = time.monotonic()
import online
service = online.serve(linear_model.LogisticRegression(), name="clicks", state_dir=STATE)
asked = service.client.predict("clicks", {"x": 1.0})
answered = time.monotonic() - begun
service.client.feedback("clicks", True, id=asked.id)
more = (psutil.Process().memory_full_info().pss - bare) / 2**20
processes = 1 + len(psutil.Process().children(recursive=True))
learned = service.client.status("clicks")["learned"]
service.stop()
import sys, json
ray = sorted(name for name in sys.modules if name.partition(".")[0] == "ray")
print(json.dumps([answered, more, processes, learned, ray]))
"""


def test_a_fresh_process_serves_without_ray_and_without_other_processes(tmp_path: Path) -> None:
    """Prints the seconds to the first answer and the memory above that of the bare imports."""
    code = COLD.replace("STATE", repr(str(tmp_path / "state")))
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    answered, more, processes, learned, ray = json.loads(ended.stdout.splitlines()[-1])
    print(f"first answer after {answered:.2f} s, {more:.0f} MB above the imports")
    assert (processes, learned, ray) == (1, 1, [])


@pytest.mark.parametrize(
    ("document", "shown"),
    [("README.md", ", learned {}, score too few answers"), ("docs/embedded.md", " {}\n")],
)
def test_the_lines_of_the_documents_run(tmp_path: Path, document: str, shown: str) -> None:
    page = (HERE.parents[1] / document).read_text(encoding="utf-8")
    lines = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)[0]
    for learned in (1, 2):
        ended = subprocess.run(
            [sys.executable, "-c", lines], capture_output=True, text=True, timeout=240,
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(HERE.parents[1])}, check=False,
        )  # fmt: skip
        assert (ended.returncode, ended.stderr) == (0, "")
        assert shown.format(learned) in ended.stdout
    if document != "README.md":  # there nothing is stopped, and the journal is learned again
        assert "the state stored in" in ended.stdout
    assert (tmp_path / "online-state" / "clicks" / "journal.db").exists()


def test_a_file_is_served_from_the_shell(tmp_path: Path) -> None:
    """Twice, stopped by the signals that a shell and an operator send; then it is refused."""
    file = tmp_path / "clicks.py"
    file.write_text(MODEL_FILE + 'name = "taps"\n')
    for number, learned in ((signal.SIGINT, 0), (signal.SIGTERM, 30)):
        running = launch(tmp_path, "--port=0", f"--state-dir={tmp_path / 'state'}", file=file)
        with Client(running.url) as client:
            assert client.status("taps")["learned"] == learned
            for i in range(30):
                client.feedback("taps", i % 3 > 0, features={"x": float(i % 3)}, event_id=str(i))
        assert [p.pid for p in running.processes()] == [running.process.pid]
        running.process.send_signal(number)
        assert running.process.wait(240) == 0
        assert "its state is in snapshot" in (tmp_path / "serve.log").read_text()


MODEL_FILE = """
from river import linear_model, optim, preprocessing


def make():
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.1))
"""


def settings_of(folder: Path, **of_model: Any) -> dict[str, Any]:
    """A service that builds the model of this file's `model` from a file."""
    (folder / "model.py").write_text(MODEL_FILE)
    one = {"name": "clicks", "task": "binary", "learner": "model.py:make", **of_model}
    return {"models": [one], "state_dir": str(folder / "state"), "base_dir": str(folder)}


def test_other_code_takes_up_the_state_of_an_object_only_if_it_is_asked_to(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with online.serve(model(), name="clicks", state_dir=state, say=quiet) as service:
        teach(service, "clicks")
    checks = {"fresh": False, "relearn": False}
    with pytest.raises(StartRefused, match="state_of: structure"):
        Models(load(None, settings_of(tmp_path), {}), quiet).check(**checks)
    alike = settings_of(tmp_path, state_of="structure")
    assert "clicks" in Models(load(None, alike, {}), quiet).check(**checks)
    (tmp_path / "model.py").write_text(MODEL_FILE.replace("0.1", "0.2"))
    other = {**alike, "models": [{**alike["models"][0], "params": {}}]}
    with pytest.raises(StartRefused, match="code or settings have changed"):
        Models(load(None, other, {}), quiet).check(**checks)
    object_of_nobody = {**alike["models"][0], "learner": "object:absent"}
    with pytest.raises(LearnerUnusable, match=r"Write model\.py"):
        Models(load(None, {**alike, "models": [object_of_nobody]}, {}), quiet).load()


@pytest.mark.ray
def test_a_folder_goes_to_ray_and_back_by_a_start(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with online.serve(model(), name="clicks", state_dir=state, say=quiet) as service:
        teach(service, "clicks")
        before = answers(service, "clicks")
        asked = service.client.predict("clicks", {"x": 2.0})
        receipt = service.client.feedback("clicks", True, features={"x": 1.0}, event_id="once")
        again = answers(service, "clicks")
    assert (receipt.duplicate, again != before) == (False, True)
    write_settings(tmp_path, settings_of(tmp_path, state_of="structure"))
    running = launch(tmp_path)
    try:
        with Client(running.url) as client:
            assert answers_of(client, "clicks") == close_to(again)
            assert client.feedback("clicks", True, id=asked.id).status == "learned"
            twice = client.feedback("clicks", True, features={"x": 1.0}, event_id="once")
            assert twice.duplicate
        settle(running, "clicks", 32)
        with Client(running.url) as client:
            after = answers_of(client, "clicks")
    finally:
        running.stop()
    with online.serve(model(), name="clicks", state_dir=state, say=quiet) as service:
        assert answers(service, "clicks") == close_to(after)
        assert service.client.status("clicks")["learned"] == 32
        assert service.client.feedback("clicks", True, id=asked.id).duplicate
