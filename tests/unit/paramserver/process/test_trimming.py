"""Which rows of the journal every kept snapshot contains."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from paramserver.core.state import Contained
from paramserver.process import trimming
from paramserver.process.trimming import contained_in_all
from paramserver.store import PartitionInfo
from replay.journal.base import Partition


def partition(number: int, end: int, sealed: bool) -> PartitionInfo:
    return Partition(number, "m", "r", "s" * 64, end, sealed)


def check_the_one_that_lacks_most_decides(contained: Callable[..., dict[int, int]]) -> None:
    partitions = [partition(1, 9, False), partition(2, 7, True), partition(3, 4, False)]
    older = Contained({1: 3, 2: 5}, frozenset())
    newer = Contained({1: 8, 3: 4}, frozenset({2}))
    assert contained([newer], partitions) == {1: 8, 2: 7, 3: 4}
    assert contained([older, newer], partitions) == {1: 3, 2: 5}
    assert contained([newer, older], partitions) == {1: 3, 2: 5}
    assert contained([], partitions) == {}


def test_the_snapshot_that_lacks_most_decides() -> None:
    check_the_one_that_lacks_most_decides(contained_in_all)


def test_the_mutant_that_looks_at_one_snapshot_is_noticed() -> None:
    source, rule = inspect.getsource(trimming), "min(last, default=0)"
    assert source.count(rule) == 1
    names: dict[str, Any] = {"__name__": trimming.__name__}
    exec(compile(source.replace(rule, "max(last, default=0)"), "<mutant>", "exec"), names)
    with pytest.raises(AssertionError):
        check_the_one_that_lacks_most_decides(names["contained_in_all"])
