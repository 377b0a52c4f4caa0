"""Which settings need a restart, which a replacement; which nodes a journal can be shared by."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from online.errors import StartRefused
from online.service.on_ray import origin
from online.service.on_ray.origin import Origin
from online.service.on_ray.rollout import absent, application, reason
from online.service.on_ray.start_checks import check_nodes
from online.service.state.changes import Changes, changes
from online.settings.config import Settings, load

MODEL: dict[str, Any] = {"name": "m", "task": "binary", "learner": "logreg"}
REDIS = "redis://:secret@127.0.0.1:6379/0"


def settings(tmp_path: Path, **data: Any) -> Settings:
    return load(None, {"state_dir": str(tmp_path), "models": [MODEL], **data}, {})


def test_equal_settings_change_nothing(tmp_path: Path) -> None:
    assert changes(settings(tmp_path), settings(tmp_path)) == Changes((), (), False)


TOKENS = {role: f"{role}-{'0' * 24}" for role in ("predict", "feedback", "admin")}


def test_a_file_that_was_cut_before_its_tokens_does_not_open_a_running_service(
    tmp_path: Path,
) -> None:
    closed, opened = settings(tmp_path, tokens=TOKENS), settings(tmp_path)
    assert changes(closed, opened).restart == ("to be without tokens",)
    assert changes(opened, closed) == Changes((), ("tokens",), False)
    other = settings(tmp_path, tokens={**TOKENS, "predict": "x" * 24})
    assert changes(closed, other) == Changes((), (), False, renewed=("tokens",))
    bound = settings(tmp_path, tokens={**TOKENS, "feedback": [{"source": "a", "token": "x" * 24}]})
    assert changes(closed, bound) == Changes((), ("tokens",), False), "now the filters trust names"


def test_a_standstill_is_judged_by_the_owner_so_no_replica_is_replaced(tmp_path: Path) -> None:
    never = settings(tmp_path, limits={"standstill_s": None})
    assert changes(settings(tmp_path), never) == Changes((), (), False, ("limits.standstill_s",))


def test_the_number_of_replicas_only_scales(tmp_path: Path) -> None:
    found = changes(settings(tmp_path, replicas=1), settings(tmp_path, replicas=3))
    assert found == Changes((), (), True)


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ({"sync": {"updates": 8}}, "sync"),
        ({"token_lifetime": "1h"}, "token_lifetime"),
        ({"label_wait": "5s"}, "label_wait"),
        ({"snapshots": {"interval_s": 3}}, "snapshots"),
    ],
)
def test_what_replicas_know_from_their_start_replaces_them(
    tmp_path: Path, model: dict[str, Any], field: str
) -> None:
    found = changes(settings(tmp_path), settings(tmp_path, models=[{**MODEL, **model}]))
    assert found == Changes((), (f"models.m.{field}",), False)


@pytest.mark.parametrize(
    ("name", "data"), [("limits", {"rows_max": 5}), ("telemetry", {"access_log": 0.1})]
)
def test_what_is_of_all_models_replaces_replicas(
    tmp_path: Path, name: str, data: dict[str, Any]
) -> None:
    found = changes(settings(tmp_path), settings(tmp_path, **{name: data}))
    assert found == Changes((), (name,), False)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"port": 8001}, "port"),
        ({"journal": REDIS}, "journal"),
        ({"journal_prefix": "other"}, "journal_prefix"),
        ({"snapshot_dir": "s3://bucket/x"}, "snapshot_dir"),
        ({"cluster": "auto"}, "cluster"),
        ({"key_file": "other"}, "key_file"),
        ({"models": [{**MODEL, "learner": "other.py:build"}]}, "models.m.learner"),
        ({"models": [{**MODEL, "params": {"lr": 1}}]}, "models.m.params"),
        ({"models": [{**MODEL, "task": "multiclass"}]}, "models.m.task"),
    ],
)
def test_what_only_a_restart_changes(tmp_path: Path, data: dict[str, Any], name: str) -> None:
    found = changes(settings(tmp_path), settings(tmp_path, **data))
    assert found == Changes((name,), (), False)


def test_models_are_added_and_removed_by_replacing_replicas(tmp_path: Path) -> None:
    one, two = settings(tmp_path), settings(tmp_path, models=[{**MODEL, "name": "n"}, MODEL])
    other = settings(tmp_path, models=[{**MODEL, "name": "n"}])
    assert changes(one, two) == Changes((), (), False, added=("n",))
    assert changes(two, one) == Changes((), (), False, removed=("n",))
    assert changes(one, other) == Changes((), (), False, added=("n",), removed=("m",))
    assert all(changes(*both).replaces for both in ((one, two), (two, one), (one, other)))
    assert not changes(one, settings(tmp_path, replicas=3)).replaces
    changed = settings(tmp_path, models=[{**MODEL, "name": "n"}, {**MODEL, "task": "multiclass"}])
    assert changes(two, changed) == Changes(("models.m.task",), (), False)


def test_a_change_of_the_state_folder_needs_a_restart(tmp_path: Path) -> None:
    found = changes(settings(tmp_path / "a"), settings(tmp_path / "b"))
    assert "state_dir" in found.restart


def test_thereason_of_a_replica_that_does_not_start_is_found() -> None:
    said = (
        "The deployment failed to start 3 times in a row. Error:\nTraceback (most recent call "
        'last):\n  File "x.py", line 1, in y\nonline.errors.StartRefused: model m: changed\n'
        "Restart the service\n"
    )
    assert reason(said) == "online.errors.StartRefused: model m: changed"
    assert reason("one line") == "one line"


def test_a_reason_stands_until_serve_says_that_nothing_is_wrong() -> None:
    said = "A replica failed to start with exception. Retrying. Error:\nValueError: broken"
    known = absent("UNHEALTHY", said, None)
    assert known == "ValueError: broken"
    health = "A replica's health check failed. This deployment will be UNHEALTHY until ..."
    assert absent("UNHEALTHY", health, known) == known
    assert absent("UNHEALTHY", health, None) is None
    assert absent("UNHEALTHY", said.replace("broken", "other"), known) == "ValueError: other"
    assert absent("HEALTHY", "", known) is None
    assert absent("UPDATING", "", known) is None, "another deployment has begun"


# -- nodes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [{}, {"journal": REDIS}, {"snapshot_dir": "s3://bucket/x"}])
def test_one_node_takes_everything(tmp_path: Path, data: dict[str, Any]) -> None:
    check_nodes(settings(tmp_path, **data), ["a"])


def test_several_nodes_with_sqlite_are_refused(tmp_path: Path) -> None:
    for data in ({}, {"snapshot_dir": "s3://bucket/x"}):
        with pytest.raises(StartRefused, match="2 nodes") as caught:
            check_nodes(settings(tmp_path, **data), ["a", "b"])
        assert "journal: redis://" in caught.value.remedy
        assert "snapshot_dir" in caught.value.remedy


def test_several_nodes_need_snapshots_that_all_of_them_see(tmp_path: Path) -> None:
    for data in ({}, {"snapshot_dir": str(tmp_path)}):
        with pytest.raises(StartRefused, match="would not find them") as caught:
            check_nodes(settings(tmp_path, journal=REDIS, **data), ["a", "b", "c"])
        assert "snapshot_dir: s3://" in caught.value.remedy
        assert "secret" not in str(caught.value)
    for place in ("s3://bucket/x", "file:///mnt/shared"):
        check_nodes(settings(tmp_path, journal=REDIS, snapshot_dir=place), ["a", "b", "c"])


# -- a replica compares itself with the service ------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    """From now on this is another machine."""

    def move() -> None:
        other = SimpleNamespace(gethostname=lambda: "elsewhere")
        monkeypatch.setattr("online.service.on_ray.origin.socket", other)

    return move


def test_a_replica_on_the_same_machine_is_taken(tmp_path: Path) -> None:
    origin = Origin.here(settings(tmp_path), {"m": "ab"})
    pickle.loads(pickle.dumps(origin)).check_place(settings(tmp_path))
    origin.check_spec("m", "ab")


def test_a_replica_of_other_code_is_refused(tmp_path: Path) -> None:
    origin = Origin.here(settings(tmp_path), {"m": "ab"})
    with pytest.raises(StartRefused, match="changed since") as caught:
        origin.check_spec("m", "cd")
    assert "--relearn" in caught.value.remedy


def test_a_replica_on_another_machine_needs_redis_and_the_same_keys(
    tmp_path: Path, elsewhere: Any
) -> None:
    local = settings(tmp_path)
    shared = settings(tmp_path, journal=REDIS)
    origin = Origin.here(local, {"m": "ab"})
    elsewhere()
    with pytest.raises(StartRefused, match="SQLite journal is on"):
        origin.check_place(local)
    origin.check_place(shared)  # the same key file
    other = settings(tmp_path / "other", journal=REDIS)
    with pytest.raises(StartRefused, match="is not the key file"):
        origin.check_place(other)
    assert not other.key_path.exists(), "a node makes no keys of its own"
    (tmp_path / "other").mkdir()
    Origin.here(settings(tmp_path / "other"), {})  # makes another key
    with pytest.raises(StartRefused, match="is not the key file"):
        origin.check_place(other)


@pytest.mark.parametrize(
    ("file", "noticed"),
    [
        ("replay/journal/redis/lua/append.lua", True),
        ("replay/journal/redis/journal.py", True),
        ("online/http/page.html", True),
        ("replay/journal/notes.txt", False),
    ],
)
def test_a_reload_notices_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, noticed: bool
) -> None:
    """Scripts of a journal in Redis are code, too: replicas read them at their start."""
    monkeypatch.setattr(
        origin, "__file__", str(tmp_path / "online" / "service" / "on_ray" / "origin.py")
    )
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text("as it was")
    before = origin.code_hash()
    assert before == origin.code_hash()
    path.write_text("as it is now")
    assert (origin.code_hash() != before) is noticed


def test_each_deployment_has_an_option_of_its_own(tmp_path: Path) -> None:
    """Otherwise Serve keeps the old arguments, and gives them to the replicas that it restarts."""

    class Replica: ...

    def queued(version: int) -> int:
        given = Origin("host", "key", {})
        made = application(Replica, settings(tmp_path), given, version)._bound_deployment
        return int(made._deployment_config.max_queued_requests)

    first, second, third = queued(0), queued(0), queued(1)
    assert first != second != third
