"""Feedback is judged before it is written: the filters of one model in one replica.

The writer asks for each new row of a batch, in order, and each answer counts those before it.  The
verdict is written with the row, and what the row says of its source too, so nothing is judged
again when rows are learned later, by whomever.

What is known of a source here is what its rows have done as far as the learner's values have them,
what was learned since, and what is decided and not learned yet.  A row that turns out to be a
repeat takes back what it has done.

Sources are judged by one another, so nobody is judged while fewer than eight of them are heard of
in a day: what comes from one source alone is always taken whole.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final
from zlib import crc32

import msgspec
import numpy as np

from online.learning.base import BaseLearner
from online.learning.source_evidence import judged_of
from online.models.base import Model
from online.models.gradients import Sloped
from online.rows.history import is_again
from online.settings.model import ModelSettings
from online.trust.asking import Asking
from online.trust.root_set import RootSet
from online.trust.sources import Reputations
from online.trust.telling import digests_of, favour_of, loss_of, other_of, said_of
from paramserver.core.blocks import Blocks
from paramserver.filters.base import CLIPPED, QUARANTINED, REFUSED, Event
from paramserver.filters.chain import NAMES, Chain, Verdict, by_name
from paramserver.filters.sources import TAKEN
from replay import codec
from replay.example import Corrects, Example
from replay.journal.base import NewRow, Outcome
from replay.journal.base import Verdict as Written

_log = logging.getLogger(__name__)

SOURCES_MIN: Final = 8
"""Fewer sources can't be told apart from one another."""

ACTIVE_S: Final = 86_400.0
"""A source counts for so long.  In time and not in arrivals: a flood does not drive others out."""

_SEEN_MAX: Final = 64
_SET_ASIDE: Final = Written.QUARANTINED  # Python looks members up slowly
_RECENT: Final = 8192
_RECENT_S: Final = 3600.0
_CHECKED_MAX: Final = 4096
_SHOWN: Final = 20
_FACTOR_MIN: Final = 1e-3
_WHOLE_MIN: Final = 0.25


class _Recent:
    """Rows that were written last, :data:`_RECENT` and at most twice as many: key, and time."""

    def __init__(self) -> None:
        self._newer: dict[bytes, float] = {}
        self._older: dict[bytes, float] = {}

    def add(self, rows: dict[bytes, float]) -> None:
        self._newer.update(rows)
        if len(self._newer) >= _RECENT:
            self._newer, self._older = {}, self._newer

    def at(self, key: bytes) -> float | None:
        at = self._newer.get(key)
        return self._older.get(key) if at is None else at

    def has_any(self, keys: Sequence[bytes]) -> bool:
        disjoint = self._newer.keys().isdisjoint(keys) and self._older.keys().isdisjoint(keys)
        return not disjoint


class Filtering:
    """The filters of one model in one replica.

    Parameters:
        chain: The tests.
        model: Gives the model that answers now.
        clock, count: Give the clock of the values at hand, and the number of their version.
        root: The root set; None: there is none.
        weighs: Whether rows may weigh other than 1; else what would weigh less is taken whole, and
            what would weigh less than a quarter is set aside.
        rewards: Least and greatest.

    Attributes:
        reputations: What is known of sources.
        counts: Verdicts, and what was refused, by reason.
        elsewhere: Sources that were heard of in values since the last event here.
        effects, passed: Of ``reputations``: what the learner asks and says of a row.
    """

    def __init__(
        self,
        chain: Chain,
        *,
        model: Callable[[], Model],
        clock: Callable[[], dict[int, int]],
        count: Callable[[], int],
        root: RootSet | None = None,
        weighs: bool = True,
        rewards: tuple[float, float] | None = None,
    ) -> None:
        self.chain, self.root = chain, root
        self.counts: Counter[str] = Counter()
        self._model, self._count = model, count
        self._weighs, self._rewards = weighs, rewards
        self._seen: OrderedDict[str, float] = OrderedDict()
        self.elsewhere: dict[str, None] = {}
        self._recent = _Recent()
        self._checked: OrderedDict[bytes, Event] = OrderedDict()
        self.reputations = Reputations(chain, clock)
        self.effects, self.passed = self.reputations.effects, self.reputations.passed
        self._batch: set[bytes] = set()
        self._drift = False
        self._past = 0  # of the keys of all rows judged here: nobody knows those of others
        budgets = weighs and any(test.budgets for test in chain.filters)
        self._asking = Asking(chain.sources) if budgets else None

    # -- before the append -------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether there are enough sources to judge one."""
        return len(self._seen) >= SOURCES_MIN

    def _see_others(self, at: float) -> None:
        """Who has sent to another replica since the last event here counts as sending now."""
        for known in self.elsewhere:
            self._seen[known] = at
            self._seen.move_to_end(known)
        self.elsewhere = {}

    def _see(self, source: str, at: float) -> None:
        self._see_others(at)
        self._seen[source] = at
        self._seen.move_to_end(source)
        while len(self._seen) > _SEEN_MAX or next(iter(self._seen.values())) < at - ACTIVE_S:
            self._seen.popitem(last=False)

    def refusal(self, row: NewRow, example: Example | None = None) -> str | None:
        """Why no row may hold this; None if one may.  Changes nothing that is judged by.

        ``example`` is what the row's payload says; None: it is read here.
        """
        if self.elsewhere:
            self._see_others(row.at)
        if not self.active or row.half is not None:
            return None  # a half is looked at when it has met the other
        event = self._event(row, example or codec.decode(row.payload))
        problem = self.chain.filters[0].judge(event, self.chain.sources.get(row.source))
        if problem.refuse:
            self.counts["refused"] += 1
            return problem.reason
        self._checked[row.key] = event
        while len(self._checked) > _CHECKED_MAX:
            self._checked.popitem(last=False)
        return None

    def sleeps_through(self, rows: Sequence[NewRow], examples: Sequence[Example | None]) -> bool:
        """Whether all rows are taken as they are, because too few sources send; then they count.

        It is what :meth:`judge` makes of such rows one by one, and costs next to nothing.
        """
        if self.active or self.elsewhere:
            return False
        for row, example in zip(rows, examples, strict=True):
            if example is None or example.moved is not None:
                return False
            if row.verdict is _SET_ASIDE or is_again(row):
                return False
        keys = [row.key for row in rows]
        if self._recent.has_any(keys) or not self.reputations.pending.isdisjoint(keys):
            return False
        last: dict[str, float] = {}
        for row in reversed(rows):
            last.setdefault(row.source, row.at)
        if not self._seen.keys() >= last.keys():
            return False
        self._batch = set()
        for source, at in reversed(last.items()):
            self._see(source, at)
        return True

    def judge(
        self,
        rows: Sequence[NewRow],
        examples: list[Example | None] | None = None,
        *,
        more: bool = False,
    ) -> list[NewRow]:
        """The rows of a batch with their verdicts, each counting those before it.

        To be followed by :meth:`committed` or :meth:`dropped` with the same rows.  ``examples``
        are what the rows' payloads say, None where they have to be read; they become what the
        judged rows say.  ``more``: these belong to the batch of the last call, too.
        """
        if not more:
            self._batch = set()
        known: list[Example | None] = [None] * len(rows) if examples is None else examples
        out = []
        for i, row in enumerate(rows):
            judged, known[i] = self._judged(row, known[i])
            out.append(judged)
        return out

    def _judged(self, row: NewRow, example: Example | None) -> tuple[NewRow, Example | None]:
        if row.half is not None or is_again(row) or row.verdict is _SET_ASIDE:
            # a half that is kept is judged when it meets the other; or an operator has
            return row, example
        event = self._checked.pop(row.key, None)
        if self._is_repeat(row):
            return row, example
        if example is None:
            example = codec.decode(row.payload)
        if example.moved is not None:
            # a delta of a device is judged as it comes: online.serving.device_pushes
            return row, example
        if example.late is not None:
            row = self.by_standing(row)  # nobody has sent that label
            if self._asking is not None and self.active and row.verdict is not Written.QUARANTINED:
                row = self._asking.judged(row, example.weight)
                self.counts[Written.CLIPPED.value] += row.factor < 1.0
            return row, example
        self._see(row.source, row.at)
        if not self.active or example.judged is not None:
            return row, example
        event = event or self._event(row, example)
        self._past = crc32(row.key, self._past)
        self.chain.catch_up(event.key, event.version)
        verdict = self.chain.decide(event)
        if verdict.verdict == CLIPPED and not self._weighs:
            verdict = _unweighed(verdict)
        self.chain.observe(event, verdict)
        if (first := example.corrects) is not None:
            self.chain.take_back(first.source, first.evidence)
        self._note_drift()
        effects = self.reputations.decided(row.key, row.source, taken=verdict.taken)
        written = _WRITTEN.get(verdict.verdict, row.verdict)  # clipped: its values were bounded
        self._batch.add(row.key)
        self.counts[written.value] += 1
        judged = judged_of(effects, row.source, verdict.score, verdict.reason)
        factor = max(verdict.factor, _FACTOR_MIN) if verdict.verdict == CLIPPED else 1.0
        example = msgspec.structs.replace(example, judged=judged, corrects=_in_part(first, factor))
        payload = codec.encode(example)
        row = msgspec.structs.replace(row, verdict=written, factor=factor, payload=payload)
        return row, example

    def by_standing(self, row: NewRow) -> NewRow:
        """A row that no test looks at: what its source's standing alone makes of it."""
        self._see(row.source, row.at)
        if not (self.active and self.chain.sources.get(row.source).quarantined):
            return row
        self.counts[Written.QUARANTINED.value] += 1
        return msgspec.structs.replace(row, verdict=Written.QUARANTINED)

    def _is_repeat(self, row: NewRow) -> bool:
        if self.reputations.waits(row.key):
            return True
        at = self._recent.at(row.key)
        return at is not None and abs(row.at - at) <= _RECENT_S

    def _event(self, row: NewRow, example: Example) -> Event:
        model = self._model()
        gradient = None
        if self.chain.reference is not None and isinstance(model, Sloped):
            gradient = model.slope(example.features, example.sent_label, example.score)
            if gradient is not None and example.weight != 1.0:  # how far the event moves the model
                gradient = gradient * np.float32(example.weight)
        count, (digest, of_features) = self._count(), digests_of(example)
        return Event(
            source=row.source,
            key=row.key,
            gradient=gradient,
            loss=loss_of(example, numbers=self.chain.losses.numbers),
            version=count,
            base=count,
            label=said_of(example, numbers=self.chain.losses.numbers),
            digest=digest,
            features_digest=of_features,
            answer=max(example.score, key=example.score.__getitem__) if example.score else None,
            weight=example.weight,
            favour=favour_of(example, self._rewards),
            other=other_of(example, row.key, self._past),
        )

    # -- after it ----------------------------------------------------------------------------

    def committed(self, rows: Sequence[NewRow], outcomes: Sequence[Outcome]) -> None:
        """The rows of :meth:`judge` stand, or were there before: a repeat says nothing twice."""
        if not self._batch:
            stand = zip(rows, outcomes, strict=True)
            self._recent.add({r.key: r.at for r, o in stand if o.row is not None and not r.half})
            return
        for row, outcome in zip(rows, outcomes, strict=True):
            if row.half is not None:
                continue
            if outcome.row is None:  # another half stands there: the row is made anew
                if row.key in self._batch:
                    self._batch.discard(row.key)
                    self.reputations.take_back(row.key)
                continue
            self._recent.add({row.key: row.at})
            if row.key in self._batch:
                self._batch.discard(row.key)  # the same key again in the batch is a repeat of it
                if outcome.new and (written := outcome.row) is not None:
                    self.reputations.stands(row.key, (written.partition, written.offset))
                else:
                    self.reputations.take_back(row.key)

    def dropped(self) -> None:
        """Nothing of the batch was written."""
        for key in list(self._batch):
            self.reputations.take_back(key)
        self._batch = set()

    def _note_drift(self) -> None:
        if self.chain.drift and not self._drift:
            _log.warning("many sources have turned at once: nobody is quarantined meanwhile")
        self._drift = self.chain.drift

    def rebase(self, values: Blocks, opened: Blocks) -> None:
        """New values of the sources named; ``opened``: what was learned since."""
        self.reputations.rebase(values, opened)
        self._hear(self.chain.sources.heard)

    def reset(self, values: Blocks) -> None:
        """Begin with these values, and what is decided and not learned yet."""
        self.reputations.reset(values)
        taken = values[TAKEN].data if TAKEN in values else ()
        self._hear(taken)

    def _hear(self, names: Iterable[str]) -> None:
        self.elsewhere.update(dict.fromkeys(islice(names, _SEEN_MAX)))
        while len(self.elsewhere) > _SEEN_MAX:
            del self.elsewhere[next(iter(self.elsewhere))]

    # -- for operators -----------------------------------------------------------------------

    def report(self) -> dict[str, float]:
        """Gauges and counters of this replica."""
        counted = {f"filter_{name}": float(n) for name, n in self.counts.items()}
        return {
            **counted,
            "filter_sources": float(len(self.chain.sources)),
            "filter_sources_evicted": float(self.chain.sources.evicted),
            "filter_quarantined_sources": float(len(self.reputations.quarantined)),
            "filter_drift": float(self.chain.drift),
            "filter_active": float(self.active),
        }

    def summary(self) -> dict[str, Any]:
        """For operators; plain data."""
        worst = sorted(
            self.reputations.quarantined, key=lambda s: self.chain.sources.get(s).standing
        )
        direction = next((t for t in self.chain.filters if t.name == "direction"), None)
        scored = None if direction is None else getattr(direction, "mu", 0.0) > 0.0
        return {
            "tests": [test.name for test in self.chain.filters],
            "active": self.active,
            "sources_min": SOURCES_MIN,
            "root_set": None if self.root is None else {**self.root.summary(), "scores": scored},
            "sources": len(self.chain.sources),
            "quarantined": [
                {"source": source, "evidence": self.reputations.evidence(source)}
                for source in worst[:_SHOWN]
            ],
            "quarantined_sources": len(worst),
            "drift": self.chain.drift,
            "drift_alarms": self.chain.alarms,
        }


_WRITTEN: Final = {
    CLIPPED: Written.CLIPPED,
    QUARANTINED: Written.QUARANTINED,
    REFUSED: Written.QUARANTINED,
}


def filtering_for(
    model: ModelSettings,
    learner: BaseLearner,
    root: RootSet | None,
    *,
    sources_max: int,
    vouched: bool,
) -> Filtering | None:
    """The filters that the settings ask for; None: none.

    ``vouched``: access tokens say who a source is, so that a budget for each means something.
    Where callers name themselves, it would only cost those who send much.
    """
    if model.filters == "none":
        return None
    chosen = model.filters
    if chosen == "default":
        chosen = tuple(name for name in NAMES if name != "rate" or vouched)
    serving = learner.serving
    scored = root is not None and root.problem is None
    chain = by_name(
        chosen,
        serving.slope_size if scored and isinstance(serving, Sloped) else None,
        root.reference if root is not None and scored else None,
        answers=("true", "false") if model.task == "binary" else (),
        rewards=model.reward_range is not None,
        numbers=model.task == "regression" and model.reward_range is None,
        sources_max=sources_max,
    )
    return Filtering(
        chain,
        model=lambda: learner.serving,
        clock=lambda: learner.clock,
        count=lambda: learner.version[1],
        root=root,
        weighs=getattr(serving, "takes_weight", True),
        rewards=model.reward_range,
    )


def _in_part(first: Corrects | None, factor: float) -> Corrects | None:
    """Return what a final label takes back that is believed in part: that part of it."""
    if first is None or factor == 1.0:
        return first
    return msgspec.structs.replace(first, weight=first.weight * factor)


def _unweighed(verdict: Verdict) -> Verdict:
    """The verdict where a row is learned whole or not at all."""
    if verdict.factor < _WHOLE_MIN:
        return Verdict(QUARANTINED, 0.0, 0.0, verdict.score, verdict.reason, verdict.opinions)
    return Verdict("accepted", 1.0, 1.0, verdict.score, "", verdict.opinions)
