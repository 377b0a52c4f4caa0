"""Lies about any stream: what is sent, and that five who lie are found on a small one."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from benchmarks.attacks import liars, number_lies, outlying_targets
from benchmarks.attacks.abuse import HOSTILE
from paramserver.evidence.sums import Sums
from paramserver.filters import surprise

ROWS = [({"x": float(i)}, i % 3) for i in range(2_000)]


@pytest.mark.parametrize("kind", liars.KINDS)
def test_what_is_sent(kind: str) -> None:
    events = list(liars.sent(ROWS, kind, 3))
    assert events == list(liars.sent(ROWS, kind, 3)), "a seed says it all"
    begun = 1_000 if kind == "burst" else 250
    assert not any(lie for group in events[:begun] for *_, lie in group)
    for (features, label), group in zip(ROWS, events, strict=True):
        for source, given, told, lie in group:
            assert given == features
            assert lie == (told != label)
            assert not lie or source in HOSTILE
    late = [event for group in events[begun:] for event in group if event[0] in HOSTILE]
    share = sum(lie for *_, lie in late) / len(late)
    least = {"flip": 1.0, "burst": 1.0, "half": 0.4, "one": 0.6, "random": 0.6}
    assert share >= least[kind]
    sizes = Counter(len(group) for group in events[begun:] if group[0][0] in HOSTILE)
    assert set(sizes) == {4 if kind == "burst" else 1}


def test_five_who_turn_labels_round_are_found_and_nobody_else() -> None:
    rows = liars.rows_of("phishing", None)[:700]
    events = list(liars.sent(rows, "flip", 11))
    found = liars.play("phishing", events, "default")
    assert found.recall > 80.0
    assert found.quarantined == set(HOSTILE), found
    unfiltered = liars.play("phishing", events, "none")
    assert not unfiltered.quarantined, "control: without filters nobody is found"


def _measured(n: int, seed: int) -> list[outlying_targets.Row]:
    draw, rows = random.Random(seed), list[outlying_targets.Row]()
    for _ in range(n):
        x, y = draw.gauss(0.0, 1.0), draw.gauss(0.0, 1.0)
        rows.append(({"x": x, "y": y}, 20.0 + 3.0 * x - 2.0 * y + draw.gauss(0.0, 1.0)))
    return rows


def test_who_lies_about_numbers_within_their_range_is_found_and_nobody_else() -> None:
    groups = number_lies.sent(_measured(1_000, 5), 5, "flip")
    found = number_lies.play("price, linear", groups, "default", 1)
    assert found.caught == 5, found
    assert found.set_aside == 0, found
    bare = number_lies.play("price, linear", groups, "none", 1)
    assert found.error < bare.error - 0.1, (found, bare)


def test_lies_about_numbers_are_not_found_by_labels_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: each number is a label of its own, as if it were a class."""
    monkeypatch.setattr(Sums, "kind", lambda self, label: label)
    groups = number_lies.sent(_measured(600, 5), 5, "flip")
    assert number_lies.play("price, linear", groups, "default", 1).caught == 0


@pytest.mark.parametrize("says", [surprise._OF_A_RUN, 0.0])
def test_lies_about_numbers_in_bodies_of_many_rows_are_found(
    monkeypatch: pytest.MonkeyPatch, says: float
) -> None:
    """0: the mutant, to which a whole body says less than two rows do.

    The bound on what one error teaches is off in both: it alone finds these liars, too.
    """
    monkeypatch.setattr(surprise, "_OF_A_RUN", says)
    monkeypatch.setattr(surprise, "_LARGEST", 1e9)
    groups, draw = list[list[number_lies.Sent]](), random.Random(8)
    for n in range(3_200):
        lying = n >= 1_600 and n // 96 % 2 == 1  # four of them, one after the other
        who = f"liar{n // 24 % 4}" if lying else f"s{n % 12}"
        x = draw.random()
        label = 10.0 * (1.0 - x if lying else x) + draw.gauss(0.0, 0.5)
        groups.append([(who, {"x": x}, label, lying)])
    found = number_lies.play("price, linreg", groups, "default", 1)
    assert (found.caught == 4) is (says > 0.0), found
    assert found.set_aside == 0, found


@pytest.mark.parametrize("deal", number_lies.DEALS)
def test_nobody_who_is_honest_about_numbers_is_set_aside(deal: str) -> None:
    groups = number_lies.sent(_measured(600, 6), 6, None, deal)
    found = number_lies.play("price, linear", groups, "default", 2)
    bare = number_lies.play("price, linear", groups, "none", 2)
    assert found.set_aside == 0, found
    assert found.error <= 1.05 * bare.error, (found, bare)


@pytest.mark.parametrize("largest", [surprise._LARGEST, 1e9])
def test_one_error_teaches_no_more_than_the_largest_usual_one(
    monkeypatch: pytest.MonkeyPatch, largest: float
) -> None:
    """1e9: the mutant, by which a lie is learned whole until its source is known."""
    monkeypatch.setattr(surprise, "_LARGEST", largest)
    groups, draw = list[list[number_lies.Sent]](), random.Random(3)
    for n in range(600):
        x = draw.random()
        label = 10.0 * x + draw.gauss(0.0, 0.1)
        groups.append([(f"s{n % 12}", {"x": x}, label, False)])
    groups[500].append(("s3", {"x": 0.0}, 10.0, True))
    found = number_lies.play("price, linreg", groups, "default", 1)
    assert (found.weight < 0.5) is (largest < 2.0), found
    assert found.set_aside == 0, found
