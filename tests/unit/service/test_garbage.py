"""How often a process of the service looks for circles of dead objects."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from online.messages.structs import Event, Receipt
from online.service.parts.garbage import collect_seldom, scan_seldom


@pytest.fixture
def as_before() -> Iterator[None]:
    """Whatever a test does to the collector is undone; what tests before it did is none of its."""
    threshold = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*threshold)


@pytest.mark.usefixtures("as_before")
def test_what_was_built_is_left_alone_and_young_objects_are_looked_at_seldom() -> None:
    before, frozen, held = gc.get_threshold()[0], gc.get_freeze_count(), [[] for _ in range(1000)]
    scan_seldom()
    assert gc.get_freeze_count() == frozen
    assert gc.get_threshold()[0] > 10 * before
    passes = sum(one["collections"] for one in gc.get_stats())
    collect_seldom()
    assert gc.get_freeze_count() - frozen >= len(held)
    assert gc.get_threshold()[0] > 10 * before
    assert sum(one["collections"] for one in gc.get_stats()) == passes, "nothing was looked through"


def test_rows_and_receipts_are_no_work_for_the_collector() -> None:
    assert not gc.is_tracked(Event(True, features={"a": 1.0}))
    assert not gc.is_tracked(Receipt("learned", "one"))
    assert gc.is_tracked([])
