"""Sources that suddenly send one of two labels only, about rows of which the other is true."""

from __future__ import annotations

import random
from math import exp, log

import pytest

from paramserver.evidence.rising import Rising
from paramserver.filters.base import Event
from paramserver.filters.chain import by_name

BEFORE, AMONG = 1_000, 500


def learned(liars: int) -> tuple[float, float]:
    """Weight of a lie and of an honest row, where a model follows the labels that come lately."""
    chain = by_name(("rate", "samples", "surprise"), None, None, answers=("true", "false"))
    draw, bias, weights = random.Random(7), 0.0, {True: 0.0, False: 0.0}
    for i in range(BEFORE + AMONG):
        for lie in (False, True) if liars and i >= BEFORE else (False,):
            names = range(26 - liars, 26) if lie else range(26 if i < BEFORE else 26 - liars)
            truth = not lie and draw.random() < 0.4
            side = draw.gauss(1.0 if truth else -1.0, 1.0)
            share = min(max(1.0 / (1.0 + exp(-side - bias)), 1e-6), 1.0 - 1e-6)
            label = "true" if lie or truth else "false"
            loss = -log(share if label == "true" else 1.0 - share)
            answer = "true" if share > 0.5 else "false"
            event = Event(
                f"s{draw.choice(names)}", (2 * i + lie).to_bytes(16, "little"), None, loss,
                label=label, answer=answer,
            )  # fmt: skip
            verdict = chain.decide(event)
            chain.observe(event, verdict)
            part = verdict.factor if verdict.taken else 0.0
            bias += 0.6 * part * ((label == "true") - share)
            if i >= BEFORE:
                weights[lie] += part
    return weights[True] / AMONG, weights[False] / AMONG


@pytest.mark.parametrize("asked", [True, False])
def test_who_suddenly_sends_one_label_only_is_held(
    monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    if not asked:  # the mutant: only rows that the model is not sure of are looked for
        monkeypatch.setattr(Rising, "note", lambda self, source, hit, size: None)
    lie, honest = learned(8)
    assert (lie < 0.5) is asked, (lie, honest)
    if asked:
        assert honest > 0.7


def test_where_nobody_does_nobody_is_held() -> None:
    assert learned(0)[1] > 0.98
