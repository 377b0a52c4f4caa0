"""Kill a service whose predictions wait for their labels: each counts once, as what it was.

Callers ask, and say of some answers that they were a success: at once, after the window, twice, or
never.  What is not answered they send again.  Each prediction has a feature of its own, and the
model steps so little that the weight of a feature is the sum of the lessons that stand, whatever
their order: a label by default that stays beside a later one, is taken back twice, or never, makes
a sum of its own.  What must come of it is worked out from the rows of the journal.  A prediction
that was written behind its answer and lost in a kill gets no label by default: these are counted.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.faults.exactly_once import (
    Client,
    Sent,
    Site,
    learned,
    settings_of,
    wait_answered,
    wait_in_flight,
)
from benchmarks.faults.settled import journal_rows, wait_given
from benchmarks.fixtures.service import Running, write_settings
from online.service.processes import free_port
from online.settings.config import Settings, load
from replay import codec

MODEL: Final = "counting"  # as the campaign whose machinery this is
WINDOW_S: Final = 2.0
_ALL_EVERY: Final = 4
_PAUSE_S: Final = (0.5, 4.0)
_NEAR: Final = 0.02
"""A sum of lessons may be so far off: each is told by the slope at the weight of then."""


@dataclass(frozen=True, slots=True)
class Result:
    """All predictions and what became of them; the promise is kept if the lists are empty.

    ``lost`` were acknowledged and are in no row, ``twice`` are in more rows than they may be,
    ``wrong`` have another sum than their rows.  ``early`` had their label before the window ended,
    ``corrected`` after it; ``lost_halves`` have neither label nor default.  ``rows`` are the labels
    by default in the journal, and those that correct one; ``shown`` is what the status says.
    """

    rounds: dict[str, int]
    predictions: int
    early: int
    defaulted: int
    corrected: int
    lost_halves: int
    lost: list[str]
    twice: list[str]
    wrong: list[str]
    rows: list[int]
    shown: dict[str, Any]
    fsck_good: bool
    statuses: dict[str, int]
    seconds: float

    @property
    def good(self) -> bool:
        """Nothing is lost, twice, or stays beside what has taken its place."""
        told = [self.shown[name] for name in ("defaulted", "corrected")] == self.rows
        return not (self.lost or self.twice or self.wrong) and self.fsck_good and told


class Converting(Client):
    """Asks about one event after the other; some of them turn out to be a success."""

    _gives_up = 0.0

    def run(self) -> None:
        """Ask until told to stop, then send the labels that are left."""
        i, later = 0, list[tuple[float, str, str]]()
        while not self._stop_event.is_set():
            event = f"c{self._number}-{i}"
            i += 1
            if (id_ := self._ask(event)) is None:
                continue
            fate = self._rng.random()
            if fate < 0.2:
                self._succeed(event, id_)
            elif fate < 0.5:
                later.append(
                    (time.monotonic() + self._rng.uniform(0.5, 3.0) * WINDOW_S, event, id_)
                )
            while later and later[0][0] < time.monotonic():
                self._succeed(*later.pop(0)[1:])
        for _, event, id_ in later:
            self._succeed(event, id_)

    def _ask(self, event: str) -> str | None:
        own = event if self._rng.random() < 0.2 else None
        body = {"features": {event: 1.0}, **({"id": own} if own else {})}
        code, answer = self.call("predict", body)
        if code != 200:  # asked again it would be another one
            with self._sent.lock:
                self._sent.statuses[f"predict {code or 'no answer'}"] += 1
            time.sleep(0.05)
            return None
        with self._sent.lock:
            self._sent.unanswered.add(event)
        return str(answer["id"])

    def _succeed(self, event: str, id_: str) -> None:
        """Say that it was a success, until that is answered, and some times once more."""
        for _ in range(1 + (self._rng.random() < 0.2)):
            self._tell(event, {"id": id_, "label": True, "source": "bench"})

    def _tell(self, event: str, body: dict[str, Any]) -> None:
        give_up = time.monotonic() + 120.0
        while time.monotonic() < give_up:
            code, answer = self.call("feedback", body)
            with self._sent.lock:
                told = answer.get("status", "")
                self._sent.statuses[f"label {code or 'no answer'} {told}".strip()] += 1
                if code == 200:
                    self._sent.acknowledged.add(event)
            unknown = (answer.get("error") or {}).get("code") == "unknown_id"
            if code in (200, 202) or unknown:  # an id of its own, and a kill took the prediction
                return
            time.sleep(0.05)


def run(
    rounds: int, *, seed: int = 0, clients: int = 8, progress: Callable[[str], None] = print
) -> Result:
    """A campaign of ``rounds`` kills, every fourth of every process at once."""
    rng, begun, done = random.Random(seed), time.monotonic(), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="online-kill-") as name:
        folder = Path(name)
        given = settings_of(free_port())
        given["models"] = [
            {
                "name": MODEL,
                "task": "binary",
                "learner": "benchmarks.fixtures.learners:sloping",
                "sync": {"merge": "sum"},
                "snapshots": {"interval_s": 1, "keep": 4},
                "conversion_window": WINDOW_S,
            }
        ]
        path = write_settings(folder, given)
        site, sent, stop = Site(folder, None, None), Sent(), threading.Event()
        threads: list[Client] = [
            Converting(i, lambda: site.running.url, sent, stop, seed * 1000 + i, pause_s=0.01)
            for i in range(clients)
        ]
        for thread in threads:
            thread.start()
        try:
            for i in range(rounds):
                target = "all" if i % _ALL_EVERY == _ALL_EVERY - 1 else rng.choice(site.targets())
                time.sleep(rng.uniform(*_PAUSE_S))
                wait_answered(sent, 4 * (i + 1))
                wait_in_flight(threads, min(4, clients))
                done[site.kill(target)] += 1
                progress(f"round {i + 1}/{rounds}: killed {target}, {len(sent.unanswered):,} asked")
            stop.set()
            for thread in threads:
                thread.join(150)
            settings = load(path, {}, {})
            wait_given(settings, MODEL)
            return judge(site.running, settings, sent, dict(done), begun)
        finally:
            stop.set()
            site.stop()


def judge(
    running: Running, settings: Settings, sent: Sent, rounds: dict[str, int], begun: float
) -> Result:
    """Compare what callers know with the rows, and the rows with the weights of the model."""
    times, findings, now = learned(running, settings)
    firsts, finals = dict[str, list[Any]](), dict[str, list[Any]]()
    for row in journal_rows(settings, MODEL):
        example = codec.decode(row.payload)
        (event,) = example.features
        (firsts if example.corrects is None else finals).setdefault(event, []).append(example)
    rows = [
        sum(e.late is not None for some in firsts.values() for e in some),
        sum(e.corrects.defaulted for some in finals.values() for e in some),
    ]
    lost, twice, wrong, tally = [], [], [], Counter[str]()
    for event in sorted({*sent.unanswered, *sent.acknowledged}):
        first, final = firsts.get(event, []), finals.get(event, [])
        if len(first) > 1 or len(final) > 1:
            twice.append(event)
            continue
        if event in sent.acknowledged and not any(e.label is True for e in (*first, *final)):
            lost.append(event)
            continue
        expected, kind = 0.0, "lost_halves"
        if first:
            taught = first[0]
            expected = taught.weight if taught.label is True else -taught.weight
            kind = "early" if taught.label is True else "defaulted"
            if final:  # of what was taught first nothing is left
                expected, kind = final[0].weight, "corrected"
        tally[kind] += 1
        if abs(times.get(event, 0.0) - expected) > _NEAR:
            wrong.append(f"{event} ({kind}) counts {times.get(event, 0.0)}, not {expected:g}")
    return Result(
        rounds=rounds, predictions=sum(tally.values()), early=tally["early"],
        defaulted=tally["defaulted"], corrected=tally["corrected"],
        lost_halves=tally["lost_halves"], lost=lost, twice=twice, wrong=wrong, rows=rows,
        shown=now["conversions"], fsck_good=findings.good, statuses=dict(sent.statuses),
        seconds=time.monotonic() - begun,
    )  # fmt: skip
