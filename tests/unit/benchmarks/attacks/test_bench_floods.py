"""Floods that are sent to services, and honest numbers that are hard to bound."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from typing import Any

import pytest

from benchmarks.attacks import floods, heavy_tails
from benchmarks.attacks.floods_served import _Sending
from evaluation.errors import StreamUnusable
from replay.example import Features


class Desk:
    """Notes what is asked and told, and sets aside what liars tell."""

    def __init__(self) -> None:
        self.asked_of, self.heard = list[int](), list[tuple[str, int, Any]]()

    def asked(self, who: str, features: Features, own: str | None, at: int) -> Any:
        self.asked_of.append(at)
        return features["x"] > 0.0  # type: ignore[operator]

    def told(self, who: str, event: dict[str, Any], at: int) -> str:
        self.heard.append((who, at, event.get("source")))
        return "quarantined" if event["features"]["x"] == 9.0 else "learned"

    def told_together(self, who: str, events: list[dict[str, Any]], at: int) -> list[str]:
        return [self.told(who, event, at) for event in events]


GROUPS: list[list[floods.Sent]] = [
    [("a", {"x": 1.0}, True, False)],
    [("b", {"x": -1.0}, True, False), ("liar", {"x": 9.0}, False, True)],
    [("a", {"x": 9.0}, True, False), ("liar", {"x": 2.0}, False, True)],
]


@pytest.mark.parametrize("vouched", [True, False])
def test_what_is_sent_over_http_is_counted_as_in_this_process(vouched: bool) -> None:
    desk: Any = Desk()
    sending = _Sending(desk, 2, quiet=True, vouched=vouched)
    assert sending.all(GROUPS, 1) == 1, "of two answers to rows among the lies"
    assert desk.asked_of == [0, 0]
    assert (sending.set_aside, sending.taken) == (Counter({"a": 1}), 1)
    names = [source or who for who, _, source in desk.heard]
    assert names == ["a", "b", "liar", "a", "liar"]
    own = [source is None for _, _, source in desk.heard]
    assert own == [False, *[vouched] * 4], "by own tokens where there are any"
    assert [at for _, at, _ in desk.heard] == [0, 0, 1, 0, 1], "lies go to the quiet replica"


def test_honest_rows_alone_are_sent_once_for_all_floods() -> None:
    seen = Counter[tuple[str, bool]]()

    def play(*given: Any, lying: bool = True, **_: Any) -> Any:
        _, groups, _, filters, *_ = given
        seen[filters, lying and any(event[3] for group in groups for event in group)] += 1
        return floods.Played(90.0, frozenset(), Counter(), 0)

    way: Any = contextlib.nullcontext(play)
    lines = list(
        floods.run(None, ["phishing"], [0], ("flood",), (3, 8), (1,), (1,), way=way, most=100)
    )
    assert [line.what for line in lines] == [
        "phishing, flood, 3 liars, 1 a row", "phishing, flood, 8 liars, 1 a row",
    ]  # fmt: skip
    assert seen == {("none", False): 1, ("none", True): 2, ("default", True): 2}
    assert not any(line.good for line in lines), "nobody is caught"


def test_rows_of_one_label_leave_nothing_to_lie_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floods, "rows_of", lambda *given: [({"x": 1.0}, "a")] * 9)
    with pytest.raises(StreamUnusable, match="one label"):
        list(floods.run(None, ["phishing"], [7], ("names",)))


def test_a_liar_who_asks_lies_about_what_the_model_is_not_sure_of() -> None:
    rows: list[floods.Row] = [({"x": float(i)}, i % 2 == 0) for i in range(20)]
    draw = random.Random(1)
    lies = [floods._lie(rows, 19, draw, lambda x: 0.5 if x["x"] == 7.0 else 0.9) for _ in range(9)]
    assert lies.count(({"x": 7.0}, True)) >= 7, "sixty are looked at, of twenty"
    assert len({x["x"] for x, _ in (floods._lie(rows, 19, draw) for _ in range(40))}) > 5


@pytest.mark.parametrize("kind", heavy_tails.KINDS)
def test_honest_numbers_are_drawn_by_seed(kind: str) -> None:
    rows = heavy_tails.made(kind, 3, 400)
    assert rows == heavy_tails.made(kind, 3, 400) != heavy_tails.made(kind, 4, 400)
    assert 100 < sum(label is True for _, label in rows) < 300


def test_of_honest_numbers_only_a_stray_one_is_clipped() -> None:
    given = {"task": "binary", "learner": "linear", "filters": "default"}
    rows = heavy_tails.made("log-normal", 0, 300)
    right, clipped = heavy_tails.played(rows, given, 1, 0)
    assert clipped == []
    assert sum(right) > 200
    rows[200] = ({**rows[200][0], "x0": 1e9}, rows[200][1])
    assert heavy_tails.played(rows, given, 1, 0)[1] == [200]
    assert heavy_tails.played(rows, {**given, "filters": "none"}, 1, 0)[1] == []
