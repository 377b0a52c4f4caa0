"""Makes a model's rehearsal memory from its settings, and fills it from the journal."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from evaluation.metrics import Task
from online.errors import StartRefused
from online.models.base import Model, Rehearsing, Repeating
from online.rows.history import Decisions
from online.rows.in_order import rows_after
from online.settings.model import ModelSettings
from paramserver.core.server import MergeRule
from replay import codec
from replay.buffers.balanced import ClassBalanced
from replay.buffers.base import Buffer
from replay.buffers.compartments import TwoCompartments
from replay.buffers.longterm import LongTerm
from replay.buffers.reservoir import Reservoir
from replay.buffers.ring import Ring
from replay.journal.base import Journal
from replay.memory import Memory
from replay.rehearsal import Rehearsal

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
