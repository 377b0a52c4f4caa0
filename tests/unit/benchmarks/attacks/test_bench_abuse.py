"""Liars among senders of messages, in one process: the bench's world on made-up text."""

from __future__ import annotations

import random

import pytest

from benchmarks.attacks import abuse


def messages(n: int, seed: int = 0) -> list[tuple[str, bool]]:
    """Spam has words of its own; both have some in common."""
    draw = random.Random(seed)
    ham = [f"ham{i}" for i in range(60)]
    spam = [f"spam{i}" for i in range(20)] + ["call"]
    out = []
    for _ in range(n):
        bad = draw.random() < 0.3
        words = [draw.choice(ham) for _ in range(6)]
        words += [draw.choice(spam) for _ in range(4)] if bad else []
        out.append((" ".join(words), bad))
    return out


@pytest.mark.parametrize("kind", ["flip", "burst"])
def test_liars_are_caught_and_nobody_else(kind: str) -> None:
    sent, held = messages(1_500), messages(300, 1)
    lies = list(abuse.posts(sent, kind, 0))
    found = abuse.alone(lies, held, "default")
    bare = abuse.alone(lies, held, "none")
    clean = abuse.alone([post for post in lies if not post[3]], held, "default")
    line = abuse.judge(kind, 0, found, clean, bare)
    assert line.caught == len(abuse.HOSTILE)
    assert line.updates <= abuse.UPDATES_MAX
    assert (line.honest_quarantined, line.honest_set_aside) == (0, 0)
    assert line.recall >= line.clean_recall - 2.0
    assert not bare.quarantined, "without filters nobody is"
    assert clean.quarantined == frozenset()


def test_posts_are_those_of_the_kind() -> None:
    sent = messages(3_000)
    for kind in abuse.KINDS:
        lies = [post for post in abuse.posts(sent, kind, 0) if post[3]]
        assert {source for source, *_ in lies} == set(abuse.HOSTILE)
        words = [abuse.KEYWORD in text for _, text, _, _ in lies]
        assert all(words) is (kind in ("keyword", "aimed"))
