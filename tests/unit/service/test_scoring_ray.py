"""What a run of re-scoring leaves behind of the Ray that it joined: nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from online.rescore.errors import RayFailed
from online.service import processes
from online.service.on_ray.scoring_ray import ray_for

ADDRESS = "127.0.0.1:6379"


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the run beside its output; Ray is there, and answers nothing."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    class RayError(Exception):
        pass

    ray: Any = SimpleNamespace(init=lambda **_: None, shutdown=lambda: None)
    ray.exceptions = SimpleNamespace(RayError=RayError)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return processes.private_path(tmp_path / "out")


def test_a_cluster_that_was_joined_leaves_no_folder(tmp_path: Path, private: Path) -> None:
    with ray_for(ADDRESS, str(tmp_path / "out"), 1):
        assert (private / "owner.lock").exists(), "one driver per run"
    assert not private.exists()


def test_nor_does_one_that_is_not_there(
    tmp_path: Path, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("no cluster")

    monkeypatch.setattr(sys.modules["ray"], "init", init)
    with pytest.raises(RayFailed, match="no cluster"), ray_for(ADDRESS, str(tmp_path / "out"), 1):
        pass
    assert not private.exists()


def test_the_note_of_a_killed_drivers_ray_stays_for_who_ends_it(
    tmp_path: Path, private: Path
) -> None:
    private.mkdir()
    (private / "run.json").write_text("{}")
    with ray_for(ADDRESS, str(tmp_path / "out"), 1):
        pass
    assert (private / "run.json").exists()
