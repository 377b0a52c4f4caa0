"""Settings: refused with the field, the value and the remedy; complete when printed."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from river.linear_model import LogisticRegression

from online.commands.setup.models import seal
from online.commands.setup.settings import config_check
from online.errors import ConfigError, StartRefused
from online.models.errors import LearnerUnusable
from online.settings.access_tokens import WITH_SECRETS
from online.settings.config import Settings, load
from online.settings.model import ModelSettings
from online.settings.places import journal_opener, open_journal, snapshots_path
from replay.journal.batch import Bounds

MODEL = {"name": "m", "task": "binary", "learner": "logreg"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "online.yaml"


def loaded(
    file: Path, data: Any, environ: Mapping[str, str] | None = None, **overrides: Any
) -> Settings:
    file.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return load(file, overrides, environ or {})


def refusal(file: Path, data: Any, environ: Mapping[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        loaded(file, data, environ)
    assert caught.value.definite
    assert caught.value.remedy
    return caught.value


def with_model(**settings: Any) -> dict[str, Any]:
    return {"models": [{**MODEL, **settings}]}


@pytest.mark.parametrize(
    ("settings", "field", "got"),
    [
        ({"choose": {"reward_range": 5}}, "choose.reward_range", "got 5"),
        ({"choose": {"reward_range": "ab"}}, "choose.reward_range", "got 'ab'"),
        ({"choose": {"reward_range": {0: 1, 2: 3}}}, "choose.reward_range", "got {0: 1, 2: 3}"),
        ({"params": None}, "params", "a mapping is needed: lines of `name: value`, got None"),
        ({"choose": {"reward_range": [0, 2]}, "params": [1]}, "params", "got [1]"),
        ({"choose": {"reward_range": [0, 2]}, "params": None}, "params", "got None"),
    ],
)
def test_what_is_not_read_by_the_task_is_refused_as_any_setting_is(
    file: Path, settings: dict[str, Any], field: str, got: str
) -> None:
    error = refusal(file, {"models": [{"name": "m", "task": "choose", **settings}]})
    assert error.field == f"models.0.{field}"
    assert got in error.problem


# -- unknown and wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "field", "near"),
    [
        ({"replica": 1}, "replica", "replicas"),
        ({"statedir": "x"}, "statedir", "state_dir"),
        (with_model(learnr="logreg"), "models.0.learnr", "learner"),
        (with_model(sync={"interval": 3}), "models.0.sync.interval", "interval_ms"),
        (with_model(snapshots={"interval": 3}), "models.0.snapshots.interval", "interval_s"),
        (
            with_model(challenger={"learner": "linear", "promotes": "auto"}),
            "models.0.challenger.promotes",
            "promote",
        ),
        ({"limits": {"body_byte_max": 3}}, "limits.body_byte_max", "body_bytes_max"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(
    file: Path, data: dict[str, Any], field: str, near: str
) -> None:
    error = refusal(file, data)
    assert error.field == field
    assert error.remedy == f"Did you mean `{near}`?"


def test_an_unknown_key_like_none_lists_what_is_known(file: Path) -> None:
    error = refusal(file, {"zzzzzz": 1})
    assert "replicas" in error.remedy
    assert "models" in error.remedy


@pytest.mark.parametrize(
    ("data", "field", "value"),
    [
        ({"port": 70_000}, "port", "70000"),
        ({"port": "http"}, "port", "'http'"),
        ({"replicas": 0}, "replicas", "0"),
        ({"replicas": 65}, "replicas", "65"),
        ({"journal": "redis"}, "journal", "'redis'"),
        ({"models": []}, "models", "[]"),
        ({"models": [{"name": "m", "task": "binary"}]}, "models.0.learner", "required"),
        (with_model(name="a/b"), "models.0.name", "'a/b'"),
        (with_model(name=""), "models.0.name", "''"),
        (with_model(task="ranking"), "models.0.task", "'ranking'"),
        (with_model(token_lifetime="soon"), "models.0.token_lifetime", "'soon'"),
        (with_model(token_lifetime="0s"), "models.0.token_lifetime", "'0s'"),
        (with_model(token_lifetime=-1), "models.0.token_lifetime", "-1"),
        (with_model(sync={"merge": "max"}), "models.0.sync.merge", "'max'"),
        (with_model(sync={"interval_ms": 0}), "models.0.sync.interval_ms", "0"),
        (with_model(snapshots={"keep": 1}), "models.0.snapshots.keep", "1"),
        (
            with_model(drift={"watch": False, "on_rise": "freeze"}),
            "models.0.drift",
            "freeze never happens with watch: false",
        ),
        ({"limits": {"rows_max": 0}}, "limits.rows_max", "0"),
        ({"limits": 3}, "limits", "3"),
    ],
)
def test_a_wrong_value_is_named(file: Path, data: dict[str, Any], field: str, value: str) -> None:
    error = refusal(file, data)
    assert error.field == field
    assert value in str(error)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "3"])
def test_a_file_that_is_no_mapping(file: Path, text: str) -> None:
    assert refusal(file, text).problem == "not a mapping"


def test_a_file_that_is_no_yaml(file: Path) -> None:
    assert "not YAML" in refusal(file, "models: [").problem


LAUGHS = "x0: &x0 [" + "x, " * 9 + "x]\n" + "".join(
    f"x{i}: &x{i} [{', '.join(10 * [f'*x{i - 1}'])}]\n" for i in range(1, 9)
)  # fmt: skip
"""A hundred short words, of which pydantic would read a billion."""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: []\nport: 1\nport: 2\n", "`port` stands there twice, line 3"),
        ("models:\n- name: m\n  filters: default\n  filters: none\n", "`filters` stands there"),
        ("models: " + "[" * 2000, "can't be read"),
        ("port: " + "9" * 5000, "can't be read"),
        ("models: [] # \xe9", "not UTF-8"),
        ("? [1, 2]\n: 3\n", "unhashable key"),
        ("models: &a\n- *a\n", "values without end, line 2, column 3"),
        ("models: &a {name: *a}\n", "values without end"),
        (LAUGHS, "values without end, line 6"),
    ],
)
def test_a_file_that_can_not_be_meant(tmp_path: Path, text: str, says: str) -> None:
    """Of two values under one key YAML's loader keeps the last, and says nothing of it."""
    place = tmp_path / "online.yaml"
    place.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        load(place, {}, {})
    assert says in caught.value.problem


def test_parts_that_are_merged_may_be_overridden(tmp_path: Path) -> None:
    place = tmp_path / "online.yaml"
    model = "{<<: &m {name: a, task: binary, learner: logreg}, learner: linear}"
    place.write_text(f"models:\n- {model}\n- {{<<: *m, name: b}}\n")
    models = load(place, {}, {}).models
    assert [(model.name, model.learner) for model in models] == [("a", "linear"), ("b", "logreg")]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_no_bound_is_endless(file: Path, value: float) -> None:
    error = refusal(file, {"models": [MODEL], "limits": {"feedback_wait_s": value}})
    assert (error.field, "a finite number" in str(error)) == ("limits.feedback_wait_s", True)
    assert refusal(file, with_model(dedupe_window=value)).field == "models.0.dedupe_window"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.yaml", {}, {})
    assert "none.yaml" in caught.value.field


def test_two_models_of_one_name(file: Path) -> None:
    error = refusal(file, {"models": [MODEL, {**MODEL, "task": "regression"}]})
    assert error.field == "models"
    assert "'m'" in error.problem


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_a_host_that_others_reach_is_refused(file: Path, host: str) -> None:
    error = refusal(file, {"host": host})
    assert error.field == "host"
    assert "127.0.0.1" in error.remedy


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_a_loopback_host_is_taken(file: Path, host: str) -> None:
    assert loaded(file, {"host": host}).host == host


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"classes": {"negative": "no"}}, "needs `negative` and `positive`"),
        ({"task": "multiclass", "classes": {"negative": 0, "positive": 1}}, "task: binary"),
        ({"classes": {"negative": "no", "maybe": "yes"}}, "maybe"),
        ({"classes": {"negative": 0.5, "positive": 1}}, "0.5"),
        ({"classes": {"negative": "yes", "positive": "yes"}}, "the same"),
        ({"classes": {"negative": 1, "positive": "1"}}, "the same"),
        ({"classes": ["no", "yes"]}, "Only task: binary may name its two, as classes: {negative"),
    ],
)
def test_classes_refused(file: Path, settings: dict[str, Any], says: str) -> None:
    assert says in str(refusal(file, with_model(**settings)))


@pytest.mark.parametrize(("negative", "positive"), [("no", "yes"), (0, 1), (False, True), (-1, 1)])
def test_classes(file: Path, negative: Any, positive: Any) -> None:
    classes = {"negative": negative, "positive": positive}
    got = loaded(file, with_model(classes=classes)).models[0].classes
    assert got == classes
    assert {type(v) for v in got.values()} == {type(negative)}


# -- units and places ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("7d", 604_800), ("1w", 604_800),
     ("3 d", 259_200), (12, 12), (0.5, 0.5), ("30", 30)],
)  # fmt: skip
def test_units(file: Path, text: Any, seconds: float) -> None:
    assert loaded(file, with_model(token_lifetime=text)).models[0].token_lifetime == seconds


def test_later_places_win(file: Path) -> None:
    data = {"port": 1001, "replicas": 3, "state_dir": "from-file"}
    environ = {"ONLINE_PORT": "1002", "ONLINE_STATE_DIR": str(file.parent / "from-environment")}
    settings = loaded(file, data, environ, port=1003)
    assert settings.port == 1003
    assert settings.replicas == 3
    assert settings.state_dir == (file.parent / "from-environment").resolve()
    assert loaded(file, data, environ).port == 1002
    assert loaded(file, data, {}, port=None).port == 1001
    assert loaded(file, data, {"ONLINE_HOST": "::1", "ONLINE_REPLICAS": "5"}).replicas == 5


def test_replicas_are_a_number_or_a_range(file: Path) -> None:
    plain, ranged = loaded(file, {"replicas": 3}), loaded(file, {"replicas": {"max": 4}})
    assert (plain.replicas_min, plain.replicas_max) == (3, 3)
    assert (ranged.replicas_min, ranged.replicas_max) == (1, 4)
    again = Settings.model_validate(ranged.model_dump(mode="json", context=WITH_SECRETS))
    assert again.replicas == ranged.replicas, "a replica gets them so"


@pytest.mark.parametrize(
    ("replicas", "field", "says"),
    [
        (0, "replicas", "greater than or equal to 1"),
        ("many", "replicas", "a whole number is needed"),
        ({"min": 1}, "replicas.max", "required"),
        ({"min": 3, "max": 2}, "replicas", "min is 3, above max, 2"),
        ({"max": 2, "mim": 1}, "replicas.mim", "unknown setting"),
    ],
)
def test_replicas_that_make_no_sense(file: Path, replicas: Any, field: str, says: str) -> None:
    error = refusal(file, {"replicas": replicas})
    assert error.field == field
    assert says in str(error)


def test_the_environment_is_checked_too(file: Path) -> None:
    assert refusal(file, {}, {"ONLINE_HOST": "0.0.0.0"}).field == "host"
    assert refusal(file, {}, {"ONLINE_PORT": "many"}).field == "port"


def test_without_a_file_a_model_is_served() -> None:
    settings = load(None, {}, {})
    assert [m.learner for m in settings.models] == ["logreg"]
    assert settings.state_dir.is_absolute()


def test_paths_are_relative_to_the_file_that_names_learners(file: Path) -> None:
    settings = loaded(file, with_model())
    assert settings.base_dir == file.parent.resolve()
    assert settings.key_path == settings.state_dir / "key"


def test_settings_do_not_change(file: Path) -> None:
    settings = loaded(file, with_model())
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


# -- printing --------------------------------------------------------------------------------


def leaves(tree: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings."""
    for name, field in tree.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.")
        elif name == "models":
            yield from leaves(ModelSettings, f"{prefix}models.0.")
        else:
            yield prefix + name


def test_show_prints_every_setting_with_its_value(file: Path) -> None:
    file.write_text(yaml.safe_dump(with_model()))
    run = [sys.executable, "-m", "online", "config", "show", str(file)]
    shown = subprocess.run(run, capture_output=True, text=True, check=True, timeout=240).stdout
    data = yaml.safe_load(shown)
    names = list(leaves(Settings))
    assert len(names) >= 30
    for name in names:
        node = data
        for part in name.split("."):
            node = node[int(part) if part.isdigit() else part]
    assert data["limits"]["body_bytes_max"] == 1_048_576
    # What is printed can be used as a settings file, and means the same.
    assert loaded(file, shown).model_dump() == Settings.model_validate(data).model_dump()
    as_json = subprocess.run(
        [*run, "--json"], capture_output=True, text=True, check=True, timeout=240
    )
    assert json.loads(as_json.stdout).keys() == data.keys()


# -- where rows and snapshots are --------------------------------------------------------------

PASSWORD = "s3cr:t/p@ss"


@pytest.mark.parametrize(
    "journal",
    ["sqlite", "redis://host:6379/0", "redis://host", "rediss://user:pw@host:1/2",
     "unix:///run/redis.sock", "redis://[::1]:6379/0"],
)  # fmt: skip
def test_journals(file: Path, journal: str) -> None:
    assert loaded(file, {"journal": journal}).journal == journal


@pytest.mark.parametrize(
    "journal",
    ["redis", "postgres://host/0", "redis://", "redis:///0", "redis://host:port/0",
     "redis://host:6379/name", "unix://", "SQLITE", "redis://host:99999"],
)  # fmt: skip
def test_journals_refused(file: Path, journal: str) -> None:
    error = refusal(file, {"journal": journal})
    assert error.field == "journal"
    assert "redis://host:6379/0" in str(error)


@pytest.mark.parametrize(
    "journal",
    ["redis://user:s3cr%2Fp%40ss@host:6379/0", "redis://:s3cr:p@host:6379/0",
     f"redis://user:{PASSWORD}@host:6379/0", f"redis://:{PASSWORD}@host:6379/0",
     f"redis://:{PASSWORD}@host:6379/name", f"redys://:{PASSWORD}@host", f"redis://:{PASSWORD}@:0",
     f"unix:///run/r.sock?password={PASSWORD}"],
)  # fmt: skip
def test_passwords_are_never_shown(file: Path, journal: str) -> None:
    place = f"s3://key:{PASSWORD}@bucket/prefix"
    data = {"journal": journal, "scores": journal, "snapshot_dir": place}
    said = ""
    try:
        settings = loaded(file, data)
        assert settings.journal == journal
        said += repr(settings) + str(settings)
        said += str(settings.model_dump()) + settings.model_dump_json()
        whole = settings.model_dump(mode="json", context=WITH_SECRETS)
        assert Settings.model_validate(whole).journal == journal
        assert Settings.model_validate(whole).scores == journal
    except ConfigError as error:
        said += str(error) + repr(error)
    for part in (PASSWORD, "s3cr", "p@ss", "ss@host"):
        assert part not in said


def test_config_show_hides_the_password(file: Path) -> None:
    file.write_text(yaml.safe_dump({"journal": "redis://:s3cr:p@host:6379/0"}))
    run = [sys.executable, "-m", "online", "config", "show", str(file)]
    shown = subprocess.run(run, capture_output=True, text=True, check=True, timeout=240).stdout
    assert yaml.safe_load(shown)["journal"] == "redis://:***@host:6379/0"


def test_the_journal_may_come_from_the_environment(file: Path) -> None:
    assert loaded(file, {}, {"ONLINE_JOURNAL": "redis://host"}).journal == "redis://host"
    assert refusal(file, {}, {"ONLINE_JOURNAL": "rodis://host"}).field == "journal"


def test_snapshot_places(file: Path, tmp_path: Path) -> None:
    assert snapshots_path(loaded(file, {"state_dir": str(tmp_path)})) == str(tmp_path / "snapshots")
    relative = snapshots_path(loaded(file, {"snapshot_dir": "kept"}))
    assert relative == str(Path("kept").resolve())
    assert snapshots_path(loaded(file, {"snapshot_dir": "s3://b/p"})) == "s3://b/p"


@pytest.mark.parametrize("cluster", ["local", "auto", "10.0.0.1:6379", "head:6379"])
def test_clusters(file: Path, cluster: str) -> None:
    assert loaded(file, {"cluster": cluster}).cluster == cluster


@pytest.mark.parametrize("cluster", ["", "here", "ray://head:10001", "head:", "head:port"])
def test_clusters_refused(file: Path, cluster: str) -> None:
    assert refusal(file, {"cluster": cluster}).field == "cluster"


def test_the_dedupe_window_is_no_shorter_than_a_token_lives(file: Path) -> None:
    error = refusal(file, with_model(token_lifetime="7d", dedupe_window="6d"))
    assert error.field == "models.m.dedupe_window"
    assert "518400 s" in str(error)
    assert "604800 s" in str(error)
    assert loaded(file, with_model(token_lifetime="6d", dedupe_window="6d"))


def test_an_opened_journal_has_the_bounds_of_the_settings(tmp_path: Path) -> None:
    limits = {"journal_mb_max": 7, "halves_max": 5, "disk_low_mb": 3, "rows_max": 2000}
    limits["feedback_wait_s"] = 9
    settings = load(None, {"state_dir": str(tmp_path), "limits": limits}, {})
    opener = journal_opener(settings)
    assert isinstance(opener, partial)
    bare, key_file, lines_max = opener.args
    assert (key_file, lines_max) == (tmp_path / "key", 100_000)
    assert bare.keywords == {
        "disk_low_mb": 3, "bounds": Bounds(2000, 5), "size_mb_max": 7,
        "lock_wait_s": 3.0, "busy_ms": 1350,
    }  # fmt: skip
    text = pickle.dumps(opener)
    with closing(pickle.loads(text)()) as journal:
        assert journal.batch_rows_max == 2000
    script = f"import pickle, sys; pickle.loads({text!r}); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=True
    )
    loaded = done.stdout.split()
    assert "online.audit.log" in loaded
    heavy = ("online.settings", "online.models", "pydantic", "river", "ray", "torch")
    assert [name for name in loaded if name.startswith(heavy)] == [], "the actor imports none"


def test_a_server_that_does_not_answer_refuses_the_start(tmp_path: Path) -> None:
    url = "redis://:s3cret@127.0.0.1:1/0"
    settings = load(None, {"state_dir": str(tmp_path), "journal": url}, {})
    with pytest.raises(StartRefused, match=r"redis://:\*\*\*@127\.0\.0\.1:1/0") as caught:
        open_journal(settings)
    assert "Start that server" in caught.value.remedy
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"root_set": "none.csv"}, "none.csv"),
        (
            {"replay": {"policy": "balanced"}, "task": "regression", "learner": "linreg"},
            "no classes",
        ),
        ({"challenger": {"learner": "logreg"}}, "its challenger is the same model"),
    ],
)
def test_a_check_refuses_what_a_start_would_refuse(
    file: Path, more: dict[str, Any], says: str
) -> None:
    model = {"name": "m", "task": "binary", "learner": "logreg", **more}
    file.write_text(yaml.safe_dump({"models": [model]}))
    with pytest.raises(StartRefused, match=says):
        config_check(file)


def test_a_check_opens_what_the_services_key_has_sealed(file: Path) -> None:
    (file.parent / "model.pkl").write_bytes(pickle.dumps(LogisticRegression()))
    model = {"name": "m", "task": "binary", "learner": "sealed", "artifact": "model.sealed"}
    state = str(file.parent / "state")
    file.write_text(yaml.safe_dump({"state_dir": state, "models": [model]}))
    seal(file.parent / "model.pkl", file.parent / "model.sealed", file)
    config_check(file)
    (file.parent / "state" / "key").write_text("0" * 63 + "1\n")
    with pytest.raises(LearnerUnusable, match="not by this service's key"):
        config_check(file)
