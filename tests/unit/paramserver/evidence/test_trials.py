"""Labels that only a minority sends, beside what the model made of them at the same time."""

from __future__ import annotations

import random
from collections import Counter
from math import exp, log

import pytest

from online.trust.filtering import _unweighed
from paramserver.evidence.odds import Votes
from paramserver.evidence.trials import Trials
from paramserver.evidence.voices import Voices
from paramserver.filters.base import CLIPPED, Event
from paramserver.filters.chain import by_name

LABELS = ("a", "b", "c", "d")


@pytest.mark.parametrize("in_time", [True, False])
def test_a_label_is_compared_with_wrong_ones_of_its_time(in_time: bool) -> None:
    """Once the model has learned it, it is likelier everywhere: that proves nobody."""
    trials = Trials({}, lambda bin_: bin_)
    for generation, bin_ in ((1, 90), (2, 40)):
        at = generation if in_time else 1
        trials.add_unsaid(at, "b", bin_, 20)
    trials.add(2 if in_time else 1, "b", "liar", 40, 10)
    assert trials.scores("b") == {"liar": (10, 5.0)} if in_time else {"liar": (10, 10.0)}
    trials.leave(1)
    trials.leave(2)
    assert trials.scores("b") == {}


def flooded(liars: int = 8) -> tuple[float, int]:
    """Weight of 700 lies, and honest rows of 700 that are set aside: all are of one label.

    The model knows of its rows how sure it is and how often each label came lately, as one does
    that has forgotten all other labels.  It takes no weights.
    """
    chain = by_name(("rate", "samples", "surprise"), None, None)
    draw, bias = random.Random(5), dict(zip(LABELS, (6.0, 0.0, 0.0, 0.0), strict=True))
    weight, aside = 0.0, 0
    for i in range(2_100):
        for lie in (False, True) if i >= 1_400 else (False,):
            names = range(26 - liars, 26) if lie else range(26 if i < 1_400 else 26 - liars)
            label = draw.choice(LABELS[1:]) if lie else "a"
            raw = {y: exp(b + draw.gauss(0.0, 0.7)) for y, b in bias.items()}
            shares = {y: max(x / sum(raw.values()), 1e-6) for y, x in raw.items()}
            other = draw.choice([y for y in LABELS if y != label])
            event = Event(
                f"s{draw.choice(names)}", (2 * i + lie).to_bytes(16, "little"), None,
                -log(shares[label]), label=label, answer=max(shares, key=shares.__getitem__),
                other=(other, -log(shares[other])),
            )  # fmt: skip
            verdict = chain.decide(event)
            if verdict.verdict == CLIPPED:
                verdict = _unweighed(verdict)
            chain.observe(event, verdict)
            part = verdict.factor if verdict.taken else 0.0
            for y in LABELS:
                bias[y] += 0.1 * part * ((y == label) - shares[y])
            weight, aside = weight + lie * part, aside + (i >= 1_400 and not lie and not part)
    return weight, aside


def test_lies_about_labels_that_nobody_else_sends_are_hardly_learned() -> None:
    weight, aside = flooded()
    assert weight < 0.25 * 700
    assert aside <= 0.02 * 700


def test_without_comparing_at_the_same_time_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control."""
    add, add_unsaid = Trials.add, Trials.add_unsaid
    monkeypatch.setattr(Trials, "add", lambda self, _, *args: add(self, 1, *args))
    monkeypatch.setattr(Trials, "add_unsaid", lambda self, _, *args: add_unsaid(self, 1, *args))
    monkeypatch.setattr(Trials, "leave", lambda self, generation: None)
    assert flooded()[0] > 0.25 * 700


def test_liars_are_no_measure_for_what_is_wrong_of_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: only they say anything else, so what is likely would speak for a lie."""
    monkeypatch.setattr(Voices, "is_hard", lambda self, label: False)
    monkeypatch.setattr(Votes, "denied_by_few", lambda self, known: [])
    assert flooded()[1] > 0.02 * 700


def denied(sizes: dict[str, float], lies: int = 0) -> int:
    """How many of six labels are denied by few; new names send eight lies each."""
    draw, votes, said = random.Random(952), Votes(), Counter[str]()
    for i in range(1_152):
        source = f"new-{i // 8}" if i < lies else draw.choices([*sizes], [*sizes.values()])[0]
        label, other = draw.sample("abcdef", 2)
        votes.add(label, source, 0, 1, said=True)
        votes.add(other, source, 50, 1, said=False)
        said[source] += 1
    return len(votes.denied_by_few({source for source, n in said.items() if n >= 8}))


def test_few_that_send_nearly_all_deny_nearly_all() -> None:
    """Nine in ten of a label's wrong ones were held to be theirs, however much they send."""
    unequal = {f"s{i}": ((i + 1) / 26) ** 0.125 - (i / 26) ** 0.125 for i in range(26)}
    assert denied(unequal) == 0
    few = dict.fromkeys((f"s{i}" for i in range(8)), 1.0) | dict.fromkeys(("a", "b", "c"), 0.4)
    assert denied(few, lies=96) == 0
