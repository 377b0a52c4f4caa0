"""The filters of one model in one replica, which judge feedback before it is written.

The writer calls :meth:`Filtering.judge` with the new rows of a batch in order, and each verdict
takes the rows before it into account.  A row is written with its verdict and its evidence about its
source, so that no row is judged again when it is learned later, by any replica.

The evidence about a source is the sum of the learner's values, of rows learned since, and of rows
judged but not learned yet.  If a row turns out to be a repeat, its evidence is subtracted again.

Sources are compared with one another, so no row is judged while fewer than :data:`SOURCES_MIN`
sources were active in a day: with a single source all rows are accepted.
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
from online.models.gradients import HasGradient
from online.rows.history import is_again
from online.settings.model import ModelSettings
from online.trust.asker_budgets import AskerBudgets
from online.trust.event_facts import (
    digests_of,
    favour_of,
    loss_of,
    reported_label,
    unreported_label,
)
from online.trust.root_set import RootSet
from online.trust.sources import Reputations
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
"""Fewer active sources than this can't be compared with one another."""

ACTIVE_S: Final = 86_400.0
"""Seconds for which a source stays active; not a number of rows, so a flood expires no others."""

_SEEN_MAX: Final = 64
_QUARANTINED: Final = Written.QUARANTINED  # looking up an enum's member is slow
_RECENT: Final = 8192
_RECENT_S: Final = 3600.0
_CHECKED_MAX: Final = 4096
_SHOWN: Final = 20
_FACTOR_MIN: Final = 1e-3
_WHOLE_MIN: Final = 0.25


class _Recent:
    """The times of the last written rows by key: :data:`_RECENT` to twice as many."""

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
        chain: The chain of filters.
        model: Returns the model that serves now.
        clock, count: Return clock and version count of the learner's values.
        root: The root set; None: there is none.
        weighs: Whether rows may have weights other than 1.  If not, a reduced weight counts as 1,
            and one below :data:`_WHOLE_MIN` quarantines the row.
        rewards: Least and greatest reward; None if labels are no rewards.

    Attributes:
        reputations: The evidence about sources.
        counts: Numbers of rows by verdict, and of refused rows.
        elsewhere: Sources active in other replicas, by values since the last event here.
        effects, passed, cut: Methods of ``reputations`` that the learner calls.
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
        self._checked: OrderedDict[tuple[bytes, bytes], Event] = OrderedDict()
        self.reputations = Reputations(chain, clock)
        self.effects, self.passed = self.reputations.effects, self.reputations.passed
        self.cut = self.reputations.cut
        self._batch: set[bytes] = set()
        self._drift, self._past = False, 0  # a checksum of all judged rows' keys: nobody knows it
        budgets = weighs and any(test.budgets for test in chain.filters)
        self._asker_budgets = AskerBudgets(chain.sources) if budgets else None

    # -- before the append -------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Return whether there are enough active sources to compare them."""
        return len(self._seen) >= SOURCES_MIN

    def _see_others(self, at: float) -> None:
        """Mark sources as active that sent to other replicas since the last event here."""
        for known in self.elsewhere:
            self._seen[known] = at
            self._seen.move_to_end(known)
        self.elsewhere = {}

    def _see(self, source: str, at: float) -> None:
        if self.elsewhere:
            self._see_others(at)
        self._seen[source] = at
        self._seen.move_to_end(source)
        while len(self._seen) > _SEEN_MAX or next(iter(self._seen.values())) < at - ACTIVE_S:
            self._seen.popitem(last=False)

    def refusal(self, row: NewRow, example: Example | None = None) -> str | None:
        """Return why the row must be refused; None if it may be written.

        Changes no evidence.  ``example`` is the decoded payload; if None, it is decoded here.
        """
        self._see_others(row.at)
        if not self.active or row.half is not None:
            return None  # half of a join: it is judged when the other half arrives
        event = self._event(row, example or codec.decode(row.payload))
        problem = self.chain.filters[0].judge(event, self.chain.sources.get(row.source))
        if problem.refuse:
            self.counts["refused"] += 1
            return problem.reason
        self._checked[row.key, row.payload] = event  # another row may have the same id
        while len(self._checked) > _CHECKED_MAX:
            self._checked.popitem(last=False)
        return None

    def sleeps_through(self, rows: Sequence[NewRow], examples: Sequence[Example | None]) -> bool:
        """Accept a whole batch while too few sources are active; False if rows must be judged.

        The result is that of :meth:`judge`, at almost no cost.
        """
        if self.active or self.elsewhere:
            return False
        for row, example in zip(rows, examples, strict=True):
            if example is None or example.moved is not None:
                return False
            if row.verdict is _QUARANTINED or is_again(row):
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
        """Return the rows of a batch with their verdicts, each of which depends on earlier rows.

        Must be followed by :meth:`committed` or :meth:`dropped` with the same rows.  ``examples``
        are the decoded payloads (None: to be decoded here); the list is updated to those of the
        judged rows.  ``more``: the rows belong to the batch of the previous call.
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
        if row.half is not None or is_again(row) or row.verdict is _QUARANTINED:
            # half of a join, a repeated label, or a row that was quarantined already
            return row, example
        event = self._checked.pop((row.key, row.payload), None) if self._checked else None
        if self._is_repeat(row):
            return row, example
        if example is None:
            example = codec.decode(row.payload)
        if example.moved is not None:  # judged on arrival, by online.serving.device_pushes
            return self.by_standing(row, seen=False), example
        if example.late is not None:
            row = self.by_standing(row)  # a default label, which no source sent
            budgets = self._asker_budgets
            if budgets is not None and self.active and row.verdict is not Written.QUARANTINED:
                row = budgets.judged(row, example.weight)
                self.counts[Written.CLIPPED.value] += row.factor < 1.0
            return row, example
        self._see(row.source, row.at)
        if not self.active or example.judged is not None:
            return row, example
        event = event or self._event(row, example)
        self._past, chain = crc32(row.key, self._past), self.chain
        chain.catch_up(event.key, event.version)
        verdict = chain.decide(event)
        if verdict.verdict == CLIPPED and not self._weighs:
            verdict = _unweighed(verdict)
        chain.observe(event, verdict)
        if (first := example.corrects) is not None:
            chain.take_back(first.source, _taken_back(first, row.source, verdict))
        self._note_drift()
        effects = self.reputations.decided(row.key, row.source)
        written = _WRITTEN.get(verdict.verdict, row.verdict)  # the row's may be clipped already
        self._batch.add(row.key)
        self.counts[written.value] += 1
        judged = judged_of(effects, verdict.score, verdict.reason)
        factor = max(verdict.factor, _FACTOR_MIN) if verdict.verdict == CLIPPED else 1.0
        example = msgspec.structs.replace(example, judged=judged, corrects=_in_part(first, factor))
        payload = codec.encode(example)
        row = msgspec.structs.replace(row, verdict=written, factor=factor, payload=payload)
        return row, example

    def by_standing(self, row: NewRow, *, seen: bool = True) -> NewRow:
        """Judge a row that no filter tests by its source, which is then active if ``seen``."""
        if seen:
            self._see(row.source, row.at)
        if not (self.active and self.chain.sources.get(row.source).quarantined):
            return row
        self.counts[Written.QUARANTINED.value] += 1
        return msgspec.structs.replace(row, verdict=Written.QUARANTINED)

    def _is_repeat(self, row: NewRow) -> bool:
        at = self._recent.at(row.key)
        lately = at is not None and abs(row.at - at) <= _RECENT_S
        return lately or self.reputations.waits(row.key)

    def _event(self, row: NewRow, example: Example) -> Event:
        model = self._model()
        gradient = None
        if self.chain.reference is not None and isinstance(model, HasGradient):
            gradient = model.slope(example.features, example.sent_label, example.score)
            if gradient is not None and example.weight != 1.0:  # the step scales with the weight
                gradient = gradient * np.float32(example.weight)
        count, (digest, of_features) = self._count(), digests_of(example)
        numbers, score = self.chain.losses.sums.numbers, example.score
        return Event(
            source=row.source,
            key=row.key,
            gradient=gradient,
            loss=loss_of(example, numbers=numbers),
            version=count,
            base=count,
            label=reported_label(example, numbers=numbers),
            digest=digest,
            features_digest=of_features,
            answer=max(score, key=score.__getitem__) if score else None,
            weight=example.weight,
            favour=None if self._rewards is None else favour_of(example, self._rewards),
            other=unreported_label(example, row.key, self._past),
        )

    def committed(self, rows: Sequence[NewRow], outcomes: Sequence[Outcome]) -> None:
        """Record that the batch was committed; subtract the evidence of rows that are repeats."""
        if not self._batch:
            stand = zip(rows, outcomes, strict=True)
            self._recent.add({r.key: r.at for r, o in stand if o.row is not None and not r.half})
            return
        recent: dict[bytes, float] = {}
        for row, outcome in zip(rows, outcomes, strict=True):
            if row.half is not None:
                continue
            if outcome.row is None:  # the journal has another half: the row is joined again
                if row.key in self._batch:
                    self._batch.discard(row.key)
                    self.reputations.take_back(row.key)
                continue
            recent[row.key] = row.at
            if row.key in self._batch:
                self._batch.discard(row.key)  # the same key again in the batch is a repeat of it
                if outcome.new and (written := outcome.row) is not None:
                    self.reputations.stands(row.key, (written.partition, written.offset))
                else:
                    self.reputations.take_back(row.key)
        self._recent.add(recent)

    def dropped(self) -> None:
        """Subtract the evidence of the whole batch, which was not written."""
        for key in list(self._batch):
            self.reputations.take_back(key)
        self._batch = set()

    def _note_drift(self) -> None:
        if self.chain.drift and not self._drift:
            _log.warning("many sources have turned at once: nobody is quarantined meanwhile")
        self._drift = self.chain.drift

    def rebase(self, values: Blocks) -> None:
        """Set new values of the named sources."""
        self.reputations.rebase(values)
        self._hear(self.chain.sources.heard)

    def reset(self, values: Blocks) -> None:
        """Set the evidence to these values plus that of rows not learned yet."""
        self.reputations.reset(values)
        taken = values[TAKEN].data if TAKEN in values else ()
        self._hear(taken)

    def _hear(self, names: Iterable[str]) -> None:
        self.elsewhere.update(dict.fromkeys(islice(names, _SEEN_MAX)))
        while len(self.elsewhere) > _SEEN_MAX:
            del self.elsewhere[next(iter(self.elsewhere))]

    # -- for operators -----------------------------------------------------------------------

    def report(self) -> dict[str, float]:
        """Return gauges and counters of this replica."""
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
        """Return a summary for operators, as plain data."""
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
    """Make the filters that the settings ask for; None if there are none.

    ``vouched`` is true if access tokens authenticate sources.  Otherwise callers can choose their
    names, so budgets by source (``rate``) would only hurt honest sources with many rows.
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
        serving.slope_size if scored and isinstance(serving, HasGradient) else None,
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


def _taken_back(first: Corrects, source: str, verdict: Verdict) -> dict[str, float]:
    """Return the evidence about a first label that the final one of a source takes back.

    What stays in the model counts for or against its source, unless the source itself corrects it.
    """
    if first.offset == 0:  # nothing of it was learned
        return first.evidence
    if verdict.verdict == QUARANTINED:
        return {}
    share = verdict.factor if verdict.verdict == CLIPPED and first.source != source else 1.0
    return {test: nats * share for test, nats in first.evidence.items()}


def _in_part(first: Corrects | None, factor: float) -> Corrects | None:
    """Scale the label that is replaced by the factor of the final label."""
    if first is None or factor == 1.0:
        return first
    return msgspec.structs.replace(first, weight=first.weight * factor)


def _unweighed(verdict: Verdict) -> Verdict:
    """Convert a clipped verdict for a model without weights: accept or quarantine the row."""
    if verdict.factor < _WHOLE_MIN:
        return Verdict(QUARANTINED, 0.0, 0.0, verdict.score, verdict.reason, verdict.opinions)
    return Verdict("accepted", 1.0, 1.0, verdict.score, "", verdict.opinions)
