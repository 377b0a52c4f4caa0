"""Five liars among twenty senders of a real stream, in one process with two replicas.

The lies of :mod:`benchmarks.attacks.abuse` are about words; these are about any stream:

* *flip*: every label is a wrong one;
* *one*: every label is the same one;
* *random*: labels are drawn, whatever the row is;
* *half*: every other label is a wrong one;
* *burst*: honest until half of the rows are sent, then every label wrong, four times as often.

The five are honest for an eighth of the rows.  No constant of the filters was chosen with these.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from benchmarks.attacks import turning
from benchmarks.attacks.abuse import BURST, HONEST, HOSTILE, Played, of_answers
from benchmarks.fixtures.several_replicas import Dealt
from evaluation.streams import open_stream
from online.settings.model import ModelSettings
from replay import codec
from replay.example import Features, Label

KINDS: Final = ("flip", "one", "random", "half", "burst")
STREAMS: Final = {
    "phishing": ("binary", "logreg", 1_250),
    "elec2": ("binary", "logreg", 6_000),
    "insects": ("multiclass", "softmax", 6_000),
    "gas": ("multiclass", "softmax", 4_000),
    "digits": ("multiclass", "softmax", 4_000),
}
"""Task, learner and rows of each."""

POINTS: Final = 1.0
"""Of accuracy that lies may cost."""

_HONEST_ROWS: Final = 200

Row = tuple[Features, Label]
Sent = tuple[str, Features, Label, bool]
"""Source, features, label sent, and whether it is a lie."""


@dataclass(frozen=True, slots=True)
class Lied:
    """One kind of lie on one stream.

    ``accuracy``: of answers to honest rows of the second half, before they are learned, in percent;
    with filters, ``clean`` without the lies and filters, ``unfiltered`` with the lies.
    ``caught``: liars in quarantine; ``updates``: the most events of one of them from its first lie
    until then.  ``good``: no honest source is there, and accuracy is within a point of clean.
    """

    what: str
    seed: int
    accuracy: float
    clean: float
    unfiltered: float
    caught: int
    updates: int
    honest_quarantined: int
    honest_set_aside: int
    good: bool


def rows_of(name: str, data_dir: Path | None) -> list[Row]:
    """The stream's first rows.  Raises StreamUnusable."""
    rows = STREAMS[name][2]
    if name == "digits":
        return turning.digits(data_dir, rows)
    return list(islice(iter(open_stream(name, data_dir).rows), rows))


def sent(rows: Sequence[Row], kind: str, seed: int) -> Iterator[list[Sent]]:
    """Yield what is sent about each row, by honest sources and by liars of this kind."""
    draw = random.Random(seed)
    labels = list({str(y): y for _, y in sorted(rows, key=lambda row: str(row[1]))}.values())
    honest_until = len(rows) // 2 if kind == "burst" else max(_HONEST_ROWS, len(rows) // 8)
    for n, (features, label) in enumerate(rows):
        if draw.randrange(4):
            yield [(HONEST[draw.randrange(len(HONEST))], features, label, False)]
            continue
        liar = HOSTILE[draw.randrange(len(HOSTILE))]
        if n < honest_until or (kind == "half" and draw.random() < 0.5):
            yield [(liar, features, label, False)]
            continue
        if kind in ("one", "random"):
            told = [labels[0] if kind == "one" else draw.choice(labels)]
        else:
            wrong = [other for other in labels if other != label]
            told = [draw.choice(wrong) for _ in range(BURST if kind == "burst" else 1)]
        yield [(liar, features, said, said != label) for said in told]


def play(name: str, groups: Sequence[list[Sent]], filters: str) -> Played:
    """Play what is sent, and return what became of the sources; ``recall`` is accuracy here."""
    task, learner, _ = STREAMS[name]
    given = {"name": "m", "task": task, "learner": learner, "filters": filters}
    loop = Dealt(ModelSettings.model_validate(given))
    answers: list[tuple[str, str]] = []
    right, asked = 0, 0
    for n, group in enumerate(groups):
        for source, features, label, _ in group:
            if 2 * n > len(groups) and source in HONEST:
                asked += 1
                right += loop.model.predict(features).label == label
            row = loop.step(source, features, label)
            judged = codec.decode(row.payload).judged
            answers.append((row.verdict.value, "" if judged is None else judged.reason))
    events = [event for group in groups for event in group]
    return of_answers(events, answers, 100.0 * right / max(asked, 1), 0.0)


def run(data_dir: Path | None, names: Sequence[str], seeds: Sequence[int]) -> Iterator[Lied]:
    """Each kind on each stream with each seed."""
    for name in names:
        rows = rows_of(name, data_dir)
        for kind in KINDS:
            for seed in seeds:
                groups = list(sent(rows, kind, seed))
                truth = [[event for event in group if not event[3]] for group in groups]
                clean, bare = play(name, truth, "none"), play(name, groups, "none")
                found = play(name, groups, "default")
                caught = [found.updates[liar] for liar in HOSTILE if liar in found.updates]
                honest = len(found.quarantined.intersection(HONEST))
                yield Lied(
                    f"{name}, {kind}", seed, found.recall, clean.recall, bare.recall, len(caught),
                    int(max(caught, default=0)), honest, sum(found.set_aside[x] for x in HONEST),
                    not honest and found.recall >= clean.recall - POINTS,
                )  # fmt: skip
