"""Deals of honest sources, in short."""

from __future__ import annotations

from collections import Counter, defaultdict
from random import Random

import pytest

from benchmarks.attacks import deals
from benchmarks.attacks.floods import Row

ROWS: list[Row] = [
    ({"x": float(i % 7), "y": float(i), "z": i % 2 == 0}, i % 3 == 0) for i in range(1_200)
]


def dealt(deal: str) -> list[deals.Sent]:
    """Deal the rows."""
    return list(deals.DEALS[deal](ROWS, Random(5)))


@pytest.mark.parametrize("deal", deals.DEALS)
def test_every_deal_sends_true_rows(deal: str) -> None:
    sent, known = dealt(deal), {(x["x"], x["y"], y) for x, y in ROWS}
    assert len(sent) > 600
    assert len({source for source, _, _ in sent}) >= 16
    true = sum((x["x"], x["y"], y) in known for _, x, y in sent)
    if deal == "noise":
        assert 0.94 < true / len(sent) < 0.99
    elif deal == "bias":
        assert 0.6 < true / len(sent) < 0.95
    else:
        assert true == len(sent)


@pytest.mark.parametrize(("deal", "share"), [("half", 0.5), ("half-label", 0.5), ("huge", 0.6)])
def test_one_source_is_large(deal: str, share: float) -> None:
    sizes = Counter(source for source, _, _ in dealt(deal))
    assert sizes["big"] / len(ROWS) == pytest.approx(share, abs=0.05)


def test_mixes_of_labels_are_as_they_are_called() -> None:
    mixes = defaultdict(Counter[object])
    for source, _, y in dealt("one-label"):
        mixes[source][y] += 1
    assert {len(mix) for mix in mixes.values()} == {1}
    labels = [y for _, _, y in dealt("seasons")]
    assert set(labels[:400]) == {False}
    assert set(labels[400:800]) == {True}
    assert {source for source, _, y in dealt("rare") if y} == {"s00", "s01"}


def test_a_deal_is_judged_by_points_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deals, "rows_of", lambda *given: ROWS)
    (found,) = deals.run(None, ["phishing"], [3], ["alike"], 300)
    assert found.rows == 300
    assert found.good == (
        found.unfiltered - found.accuracy <= deals.POINTS and found.set_aside <= deals.SET_ASIDE_MAX
    )
    assert 0.5 < found.weight <= 1.0
