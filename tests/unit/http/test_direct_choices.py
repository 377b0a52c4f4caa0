"""Choices and rewards behind a head that is known are answered as in the usual way."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
import replica_world as worlds
from kept_connection import LIMITS, TOKEN, Caller, ways
from test_choosing import chooser

from online.http.app import App, ModelExtras
from online.http.connection.direct import Direct
from online.http.middleware.access import Access
from online.settings.tokens import Grant

ASKED: Final = {"context": {"x": 1.0}, "actions": [{"id": "a"}, {"id": "b"}]}
CHOICES: Final[list[Any]] = [
    ASKED, {**ASKED, "id": "own-1"}, {**ASKED, "id": "own-1"},
    {**ASKED, "id": "own-1", "context": {}},
    {**ASKED, "exclude": ["a", "b"]}, {**ASKED, "slots": [{"id": "top"}, {"id": "side"}]},
    {**ASKED, "max_age_ms": 0}, {"actions": []}, {**ASKED, "odd": 1}, "{",
    {**ASKED, "exclude": ["b"]},
]  # fmt: skip


def rewards(token: str, other: str) -> list[Any]:
    """What may be sent about two choices."""
    return [
        {"id": token, "reward": 1}, {"id": token, "reward": 1}, {"id": token, "reward": 0},
        {"id": other, "reward": 7}, {"id": other, "reward": "much"}, {"id": other},
        {"id": "own-1", "reward": 0.5}, {"id": "own-2", "reward": 0.5}, {"reward": 0.5},
        {"id": f"{other[:-4]}AAAA", "reward": 0.5},
        {"rewards": [{"id": other, "reward": 0.25}, {"id": token, "reward": 1}]},
    ]  # fmt: skip


def told(answers: list[tuple[int, dict[str, Any]]]) -> list[Any]:
    """What does not depend on the time, or on what is drawn at random."""
    random = ("id", "age_ms", "event_id", "seen", "version", "version_before", "action", "ranking")
    said: list[Any] = []
    for status, answer in answers:
        kept = {name: value for name, value in answer.items() if name not in random}
        kept["ranking"] = sorted(one["id"] for one in answer.get("ranking", []))
        kept["slots"] = len(answer.get("slots", []))
        kept["receipts"] = [one["status"] for one in kept.pop("receipts", [])]
        said.append((status, kept))
    return said


def test_each_choice_and_each_reward_is_answered_as_in_the_usual_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []

    async def scene(world: worlds.World) -> None:
        choosing = await chooser(world, policy="epsilon", epsilon=1.0)
        serving = choosing.serving
        monkeypatch.setattr(type(serving.replica), "age_ms", property(lambda _: 7.0))
        grants = {(role, TOKEN): Grant(source="one") for role in ("feedback", "predict")}
        access = Access({"feedback": [TOKEN], "predict": [TOKEN]}, grants)
        app = App({"m": serving}, None, LIMITS, access, ModelExtras(choosing={"m": choosing}))  # type: ignore[arg-type]
        chosen, rewarding, taken = Caller(app), Caller(app), ways(monkeypatch)
        for body in CHOICES:
            text = body if isinstance(body, str) else json.dumps(body)
            chosen.sends(text.encode(), action="choose")
            await chosen.answered()
        first, last = chosen.answers[0][1]["id"], chosen.answers[-1][1]["id"]
        for body in rewards(first, last):
            rewarding.sends(json.dumps(body).encode(), action="reward")
            await rewarding.answered()
        said = told(chosen.answers), told(rewarding.answers)
        counts = {k: n for k, n in serving.replica.counts.items() if k.startswith(("choi", "rew"))}
        found.append((said, counts, serving.replica.learner.tally.digest[0], taken))
        assert app._direct.under_way == app._under_way == 0
        await serving.replica.stop(1.0)

    for name in ("direct", "usual"):
        (tmp_path / name).mkdir()
        worlds.play(tmp_path / name, scene)
        monkeypatch.setattr(Direct, "offer", lambda *_: None)
    (*direct, taken), (*usual, never) = found
    for ours, theirs in zip(direct[0], usual[0], strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one == other
    assert direct[1:] == usual[1:]
    assert {status for status, _ in direct[0][0]} >= {200, 400, 409, 422, 503}
    assert {status for status, _ in direct[0][1]} >= {200, 202, 404, 409, 422}
    assert taken[True] >= 12, "single ones that can be read"
    assert taken[False] >= 3
    assert never == Counter()
