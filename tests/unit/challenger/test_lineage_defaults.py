"""A default that has changed is for lineages that begin: state of before goes on as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from online.challenger import promotion
from online.challenger.promotion import decision
from online.models.loading.from_settings import load_model
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import open_journal
from paramserver.core import rewrites
from paramserver.core.standing_decisions import UPGRADE, Upgrade
from replay.journal.base import Journal

BEFORE = {
    "logreg": "a0c2c9d2d328e5f88e4b7513e7236263b190d84ba5d480b76567493bf419ffe1",
    "softmax": "5c876cfbaa9c068ea6dae88bd63795ee6b8180c9e5f4993ae38bfc61c83f15c9",
    "linreg": "bca83993000f3eb17f629ca110ca059cf88802e3c6cbd2508c472e1300de58ad",
    "ftrl": "6cf2578cea3bae522f0eb2ffa0e63b37952a9fb89f2a70034f51eddd5743b620",
    "mlp": "a4c2946eb1d2c4c0a09185f203d1fd804dcd24ada434c2a2d1b6bea56da116f7",
}
"""Hashes of specs as the version without `scale: limited` wrote them, of built-ins at defaults."""

TASKS = {"softmax": "multiclass", "linreg": "regression"}


def settings(folder: Path, learner: str, challenger: Any = None, **params: Any) -> Settings:
    if learner == "mlp":
        params["inputs"] = ["a"]
    told = {
        "name": "m", "task": TASKS.get(learner, "binary"), "learner": learner, "params": params,
        "challenger": challenger,
    }  # fmt: skip
    model = ModelSettings.model_validate(told)
    return Settings(state_dir=folder, base_dir=folder, models=(model,))


def spec(given: Settings) -> str:
    return load_model(given.models[0], given, b"\0" * 32).spec_hash


def served(given: Settings, journal: Journal) -> ModelSettings:
    return promotion.as_served(given, journal)[0].models[0]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with contextlib.closing(open_journal(settings(tmp_path, "logreg"))) as found:
        yield found


@pytest.mark.parametrize("learner", BEFORE)
def test_state_of_before_is_that_of_the_plain_scaler(learner: str, tmp_path: Path) -> None:
    assert spec(settings(tmp_path, learner, scale="plain")) == BEFORE[learner]
    limited = spec(settings(tmp_path, learner))
    assert limited != BEFORE[learner]
    assert limited == spec(settings(tmp_path, learner, scale="limited")), "it is the default"


@pytest.mark.parametrize("learner", ["logreg", "ftrl"])
def test_a_lineage_keeps_the_scaler_of_its_birth(
    learner: str, tmp_path: Path, journal: Journal
) -> None:
    given = settings(tmp_path, learner)
    assert served(given, journal) is given.models[0], "a new one has today's default"
    journal.begin_epoch("m", BEFORE[learner], 0)
    found, lines = promotion.as_served(given, journal)
    assert spec(found) == BEFORE[learner]
    assert "goes on with `scale: plain`" in lines[0]
    assert "`online models upgrade m`" in lines[0]
    assert served(found, journal) == found.models[0]
    chosen = settings(tmp_path, learner, scale="limited")
    assert served(chosen, journal) is chosen.models[0], "who says it gets it"
    journal.begin_epoch("m", spec(chosen), 0)
    assert served(given, journal) is given.models[0], "a lineage of today's default has begun"


def test_a_challenger_of_todays_default_is_not_taken_for_the_model(
    tmp_path: Path, journal: Journal
) -> None:
    """Its lineage has begun, too, but no row was ever written under it."""
    given = settings(tmp_path, "logreg", {"learner": "logreg", "params": {"scale": "limited"}})
    plain, limited = BEFORE["logreg"], spec(settings(tmp_path, "logreg"))
    journal.begin_epoch("m", plain, 0)
    journal.register("m", "r1", plain, 0.0)
    journal.begin_epoch("m", limited, 0)
    now = served(given, journal)
    assert now.params == {"scale": "plain"}
    assert now.challenger is not None
    assert now.challenger.params == {"scale": "limited"}
    assert served(settings(tmp_path, "logreg"), journal).params == {"scale": "plain"}, "nor later"
    journal.register("m", "r1", limited, 0.0)  # the settings named it, and it was learned again
    assert served(settings(tmp_path, "logreg"), journal).params == {}


def upgrade(journal: Journal, *, on: bool) -> None:
    number = len(journal.controls("m", 0))
    journal.write_control("m", UPGRADE, f"upgrade:{number}", msgspec.json.encode(Upgrade(on)))


def test_an_upgrade_has_todays_default_as_challenger_and_it_may_be_promoted(
    tmp_path: Path, journal: Journal
) -> None:
    given = settings(tmp_path, "logreg", None, l2=0.5)
    old = settings(tmp_path, "logreg", None, l2=0.5, scale="plain")
    new = settings(tmp_path, "logreg", None, l2=0.5, scale="limited")
    plain, limited = spec(old), spec(new)

    def stands() -> tuple[Any, Any]:
        now = served(given, journal)
        return now.params["scale"], None if now.challenger is None else now.challenger.params

    journal.begin_epoch("m", plain, 0)
    journal.register("m", "r1", plain, 0.0)
    assert stands() == ("plain", None), "nothing begins by itself"
    upgrade(journal, on=True)
    assert stands() == ("plain", {"l2": 0.5, "scale": "limited"})
    journal.begin_epoch("m", limited, 0)
    assert stands() == ("plain", {"l2": 0.5, "scale": "limited"}), "its lineage has begun"
    own = settings(tmp_path, "logreg", {"learner": "linear"}, l2=0.5)
    challenger = served(own, journal).challenger
    assert challenger is not None
    assert challenger.learner == "linear", "the file's own goes first"
    named = settings(tmp_path, "logreg", None, l2=0.5, scale="limited")
    assert served(named, journal).challenger is None, "the file names today's by itself"
    embedded = given.model_copy(update={"cluster": "embedded"})
    assert served(embedded, journal).challenger is None, "one process has no room for it"

    was = served(given, journal)
    note = decision(was, plain, limited, "operator", {})
    journal.write_control("m", rewrites.PROMOTE, "promote:1", note)
    assert stands() == ("limited", {"l2": 0.5, "scale": "plain"})
    journal.register("m", "r1", limited, 0.0)
    assert stands() == ("limited", {"l2": 0.5, "scale": "plain"}), "once it has written rows, too"
    upgrade(journal, on=False)
    assert stands() == ("limited", None)
    upgrade(journal, on=True)
    back = decision(served(given, journal), limited, plain, "back", {})
    journal.write_control("m", rewrites.PROMOTE, "promote:2", back)
    assert stands() == ("plain", {"l2": 0.5, "scale": "limited"}), "and back"


def test_only_older_defaults_are_upgraded(tmp_path: Path) -> None:
    for learner, params in (
        ("logreg", {"scale": "limited"}), ("logreg", {}), ("logreg", {"scale": False}),
        ("linear", {}), ("mlp", {"scale": "plain", "ids": {"a": 3}}),
    ):  # fmt: skip
        model = settings(tmp_path, learner, None, **params).models[0]
        assert promotion.of_today(model) is None, (learner, params)
    found = promotion.of_today(settings(tmp_path, "ftrl", None, scale="plain").models[0])
    assert found is not None
    assert (found.learner, found.params, found.promote) == ("ftrl", {"scale": "limited"}, "manual")


def test_other_models_and_other_scalers_are_left_alone(tmp_path: Path, journal: Journal) -> None:
    journal.begin_epoch("m", BEFORE["logreg"], 0)
    for given in (
        settings(tmp_path, "linear"), settings(tmp_path, "logreg", scale=False),
        settings(tmp_path, "logreg", lr=0.1),
    ):  # fmt: skip
        assert served(given, journal) is given.models[0]


def test_a_challenger_keeps_its_own_and_may_have_been_promoted(
    tmp_path: Path, journal: Journal
) -> None:
    given = settings(tmp_path, "linear", {"learner": "logreg"})
    journal.begin_epoch("m", spec(settings(tmp_path, "linear")), 0)
    journal.begin_epoch("m", BEFORE["logreg"], 0)
    challenger = served(given, journal).challenger
    assert challenger is not None
    assert challenger.params == {"scale": "plain"}
    assert promotion.spec_of_challenger(promotion.as_served(given, journal)[0],
                                        served(given, journal)) == BEFORE["logreg"]  # fmt: skip
    note = decision(given.models[0], spec(given), BEFORE["logreg"], "operator", {})
    journal.write_control("m", rewrites.PROMOTE, "promote:1", note)
    now = served(given, journal)
    assert (now.learner, now.params) == ("logreg", {"scale": "plain"})
    assert now.challenger is not None
    assert now.challenger.learner == "linear"


def test_a_scaler_that_is_none_is_refused(tmp_path: Path) -> None:
    from online.models.errors import LearnerUnusable

    with pytest.raises(LearnerUnusable, match="scale is limited, plain or false, got 'robust'"):
        spec(settings(tmp_path, "ftrl", scale="robust"))
