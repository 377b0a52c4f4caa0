"""A few rows that several sources send again and again weigh little, where others send new ones."""

from __future__ import annotations

import itertools
import random

import pytest

from paramserver.filters import samples
from paramserver.filters.base import Event
from paramserver.filters.chain import Chain, by_name

HONEST, LIARS, ROWS = 18, 8, 40
_KEYS = itertools.count()


def learned(chain: Chain, source: str, row: int, label: str = "true") -> float:
    """Send a row with a label; the weight with which it is learned."""
    key = next(_KEYS).to_bytes(16, "little")
    event = Event(source, key, label=label, digest=hash((row, label)), features_digest=row)
    verdict = chain.decide(event)
    chain.observe(event, verdict)
    return verdict.factor if verdict.taken else 0.0


def world(kinds: int) -> tuple[Chain, random.Random]:
    """A chain that knows honest sources, of whose rows there are so many kinds."""
    chain, draw = by_name(("samples",), None, None), random.Random(3)
    for i in range(600):
        learned(chain, f"s{i % (HONEST + LIARS)}", 1_000 + draw.randrange(kinds))
    return chain, draw


@pytest.mark.parametrize("works", [True, False])
def test_the_same_rows_of_several_sources_weigh_little(
    monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    if not works:  # the mutant: each source may send them as often as it sends others between
        monkeypatch.setattr(samples, "_COPIED_MAX", 0.0)
    chain, draw = world(10**9)
    lies, honest = 0.0, 0.0
    for n in range(600):
        lies += learned(chain, f"s{HONEST + n % LIARS}", n // LIARS % ROWS, "lie")
        honest += learned(chain, f"s{n % HONEST}", 1_000 + draw.randrange(10**9))
    assert (lies < 0.35 * 600) is works, lies
    assert honest == 600


def test_where_rows_are_of_few_kinds_they_count_whole() -> None:
    chain, draw = world(200)
    sent = [learned(chain, f"s{n % HONEST}", 1_000 + draw.randrange(200)) for n in range(600)]
    assert sum(sent) > 0.97 * 600, "but for those that a source has just sent itself"


def test_nobody_is_framed_by_who_sends_its_rows_first() -> None:
    chain, _ = world(10**9)
    for n in range(50):
        for liar in range(LIARS):
            learned(chain, f"s{HONEST + liar}", n, "lie")
        assert learned(chain, f"s{n % HONEST}", n, "true") == 1.0


def test_so_many_rows_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_SENT_MAX", 100)
    chain, _ = world(10**9)
    (test,) = (test for test in chain.filters if isinstance(test, samples.Samples))
    assert len(test._sent) == 100
