"""Attacks by defences: what a third of hostile arrivals does to a network, event by event.

R1: 600 honest updates, R2: 3,000.  Constants of our chain were chosen with four attacks (sign
flip, label flip, ALIE 1, backdoor) and seeds 0 to 2; the tables are of all attacks and seeds that
chose nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.studies.memory import digits
from benchmarks.studies.pushes import perceptron as net
from benchmarks.studies.pushes.hostile import (
    BATCH,
    KINDS,
    MEAN,
    SD,
    Answer,
    Arena,
    Images,
    Outcome,
    Push,
    Run,
    world,
)
from benchmarks.studies.pushes.inputs import LayerReference
from benchmarks.studies.pushes.pushes import usual
from paramserver.filters.base import Event

SEEDS: Final = (10, 11, 12, 13, 14)
R1_HONEST: Final = 600
R2_HONEST: Final = 3_000
R2_KINDS: Final = (
    "none", "noise", "-10 g", "label flip", "IPM 6", "ALIE 1", "ALIE .25", "backdoor",
    "flood 83 %", "aware backdoor",
)  # fmt: skip

Progress = Callable[[str], None]
Make = Callable[[Arena], Callable[[Push], Answer]]


def none(arena: Arena) -> Callable[[Push], Answer]:
    """Apply every push as it is."""
    return lambda push: Answer(push.gradient, 1.0)


class Ours:
    """The chain of this project, with its defaults."""

    def __init__(self, arena: Arena) -> None:
        self.reference = LayerReference(
            arena.root_labels, arena.root_gradient, rows=BATCH, layer=net.FIRST
        )
        self.chain = usual(arena.params.size, self.reference)
        self.chain.refresh(b"start", 0)
        self.chain.refresh(b"begin", 0)
        self._seed = arena.seed

    def __call__(self, push: Push) -> Answer:
        key = self._seed.to_bytes(8, "big") + push.number.to_bytes(8, "big")
        event = Event(f"s{push.source}", key, push.gradient, version=push.version, base=push.base)
        verdict = self.chain.decide(event)
        self.chain.observe(event, verdict)
        if not verdict.taken:
            return Answer(None, 0.0)
        return Answer(push.gradient * np.float32(verdict.factor), verdict.factor)


DEFENCES: Final[dict[str, Make]] = {"none": none, "ours": Ours}


@dataclass(frozen=True, slots=True)
class Cell:
    """An attack on a defence: means over the seeds in percent, ``worst`` the least accuracy."""

    attack: str
    defence: str
    narrow: bool
    honest: int
    seeds: int
    accuracy: float
    worst: float
    triggered: float
    honest_rejected: float
    honest_weight: float
    hostile_accepted: float
    hostile_weight: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A defence over all attacks.

    ``worst_case`` is the least mean accuracy over the attacks, ``triggered`` the most frequent
    success of a backdoor, ``honest_rejected`` and ``hostile_accepted`` the largest over the attacks
    (mimics and waiting sources are left out of the latter: what they send is honest work).
    """

    what: str
    seeds: int
    no_attack: float
    worst_case: float
    worst_attack: str
    triggered: float
    honest_rejected: float
    hostile_accepted: float
    asked: str
    good: bool


def images(data_dir: Path | None) -> Images:
    """MNIST as arrays.  Raises StreamUnusable."""
    found = digits.mnist(data_dir)
    x, asked_x = (
        ((rows.numpy() - MEAN) / SD).astype(np.float32) for rows in (found.x, found.asked_x)
    )
    return Images(x, found.y.numpy(), asked_x, found.asked_y.numpy())


def cell(
    data: Images, attack: str, defence: str, *, narrow: bool, honest: int, seeds: Sequence[int]
) -> Cell:
    """Run an attack on a defence with each seed."""
    found: list[Outcome] = []
    for seed in seeds:
        dealt = world(data, seed, narrow=narrow)
        make = DEFENCES[defence]
        found.append(Run(dealt, KINDS[attack], make, seed, honest).outcome())

    def mean(name: str) -> float:
        return statistics.fmean(getattr(outcome, name) for outcome in found)

    return Cell(
        attack,
        defence,
        narrow,
        honest,
        len(seeds),
        mean("accuracy"),
        min(outcome.accuracy for outcome in found),
        mean("triggered"),
        mean("honest_rejected"),
        mean("honest_weight"),
        mean("hostile_accepted"),
        mean("hostile_weight"),
    )


def cells(
    data: Images,
    attacks: Sequence[str],
    of: Sequence[str],
    *,
    narrow: bool,
    honest: int,
    seeds: Sequence[int],
    progress: Progress = lambda line: None,
) -> list[Cell]:
    """Every attack on every defence."""
    found = []
    for defence in of:
        for attack in attacks:
            one = cell(data, attack, defence, narrow=narrow, honest=honest, seeds=seeds)
            progress(
                f"{'3 classes' if narrow else 'iid'} {honest} {defence} | {attack}: "
                f"{one.accuracy:.1f} (least {one.worst:.1f}, trigger {one.triggered:.0f}) "
                f"honest rejected {one.honest_rejected:.1f} weight {one.honest_weight:.0f} "
                f"hostile accepted {one.hostile_accepted:.0f} weight {one.hostile_weight:.0f}"
            )
            found.append(one)
    return found


_HONEST_WORK: Final = ("none", "mimic", "sleeper", "late burst")
_ASKED: Final = {(False, 600): 87.0, (False, 3_000): 94.0, (True, 600): 81.0}
_REJECTED_MAX: Final = 4.0
_COST_MAX: Final = 0.5


def summary(found: Sequence[Cell], defence: str, unfiltered: float | None) -> Summary:
    """One defence's line; ours is judged."""
    own = [one for one in found if one.defence == defence]
    narrow, honest = own[0].narrow, own[0].honest
    worst = min(own, key=lambda one: one.accuracy)
    calm = next((one.accuracy for one in own if one.attack == "none"), float("nan"))
    rejected = max(one.honest_rejected for one in own)
    least = _ASKED.get((narrow, honest))
    asked, good = "", True
    if defence == "ours" and least is not None and unfiltered is not None:
        asked = f"worst >= {least:g}, rejected <= {_REJECTED_MAX:g}, calm within {_COST_MAX:g}"
        good = (
            worst.accuracy >= least and rejected <= _REJECTED_MAX and unfiltered - calm <= _COST_MAX
        )
    return Summary(
        f"{'three classes' if narrow else 'iid'}, {honest}: {defence}",
        own[0].seeds,
        calm,
        worst.accuracy,
        worst.attack,
        max(one.triggered for one in own),
        rejected,
        max((o.hostile_weight for o in own if o.attack not in _HONEST_WORK), default=0.0),
        asked,
        good,
    )


def matrix(found: Sequence[Cell]) -> list[dict[str, str]]:
    """A row for each attack, a column for each defence: accuracy, and the trigger's success."""
    rows: dict[str, dict[str, str]] = {}
    for one in found:
        text = f"{one.accuracy:.1f}"
        if "backdoor" in one.attack:
            text += f" / {one.triggered:.0f}"
        if one.defence == "ours":
            text += f" ({one.honest_rejected:.0f}, {one.hostile_weight:.0f})"
        rows.setdefault(one.attack, {"what": one.attack})[one.defence] = text
    return list(rows.values())


@dataclass(frozen=True, slots=True)
class Part:
    """A table: its name, all cells, and a line for each defence."""

    name: str
    cells: list[Cell]
    summaries: list[Summary]


def part(
    data: Images,
    name: str,
    attacks: Sequence[str],
    *,
    narrow: bool,
    honest: int,
    seeds: Sequence[int],
    progress: Progress = lambda line: None,
) -> Part:
    """The cells of a table, with and without our chain."""
    of = tuple(DEFENCES)
    found = cells(data, attacks, of, narrow=narrow, honest=honest, seeds=seeds, progress=progress)
    unfiltered = next(
        (one.accuracy for one in found if (one.defence, one.attack) == ("none", "none")), None
    )
    return Part(name, found, [summary(found, defence, unfiltered) for defence in of])


def parts(
    data: Images,
    *,
    quick: bool = False,
    long: bool = False,
    seeds: Sequence[int] = SEEDS,
    progress: Progress = lambda line: None,
) -> list[Part]:
    """R1 with equal sources and with three classes each; ``long`` adds R2, both ways."""
    if quick:
        some = ("none", "-10 g", "label flip")
        one = seeds[:1]
        return [
            part(
                data, "R1, iid, in small", some, narrow=False, honest=200, seeds=one,
                progress=progress,
            )
        ]  # fmt: skip
    found = [
        part(
            data, f"R1, {name}", tuple(KINDS), narrow=narrow, honest=R1_HONEST,
            seeds=seeds, progress=progress,
        )
        for name, narrow in (("iid", False), ("three classes a source", True))
    ]  # fmt: skip
    if long:
        found += [
            part(
                data, f"R2, {name}", R2_KINDS, narrow=narrow, honest=R2_HONEST,
                seeds=seeds[:2], progress=progress,
            )
            for name, narrow in (("iid", False), ("three classes a source", True))
        ]  # fmt: skip
    return found
