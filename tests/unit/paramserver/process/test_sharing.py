"""What one of several servers asks the others, and answers them: snapshots of the same rows."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from paramserver.core.server import Server
from paramserver.core.state import Contained
from paramserver.errors import PinIncomplete
from paramserver.process.sharing import Shard, Sharing

SPEC = "s" * 64


def test_rows_leave_the_journal_that_all_shards_have() -> None:
    has = {1: {7: 3, 8: 9}, 2: {7: 5}}

    def ask_one(other: int, method: str) -> dict[int, int]:
        assert method == "contained"
        return has[other]

    running: Any = None
    sharing = Sharing(running, Shard(0, 3, ask_one))
    assert sharing.rows_of_all({7: 4, 8: 2}) == {7: 3}
    assert Sharing(running, None).rows_of_all({7: 4}) == {7: 4}


def history_of(clocks: dict[str, dict[int, int]]) -> SimpleNamespace:
    """The parts of a server that has snapshots of these clocks."""
    contained = {name: Contained(clock, frozenset(), 0) for name, clock in clocks.items()}
    return SimpleNamespace(history=SimpleNamespace(contained=lambda: contained))


def test_a_shard_keeps_the_last_cut_of_all_until_there_is_another() -> None:
    """Of three, one may begin a snapshot and another one not: it has no partner, then."""
    clocks = {"1-5": {1: 5}, "1-7": {1: 7}, "1-9": {1: 9}}
    running: Any = SimpleNamespace(
        publishing=threading.Lock(), lock=threading.Lock(), partitions={},
        serving=lambda: history_of(clocks),
    )  # fmt: skip
    told: list[Any] = []

    def ask(other: int, method: str, *args: Any) -> bool:
        told.append(args)
        return other == 1

    server = Server("m", SPEC, "{}", "sum", 1)
    leader = Sharing(running, Shard(0, 3, ask, tries=1, pause=lambda: None))
    leader.cut = {"1-5"}
    with leader.at_one_moment(server):
        assert [whole for _, _, whole in told] == [({1: 5}, 0)] * 2
    follower = Sharing(running, Shard(1, 3, ask))
    with running.publishing:  # it is busy, and hears it all the same
        assert not follower.begin_cut({1: 7}, 0, ({1: 5}, 0))
    follower.published("1-7", chosen=True)
    assert follower.cut == {"1-5", "1-7"}
    follower.published("1-9", chosen=True)
    assert follower.cut == {"1-5", "1-9"}, "two at most"
    with running.publishing:
        follower.begin_cut({1: 9}, 0, ({1: 9}, 0))
    follower.published("1-9", chosen=True)
    assert follower.cut == {"1-9"}


def test_a_snapshot_that_others_have_followed_later_is_kept_as_theirs_are() -> None:
    """Their partners of the cut before may go then, and not earlier."""
    follow: list[bool] = [False]
    running: Any = SimpleNamespace(
        lock=threading.Lock(), partitions={}, parent="1-7", serving=lambda: history_of({})
    )
    server = Server("m", SPEC, "{}", "sum", 1)
    sharing = Sharing(running, Shard(0, 2, lambda *_: follow[0], tries=1, pause=lambda: None))
    sharing.cut = {"1-5"}
    with sharing.at_one_moment(server):
        pass
    sharing.published("1-7", chosen=False)
    sharing.complete(server)
    assert sharing.cut == {"1-5"}, "it stands alone"
    follow[0] = True
    sharing.complete(server)
    assert sharing.cut == {"1-7"}


def test_a_shard_whose_head_has_the_rows_keeps_that() -> None:
    server = Server("m", SPEC, "{}", "sum", 1)
    running: Any = SimpleNamespace(
        lock=threading.Lock(), publishing=threading.Lock(), partitions={}, parent="1-7",
        published=server.count, serving=lambda: (server, None, None),
    )  # fmt: skip
    sharing = Sharing(running, Shard(1, 2, lambda *_: None))
    sharing.cut = {"1-5"}
    assert not sharing.begin_cut({1: 3}, 0)
    assert sharing.cut == {"1-5"}
    assert sharing.begin_cut({}, 0)
    assert sharing.cut == {"1-7"}


class Pinned:
    """Shard 0 of two, whose other one publishes for some looks; time goes by with each pause."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers, self.now_s, self.asked = answers, 0.0, list[str]()
        history = SimpleNamespace(contained=lambda: {"1-7": Contained({1: 5}, frozenset(), 0)})
        running: Any = SimpleNamespace(
            serving=lambda: SimpleNamespace(history=history), partitions={},
            host=SimpleNamespace(monotonic=lambda: self.now_s),
        )  # fmt: skip
        self.sharing = Sharing(running, Shard(0, 2, self.ask, pause=self.pause))

    def pause(self) -> None:
        self.now_s += 0.05

    def ask(self, other: int, method: str, *args: object) -> Any:
        self.asked.append(method)
        if method == "publish":
            raise TimeoutError("a large table takes longer")
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_what_another_shard_publishes_for_long_is_kept_once_it_is_there() -> None:
    one = Pinned([None, TimeoutError("it publishes"), None, True])
    one.sharing.have_published("1-7")
    assert one.asked == ["publish"] + 4 * ["pin_same"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "shard 1 has published none in 10 s"),
        (TimeoutError("away"), "shard 1 does not answer: away"),
        (False, "shard 1 has no snapshot of the same rows"),
    ],
)
def test_what_not_all_shards_keep_is_said(answer: Any, reason: str) -> None:
    one = Pinned([answer])
    with pytest.raises(PinIncomplete, match=rf"1-7 is kept by shard 0.*\({reason}\)"):
        one.sharing.have_published("1-7")
    assert len(one.asked) < 30
    one.sharing.have_published()
    if answer is False:
        one.sharing.have_published("1-7", on=False)
    else:
        with pytest.raises(PinIncomplete, match="1-7 --off"):
            one.sharing.have_published("1-7", on=False)


def test_a_shard_says_whether_it_keeps_what_it_is_asked_to() -> None:
    pinned: list[tuple[str, bool]] = []
    history = SimpleNamespace(
        contained=lambda: {"1-7": Contained({1: 5}, frozenset(), 0)},
        pin=lambda name, on: pinned.append((name, on)),
    )
    running: Any = SimpleNamespace(
        publishing=threading.Lock(), partitions={}, chosen=None,
        serving=lambda: SimpleNamespace(history=history),
    )  # fmt: skip
    sharing = Sharing(running, Shard(1, 2, lambda *_: None))
    with running.publishing:
        assert sharing.pin_same({1: 5}, 0, True) is None, "whoever asks is not held up"
    assert sharing.pin_same({1: 6}, 0, True) is False
    running.chosen = object()
    assert sharing.pin_same({1: 6}, 0, True) is None, "it is about to be published"
    assert sharing.pin_same({1: 5}, 0, True) is True
    assert pinned == [("1-7", True)]


@pytest.mark.parametrize(("away", "asked"), [(True, 1), (False, 5)])
def test_a_shard_that_stands_still_is_waited_for_once(away: bool, asked: int) -> None:
    """Whoever asks shard 0 waits for the lock meanwhile."""
    seen: list[str] = []

    def ask_one(other: int, method: str, *args: object) -> bool:
        seen.append(method)
        assert running.lock.locked()
        if away:
            raise TimeoutError
        return False  # it has other rows

    running: Any = SimpleNamespace(lock=threading.Lock(), partitions={})
    server = Server("m", SPEC, "{}", "sum", 1)
    sharing = Sharing(running, Shard(0, 2, ask_one, tries=5, pause=lambda: None))
    with sharing.at_one_moment(server):
        assert seen == ["begin_cut"] * asked
    assert not running.lock.locked()
