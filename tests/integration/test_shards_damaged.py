"""The files of one of several parameter servers are gone, damaged, or another one's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import online
from benchmarks.fixtures.learners import COUNT_LABEL
from online.errors import StartRefused
from online.rebuild.fsck import Findings, check
from online.service.state import beginning
from online.settings import config
from paramserver.process import lineage

NAMES = [f"k{i}" for i in range(60)]
OF_MODEL: dict[str, Any] = {
    "sync": {"merge": "sum"}, "filters": "none", "shards": 2, "snapshots": {"interval_s": 0.1},
}  # fmt: skip


def serve(state: Path, **how: Any) -> online.Learner:
    return online.Learner(
        "benchmarks.fixtures.learners:counting",
        state,
        task="regression",
        name="m",
        **OF_MODEL,
        **how,
    )


def counts(learner: online.Learner) -> set[float]:
    """How often the events count that each have a name of their own."""
    base = float(learner.predict_one({"never": 1.0}) or 0.0)
    found = (float(learner.predict_one({name: 1.0}) or 0.0) for name in NAMES)
    return {(value - base) * 2**10 for value in found}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which both shards have two snapshots."""
    state = tmp_path_factory.mktemp("taught") / "state"
    for part in (NAMES[:30], NAMES[30:]):
        with serve(state) as learner:
            for name in part:
                learner.learn_one({name: 1.0}, COUNT_LABEL)
    return state


@pytest.fixture
def state(taught: Path, tmp_path: Path) -> Path:
    state = tmp_path / "state"
    shutil.copytree(taught, state)
    return state


def fsck(state: Path) -> Findings:
    model = {"name": "m", "task": "regression", "learner": "benchmarks.fixtures.learners:counting"}
    given = {"state_dir": str(state), "cluster": "embedded", "models": [{**model, **OF_MODEL}]}
    return check(config.load(None, given, {}), "m")


def files(state: Path, shard: str) -> list[Path]:
    """Snapshots, the newest last."""
    found = (state / "snapshots" / shard).rglob("*.snapshot")
    return sorted(found, key=lambda file: [int(n) for n in re.findall(r"\d+", file.stem)])


def test_fsck_names_the_shard_that_can_not_start_and_relearn_mends_it(state: Path) -> None:
    assert fsck(state).good
    shutil.rmtree(state / "snapshots" / "+1")
    found = fsck(state)
    assert not found.good
    assert "m, shard 1: NOT GOOD" in str(found), str(found)
    with pytest.raises(StartRefused, match="no snapshot of 'm' can be used"):
        serve(state)
    for _ in range(2):
        with serve(state, relearn=True) as learner:
            assert counts(learner) == {1.0}
    assert (found := fsck(state)).good, str(found)
    with serve(state) as learner:
        assert counts(learner) == {1.0}
    with serve(state, fresh=True) as learner:
        assert counts(learner) == {0.0}
        assert learner.learn_one({NAMES[0]: 1.0}, COUNT_LABEL).status == "learned"
    assert (found := fsck(state)).good, str(found)


def test_another_shards_snapshot_is_none_of_its_own(state: Path) -> None:
    """A backup that was put back by hand: half of the model's keys would be gone in silence."""
    others, own = files(state, "+1")[-1], files(state, "m")[-1]
    others.unlink()
    shutil.copy(own, others)
    said = str(fsck(state))
    assert "has keys of shard 0, and this is shard 1" in said, said
    with serve(state) as learner:
        assert counts(learner) == {1.0}
        refused = learner.report()["server"]["refused"]
        assert f"+1/{others.stem}" in refused, refused


@pytest.mark.parametrize("whole", [0, 1])
def test_beginning_anew_that_was_interrupted_is_no_state(
    state: Path, monkeypatch: pytest.MonkeyPatch, whole: int
) -> None:
    """After the decision some servers have begun with nothing, and the others have not."""

    class Killed(BaseException):
        """The death of the process that starts."""

    published: list[str] = []

    def publish(*given: Any) -> str:
        if len(published) == whole:
            raise Killed
        published.append(lineage.publish(*given))
        return published[-1]

    monkeypatch.setattr(beginning, "publish", publish)
    with pytest.raises(Killed):
        serve(state, fresh=True)
    monkeypatch.undo()
    assert "begin anew, and that was interrupted" in str(fsck(state))
    with pytest.raises(StartRefused, match="give the command again"):
        serve(state)
    with serve(state, fresh=True) as learner:
        assert counts(learner) == {0.0}
