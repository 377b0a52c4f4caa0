"""A model that learns from the caller's own choices over HTTP, and then answers by itself."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from chosen import choices_of, controls_of, served, settings
from msgspec import UNSET
from typer.testing import CliRunner

from benchmarks.fixtures.service import launch, write_settings
from online.client import Client, ServiceRefused
from online.commands.cli import application


def test_an_apprentice_takes_the_baseline_and_says_when_it_agrees(tmp_path: Path) -> None:
    with served(tmp_path, choose={"apprentice": True}) as service:
        shop = service.model
        with pytest.raises(ServiceRefused, match="baseline"):
            shop.choose(["a", "b"])
        agreed = []
        for i in range(60):
            answer = shop.choose(["a", "b"], baseline="a" if i % 3 else "b")
            assert answer.action == ("a" if i % 3 else "b")
            assert answer.probability == 1.0
            assert shop.reward(answer.id, float(answer.action == "a")).status == "learned"
            agreed.append(answer.agreed)
        assert set(agreed) == {True, False}
        learns = shop.status()["choices"]["apprentice"]
        assert (learns["n"], learns["ready"]) == (60, False)
        assert learns["agreed"] == pytest.approx(agreed.count(True) / 60)
    assert all(choice.propensity == 1.0 for choice, _ in choices_of(tmp_path / "state").values())


def apprenticed(shop: Any, n: int, agree: bool = True) -> None:
    """Choices of a caller who knows that "a" is right, or (``agree``: False) who draws."""
    rng = random.Random(n)
    for _ in range(n):
        baseline = "a" if agree else rng.choice("ab")
        answer = shop.choose(["a", "b"], baseline=baseline)
        shop.reward(answer.id, float(answer.action == "a"))


def test_an_apprentice_is_promoted_when_it_is_sure_and_stays_so_after_kills(tmp_path: Path) -> None:
    data = settings(choose={"apprentice": True, "policy": "greedy"})
    write_settings(tmp_path, data)
    folder = ["--config", str(tmp_path / "online.yaml"), "--state-dir", str(tmp_path / "state")]

    def promote(*words: str) -> Any:
        return CliRunner().invoke(application("promote"), ["promote", *words, *folder])

    for life in range(3):
        running = launch(tmp_path)
        with Client(running.url) as client:
            shop = client.model("shop")
            if life == 0:
                early = promote()
                assert early.exit_code != 0
                assert "none of the caller's choices was rewarded" in str(early.exception)
                apprenticed(shop, 20, agree=False)
                with pytest.raises(ServiceRefused, match=r"keeps .* not sure of 80%"):
                    shop.promote()
                assert shop.status()["choices"]["answers"] == "caller"
                apprenticed(shop, 400)
                done = json.loads(promote("--json").stdout)
                again = shop.promote()
                assert (done["answers"], done["complete"]) == ("model", True)
                assert done["control"] == again["control"]
            if life < 2:
                answer = shop.choose(["a", "b"])  # no baseline is asked for any more
                assert (answer.action, answer.agreed) == ("a", UNSET)
                assert shop.choose(["a", "b"], baseline="b").action == "a"
                status = shop.status()
                assert status["choices"]["answers"] == "model"
                assert status["choices"]["apprentice"]["ready"]
                if life == 1:
                    assert promote("--back").exit_code == 0
            else:
                assert shop.status()["choices"]["answers"] == "caller"
                assert shop.choose(["a", "b"], baseline="b").action == "b"
                assert shop.promote(force=True)["answers"] == "model"
        running.process.kill()
        running.process.wait(240)
    kinds = [c.kind for c in controls_of(tmp_path / "state")]
    assert kinds.count("answers") == 3


def test_who_is_no_apprentice_has_nobody_to_promote(tmp_path: Path) -> None:
    with served(tmp_path) as service, pytest.raises(ServiceRefused, match="has no challenger"):
        service.model.promote()
