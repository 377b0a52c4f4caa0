"""Voices that are put in their places one by one are those that a look at all of them finds."""

from __future__ import annotations

import random
from itertools import islice
from math import fsum
from typing import Any

import pytest

from paramserver.evidence import voices as module
from paramserver.evidence.voices import Voices


def anew(voices: Voices) -> tuple[dict[str, Any], list[float], float]:
    """Those that send now, their rates in order, and how often they are far off just now."""
    now = {}
    for name, voice in islice(reversed(voices._voices.items()), module._NOW):
        if voice.at <= voices._events - module._ARRIVALS:
            break
        if name not in voices.flooding:
            now[name] = voice
    just = fsum([v.just_far for v in now.values()]) / max(len(now), 1)
    return now, sorted([v.rate for v in now.values()]), just


def play(seed: int) -> int:
    """Hear sources at random, some of them rarely; how often not all were looked at."""
    rng, voices = random.Random(seed), Voices()
    sources, few, kept = rng.choice([5, 26, 40]), rng.random() < 0.5, 0
    for _ in range(3000):
        for _ in range(rng.choice([1, 1, 1, 2, 7])):
            name = f"s{rng.randrange(sources)}" if rng.random() < 0.97 else f"r{rng.randrange(9)}"
            if few and rng.random() < 0.9:
                name = f"s{rng.randrange(4)}"
            hit = rng.random() < 0.3
            voices.hear(name, rng.randrange(99), hit=hit, far=hit and rng.random() < 0.3)
        if rng.random() < 0.02:
            voices.flooding = frozenset({f"s{rng.randrange(sources)}"})
            continue
        for _ in range(rng.randrange(3)):
            voices.pass_by("other")
        if rng.random() < 0.02:
            voices._events += 200
            continue
        kept += voices._are_the_same()
        expected = anew(voices)
        now = voices._look()
        assert (now, voices._rates, voices._rushing(now)) == expected
    return kept


def test_moved_voices_stand_where_a_look_at_all_puts_them() -> None:
    assert sum(play(seed) for seed in range(6)) > 3000, "all were looked at nearly each time"


def test_who_has_gone_silent_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    same = lambda self: self.flooding is self._looked  # noqa: E731
    monkeypatch.setattr(Voices, "_are_the_same", same)
    with pytest.raises(AssertionError):
        play(0)


def test_events_of_one_source_in_a_row_are_counted_until_another_is_heard() -> None:
    voices = Voices()
    assert voices.run("a") == 1
    for n in range(3):
        voices.hear("a", 10, hit=False, far=False)
        assert voices.run("a") == n + 2
    assert voices.run("b") == 1
    voices.hear("b", 10, hit=False, far=False)
    assert voices.run("a") == 1
    assert voices.run("b") == 2
    voices.pass_by("b")
    assert voices.run("b") == 3, "of a new source, too"
