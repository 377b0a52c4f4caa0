"""This benchmark measures what filters cost honest sources on real streams.

There is no attacker, and all runs in one process.  A row is predicted, judged and learned, as the
service does it, by the plain model and by one behind the filters.  Once all rows come from one
source, as they do where nobody has heard of sources, and once they are dealt to ten, without and
with a root set of the stream's first rows.  Then to sources that differ as honest ones do: each
sends some labels nine times of ten, five report one label (or a third of them) that nobody else
sends, a few send most rows, or one sends 200 rows after another.  More ways are in
:mod:`benchmarks.attacks.deals`.
"""

from __future__ import annotations

import random
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from evaluation.streams import open_stream
from online.learning.scores import score_of
from online.learning.source_evidence import Evidence
from online.models.base import learn_example
from online.models.loading.load import load
from online.settings.config import data_dir
from online.settings.model import ModelSettings
from online.trust.filtering import filtering_for
from online.trust.root_set import RootSet
from replay import codec
from replay.example import Example, Features, Label
from replay.journal.base import NewRow, Outcome, Row, Verdict

STREAMS: Final = (
    ("elec2", "binary", "logreg"),
    ("phishing", "binary", "logreg"),
    ("insects", "multiclass", "softmax"),
)
_ROOT_FROM: Final = 800
_ROOT_ROWS: Final = 10
DEALT: Final = (
    ("alike", 1, False),
    ("alike", 10, False),
    ("alike", 10, True),
    ("by label", 12, False),
    ("by label", 60, False),
    ("one label", 17, False),
    ("by size", 12, False),
    ("by size", 60, False),
    ("one after another", 12, False),
)
POINTS: Final = 0.5
"""Of accuracy that filters may cost."""

LOST_MAX: Final = 0.01
"""Share of honest rows that may be set aside where directions are compared with a root set."""


@dataclass(frozen=True, slots=True)
class Honest:
    """One stream; accuracies in percent, ``us`` the mean of judging one row."""

    what: str
    sources: int
    rows: int
    accuracy: float
    unfiltered: float
    clipped: int
    set_aside: int
    quarantined: int
    us: float
    good: bool


def run(rows: int | None = None) -> Iterator[Honest]:
    """Each stream with one source and with many."""
    for name, task, learner in STREAMS:
        plain = _play(name, task, learner, "alike", 1, rows, "none")
        unfiltered = 100.0 * plain.right / plain.n
        for deal, sources, with_root in DEALT:
            loop = _play(name, task, learner, deal, sources, rows, "default", with_root=with_root)
            assert loop.filters is not None
            condemned = len(loop.filters.reputations.quarantined)
            accuracy, lost = 100.0 * loop.right / loop.n, loop.counts["quarantined"]
            apart = unfiltered - accuracy
            alike = apart == 0.0 if sources == 1 else apart <= POINTS
            what = f"{name}, {deal}" + (", root set" if with_root else "")
            yield Honest(
                what, sources, loop.n, accuracy, unfiltered, loop.counts["clipped"], lost,
                condemned, 1e6 * loop.judging_s / loop.n,
                alike and lost <= (LOST_MAX * loop.n if with_root else 0),
            )  # fmt: skip


def source_of(deal: str, sources: int, n: int, label: Label, draw: random.Random) -> str:
    """Who sends row ``n``."""
    if deal == "by label" and draw.random() < 0.9:
        groups = 3
        group = zlib.crc32(str(label).encode()) % groups
        return f"s{groups * draw.randrange(sources // groups) + group}"
    third = zlib.crc32(str(label).encode()) % 3 == 0
    reported = label if isinstance(label, bool) else third
    if deal == "one label":
        return f"s{draw.randrange(5) if reported else draw.randrange(5, sources)}"
    if deal == "by size":
        return f"s{int(sources * draw.random() ** 4)}"
    if deal == "one after another":
        return f"s{n // 200 % sources}"
    return f"s{draw.randrange(sources)}"


class Loop:
    """One replica without a service, which answers, judges and learns its feedback.

    Attributes:
        filters: What judges; None: nothing does.
        counts: Rows by verdict.
        right: Answers that were.
        judging_s: Seconds spent on judging.
    """

    def __init__(
        self, settings: ModelSettings, *, vouched: bool, root: Sequence[tuple[Features, Label]] = ()
    ) -> None:
        self._task = settings.task
        self.model = load(
            settings.learner, settings.params, task=settings.task, classes=None, key=bytes(32),
            base_dir=Path(),
        ).model  # fmt: skip
        local: Any = SimpleNamespace(serving=self.model, clock={}, version=(1, 0))
        kept = RootSet(Path("root"), list(root), lambda: self.model) if root else None
        self.filters = filtering_for(settings, local, kept, sources_max=1_000, vouched=vouched)
        self._evidence = Evidence()
        self._evidence.observer = self.filters
        self.counts = Counter[str]()
        self.n = self.right = 0
        self.judging_s = 0.0

    def step(self, source: str, features: Features, label: Label) -> NewRow:
        """One event; the row that a replica would write."""
        self.n += 1
        answer = self.model.predict(features)
        self.right += answer.label == label
        example = Example(features, label, score=score_of(self._task, answer))
        key = self.n.to_bytes(16, "little")
        payload = codec.encode(example)
        row = NewRow(key, str(self.n), source, Verdict.ACCEPTED, payload, float(self.n))
        if self.filters is not None:
            begun_s = time.perf_counter()
            (row,) = self.filters.judge([row])
            self.filters.committed([row], [Outcome(True, self._standing(row))])
            self.judging_s += time.perf_counter() - begun_s
        self.counts[row.verdict] += 1
        self._evidence.add(self._standing(row), codec.decode(row.payload).judged)
        if row.verdict in (Verdict.ACCEPTED, Verdict.CLIPPED):
            learn_example(self.model, example, row.factor)
        return row

    def _standing(self, row: NewRow) -> Row:
        given = (row.key, row.event_id, row.source, row.verdict, row.factor, row.payload, row.at)
        return Row(self.n, 1, self.n, *given)


def _play(
    name: str, task: Any, learner: str, deal: str, sources: int, rows: int | None, filters: Any,
    *, with_root: bool = False,
) -> Loop:  # fmt: skip
    stream = open_stream(name, data_dir()).rows
    root = first_of_each(stream) if with_root else []
    settings = ModelSettings(name="m", task=task, learner=learner, filters=filters)
    loop = Loop(settings, vouched=True, root=root)
    draw = random.Random(0)
    for features, label in islice(iter(stream), rows):
        loop.step(source_of(deal, sources, loop.n, label, draw), features, label)
    return loop


def first_of_each(stream: Iterable[tuple[Features, Label]]) -> list[tuple[Features, Label]]:
    """The first rows of each class, as somebody might choose a root set."""
    of_class: dict[Label, list[tuple[Features, Label]]] = {}
    for row in islice(iter(stream), _ROOT_FROM):
        of_class.setdefault(row[1], []).append(row)
    return [row for rows in of_class.values() for row in rows[:_ROOT_ROWS]]
