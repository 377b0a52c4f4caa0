"""Which models' parameter servers share a process: the small ones, if there are several."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import pytest
from servers_without_ray import answers_for_ray

from online.models.loading.from_settings import load_model
from online.service.state import parameter_servers
from online.settings.config import Settings
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from online.settings.places import server_name, snapshots_path
from paramserver.clients import ray_client
from paramserver.snapshots.places import lineage_place

_LARGEST = 8_000_000


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[set[str], ...]]:
    """Models whose servers began in the shared process, in their own, and those that left it."""

    def begin(
        names: Collection[str],
        *,
        large: Collection[str] = (),
        new: Collection[str] = (),
        sharing: Collection[str] = (),
        alone: Collection[str] = (),
        mb: float = 8,
        shards: int = 1,
        only: Collection[str] | None = None,
    ) -> tuple[set[str], ...]:
        models = tuple(
            ModelSettings.model_validate(
                {"name": n, "task": "binary", "learner": "logreg", "shards": shards}
            )
            for n in names
        )
        settings = Settings(state_dir=tmp_path, models=models, limits=Limits(shared_server_mb=mb))
        loaded = {model.name: load_model(model, settings, b"0" * 32) for model in models}
        servers = {name: server_name(name, one.spec_hash) for name, one in loaded.items()}
        for name, one in loaded.items():
            place = Path(lineage_place(snapshots_path(settings), name, one.spec_hash))
            place.mkdir(parents=True, exist_ok=True)
            if name not in new:
                with (place / "1-1.snapshot").open("wb") as file:
                    file.truncate(_LARGEST + (name in large))
        together, each, ended = set[str](), set[str](), list[str]()
        answers_for_ray(
            monkeypatch,
            lambda name: partial(each.add, name.split(":")[1]),
            sharing={servers[name] for name in sharing},
            alone={servers[name] for name in alone},
            ended=ended,
        )
        monkeypatch.setattr(
            ray_client, "start_shared",
            lambda given: lambda name: together.add(given[name].lineage.model),
        )  # fmt: skip
        for begun in parameter_servers.begin(settings, loaded, lambda line: None, only=only):
            begun.handle()
        return together, each, {name.split(":")[1] for name in ended}

    return begin


def test_small_models_share_a_process(began: Callable[..., tuple[set[str], ...]]) -> None:
    assert began(["n", "b", "c"], large=["c"], new="n") == ({"n", "b"}, {"c"}, set())


def test_one_model_alone_has_a_process(began: Callable[..., tuple[set[str], ...]]) -> None:
    assert began(["a"]) == (set(), {"a"}, set())
    assert began(["a", "c"], large=["c"]) == (set(), {"a", "c"}, set())


def test_none_share_where_the_bound_is_zero(began: Callable[..., tuple[set[str], ...]]) -> None:
    assert began(["a", "b"], mb=0) == (set(), {"a", "b"}, set())


def test_models_of_several_servers_do_not_share(began: Callable[..., tuple[set[str], ...]]) -> None:
    assert began(["a", "b"], shards=2) == (set(), {"a", "b", "a+1", "b+1"}, set())


def test_what_runs_stays_where_it_is_and_what_has_grown_leaves(
    began: Callable[..., tuple[set[str], ...]],
) -> None:
    assert began(["a", "b", "c"], alone=["a"]) == ({"b", "c"}, {"a"}, set())
    assert began(["a", "b", "c"], sharing=["a", "b", "c"], large=["b"]) == (
        {"a", "c"}, {"b"}, {"b"},
    )  # fmt: skip
    assert began(["a", "b"], sharing=["b"], only=["a"]) == ({"a"}, set(), set())
    assert began(["a"], sharing=["a"]) == ({"a"}, set(), set())
    assert began(["a", "n"], sharing=["a", "n"], new="n", mb=0) == (set(), {"a", "n"}, {"a", "n"})
