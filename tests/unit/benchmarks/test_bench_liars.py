"""Lies about any stream: what is sent, and that five who lie are found on a small one."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks import liars
from benchmarks.abuse import HOSTILE

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
