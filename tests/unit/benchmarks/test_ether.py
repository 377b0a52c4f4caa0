"""The switch between hosts of one machine, without a network: what it drops and what is late."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks import hosts, hosts_table
from benchmarks.ether import Link, Rule, Switch
from online.errors import StartRefused


def frame(target: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, target)) + bytes(60)


ALL = b"\xff" * 6 + bytes(60)


def switch(*rules: Rule) -> Switch:
    found = Switch([1, 2, 3], random.Random(3))
    found.set(rules)
    return found


def test_frames_go_to_whom_they_are_for() -> None:
    assert switch().take(1, frame(2), 0.0) == [(2, frame(2))]
    assert [port for port, _ in switch().take(1, ALL, 0.0)] == [2, 3]
    assert switch().take(1, frame(9), 0.0) == []


def test_a_link_is_cut_in_one_direction() -> None:
    cut = switch(Rule("3", "*", Link(loss=1.0)))
    assert cut.take(3, frame(1), 0.0) == []
    assert cut.take(1, frame(3), 0.0) == [(3, frame(3))]
    assert [port for port, _ in cut.take(1, ALL, 0.0)] == [2, 3]


def test_a_frame_is_late_by_as_much_as_it_is_told() -> None:
    late = switch(Rule("*", "*", Link(delay_s=0.2)))
    assert late.take(1, frame(2), 5.0) == []
    assert late.wait_s(5.0) == pytest.approx(0.2)
    assert late.due(5.1) == []
    assert late.due(5.21) == [(2, frame(2))]
    assert late.wait_s(5.3) is None


def test_a_fifth_is_lost() -> None:
    lossy = switch(Rule("*", "*", Link(loss=0.2)))
    arrived = sum(len(lossy.take(1, frame(2), 0.0)) for _ in range(5000))
    assert 0.77 < arrived / 5000 < 0.83


def test_an_unknown_fault_is_refused_with_those_that_there_are() -> None:
    assert hosts.fault("one-way") == "one-way"
    with pytest.raises(StartRefused, match="no fault 'fire'"):
        hosts.fault("fire")


def result(seed: int, resumed_s: float, **changed: Any) -> hosts.Result:
    found: dict[str, Any] = {
        "fault": "full", "seconds": 1.0, "hosts": {"head": 1, "worker1": 1, "worker2": 1},
        "server_on": "head", "acknowledged": 100, "acknowledged_during": 10 * seed,
        "unanswered": 0, "lost": [], "twice": [], "strangers": [], "fsck_good": True,
        "adopted": 0, "resumed_s": resumed_s, "sockets": "",
        "statuses": {"learned": 99, "retried after 503": 3},
        "answered": {"head during": 5, "worker1 during": 5, "worker2 during": 5},
    }  # fmt: skip
    return hosts.Result(**(found | changed))


def test_a_table_has_medians_and_the_worst_and_a_failed_run_stops_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(fault: str, *, seed: int, **_: Any) -> hosts.Result:
        if seed == 3:
            raise TimeoutError("no answers within 60 s")
        if seed == 2:
            silent = {"head during": 5, "worker1 during": 5}
            return result(2, 9.0, lost=["c1-7"], answered=silent)
        return result(seed, float(seed))

    monkeypatch.setattr(hosts_table, "run", run)
    kept: list[Mapping[str, Any]] = []
    rows = hosts_table.campaign([("full", 1.0)], 4, keep=kept.append, progress=lambda _: None)
    assert kept == rows
    assert [row["good"] for row in rows] == [True, True, False, False]
    (line,) = hosts_table.table(rows)
    assert (line["runs"], line["good"], line["lost"], line["refused"]) == (4, 2, 1, 9)
    assert (line["resumed s, median"], line["resumed s, worst"]) == (1.0, 9.0)
    assert line["silent"] == ["worker2"]
    (failed,) = hosts_table.table(rows[3:])
    assert (failed["runs"], failed["good"], failed["resumed s, worst"]) == (1, 0, None)
