"""A model's rehearsal memory: made from its settings, filled from the journal, kept up to date."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from evaluation.metrics import Task
from online.errors import StartRefused
from online.models.base import Model, Rehearsing, Repeating
from online.replica.shared import ReplicaParts
from online.rows.history import Decisions
from online.rows.in_order import rows_after
from online.settings.model import ModelSettings
from online.trust.filtering import Filtering
from paramserver.core.server import MergeRule
from replay import codec
from replay.buffers.balanced import ClassBalanced
from replay.buffers.base import Buffer
from replay.buffers.compartments import TwoCompartments
from replay.buffers.longterm import LongTerm
from replay.buffers.reservoir import Reservoir
from replay.buffers.ring import Ring
from replay.errors import ReplayError
from replay.journal.base import Journal
from replay.memory import Memory
from replay.rehearsal import Rehearsal

log = logging.getLogger(__name__)

_RECENT_SHARE: Final = 0.2  # of a mixed buffer


def memory_for(settings: ModelSettings, model: Model, rule: MergeRule) -> Memory | None:
    """Return the empty rehearsal memory of a model, or None if the settings do not enable it.

    Raises StartRefused if the settings enable it for a model that cannot rehearse.
    """
    replay, task, name = settings.replay, settings.task, settings.name
    if not replay.on:
        return None
    if (why := why_no_replay(model, rule)) is not None:
        raise StartRefused(
            f"model {name}: replay is {replay.policy}, and {why}",
            "Leave replay out, or serve a torch network, a linear model by SGD, or ftrl",
        )
    if replay.policy == "balanced" and task == "regression":
        raise StartRefused(
            f"model {name}: replay is balanced, and regression has no classes",
            "Take `policy: reservoir` or `policy: mixed`",
        )
    rule_of = Rehearsal()
    if (rows := replay.rows) is not None:
        rule_of = replace(rule_of, rows_short=rows, rows_long=rows)
    if (passes := replay.passes) is not None:
        rule_of = replace(rule_of, passes_short=passes, passes_long=passes)
    seed = zlib.crc32(name.encode())
    return Memory(
        partial(POLICIES[replay.policy], replay.capacity, seed, replay.source_share_max, task),
        rule=rule_of,
        seed=seed,
        balanced=task != "regression",
        classes=task != "regression",
        distil=replay.distil if isinstance(model, Rehearsing) else 0.0,
    )


def why_no_replay(model: Model, rule: MergeRule) -> str | None:
    """Why the model cannot rehearse rows; None if it can."""
    if rule in ("ordered", "overlay", "lagging") and not model.mergeable:
        return (
            "it does not forget what the stream stops showing: it counts rows, or keeps them, "
            f"and would count those that are learned again twice ({model.why_not_mergeable})"
        )
    if rule in ("ordered", "overlay", "lagging"):
        return f"merge is {rule}: all replicas have to learn the same, and each draws for itself"
    why: str | None = getattr(model, "why_no_replay", None)
    if why is None and not isinstance(model, (Rehearsing, Repeating)):
        why = "it learns a row once"
    return why


def _mixed(capacity: int, seed: int, share_max: float, task: Task) -> Buffer:
    """Make a buffer of a long-term sample, uniform in regression, and the newest rows."""
    recent = int(capacity * _RECENT_SHARE)
    long: LongTerm
    if task == "regression":
        long = Reservoir(capacity - recent, seed, source_share_max=share_max)
    else:
        long = ClassBalanced(capacity - recent, seed, source_share_max=share_max)
    return TwoCompartments(long, Ring(recent, source_share_max=share_max))


POLICIES: Final[Mapping[str, Callable[[int, int, float, Task], Buffer]]] = {
    "balanced": lambda n, seed, share_max, _: ClassBalanced(n, seed, source_share_max=share_max),
    "reservoir": lambda n, seed, share_max, _: Reservoir(n, seed, source_share_max=share_max),
    "recent": lambda n, _, share_max, __: Ring(n, source_share_max=share_max),
    "mixed": _mixed,
}
"""The buffer of each policy, given capacity, seed, largest share of a source, and task."""


def fill(memory: Memory, journal: Journal, model: str, rows: int, decisions: Decisions) -> int:
    """Offer the newest learned rows of the journal to the memory, in commit order.

    About ``rows`` rows are read, fewer of this model where others share the journal.  Returns how
    many were offered.  Rows removed by retention are missing; each row carries the score of its
    prediction.
    """
    after = max(journal.follow(model, 2**62, 1).upto - rows, 0)
    offered = 0
    for row in filter(decisions.learned, rows_after(journal, model, after) if rows else ()):
        if row.offset > decisions.without.get(row.partition, 0):
            example = codec.decode(row.payload)
            if example.moved is None and not example.provisional:
                memory.keep(row, example, example.score)
                offered += 1
    return offered


class MemoryUpkeep:
    """Maintains the rows kept for rehearsal, if the settings enable it.

    Parameters:
        shared: Its learner owns the memory; without one, all methods do nothing.
        filters: Reports sources that become quarantined; None: there are no filters.
    """

    def __init__(self, shared: ReplicaParts, filters: Filtering | None) -> None:
        self._learner, self._control, self._store = shared.learner, shared.control, shared.store
        self._counts, self._settings, self._filters = shared.counts, shared.settings, filters
        self._banned_by = 0  # newest control row whose bans are purged
        if filters is not None:
            filters.reputations.on_quarantine = self.purge

    def alarm(self) -> None:
        """Handle a rise of the error: the kept rows are of an outdated stream."""
        if self._learner.memory is not None:
            self._learner.memory.alarm()

    def purge(self, source: str) -> None:
        """Remove all kept rows of the source."""
        if self._learner.memory is not None:
            self._counts["replay_purged"] += self._learner.memory.purge(source)

    def look(self) -> None:
        """Purge the sources that were banned since the last call."""
        decisions = self._control.decisions
        if decisions.seq > self._banned_by:
            self._banned_by = decisions.seq
            for source in decisions.bans:
                self.purge(source)

    async def fill(self) -> None:
        """Rebuild the memory from the journal, at the start and after a rewrite."""
        memory = self._learner.memory
        if memory is None:
            return
        name, rows = self._settings.name, self._settings.replay.rebuild_rows
        try:
            decisions = await self._control.current()
            fresh = memory.emptied()
            n = await self._store.read(fill, fresh, self._store.journal, name, rows, decisions)
        except ReplayError as error:
            log.warning("nothing is rehearsed of what came before: %s", error)
            return
        self._learner.memory = fresh
        quarantined = () if self._filters is None else self._filters.reputations.quarantined
        for source in (*quarantined, *decisions.bans):
            self.purge(source)
        log.info("model %s: %d of %d rows kept to be learned again", name, len(fresh.buffer), n)
