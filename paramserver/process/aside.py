"""Decides whether a state that was built separately can replace the served one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias, TypeVar

import msgspec

from paramserver.core import rewrites
from paramserver.core.rewrites import Forget, Relearn, Undone
from paramserver.core.state import SnapshotState
from paramserver.errors import BackfillRefused, ForgetRefused, RelearnRefused
from paramserver.process.bases import Backfill
from paramserver.store import ControlInfo, PartitionInfo

Note: TypeAlias = Forget | Relearn | Backfill
Asked = TypeVar("Asked", bound=Note)


def decided(
    now: SnapshotState,
    built: SnapshotState,
    partitions: Iterable[PartitionInfo],
    controls: Sequence[ControlInfo],
    note: Asked,
) -> Asked:
    """Return the decision to replace ``now`` by ``built``.

    Parameters:
        partitions, controls: All of the model's.
        note: The request; its remaining fields are filled in here.

    Raises:
        ForgetRefused, RelearnRefused, BackfillRefused: ``built`` cannot replace ``now``.
    """
    ends = {p.id: p for p in partitions}
    if (why := _why_not(now, built, ends, controls, note)) is not None:
        raise refusal(note, why)
    closed = now.closed | built.closed
    clock = {p: c for p, c in sorted(built.clock.items()) if p not in closed}
    return msgspec.structs.replace(
        note, spec=now.spec, control=built.control, clock=clock, closed=sorted(closed),
        position=built.position,
    )  # fmt: skip


def refusal(note: Note, why: str) -> ForgetRefused | RelearnRefused | BackfillRefused:
    """Return the error for a refused request."""
    if isinstance(note, Forget):
        return ForgetRefused(note.source, why)
    return RelearnRefused(why) if isinstance(note, Relearn) else BackfillRefused(why)


def _why_not(
    now: SnapshotState,
    built: SnapshotState,
    ends: Mapping[int, PartitionInfo],
    controls: Sequence[ControlInfo],
    note: Note,
) -> str | None:
    if (built.model, built.spec) != (now.model, now.spec):
        return f"the state is of model {built.model!r}, spec {built.spec[:12]}"
    if built.rewrite != now.rewrite:
        return f"the values were rewritten meanwhile, by control row {now.rewrite}"
    if now.frozen and not isinstance(note, Forget):
        return "the model is frozen"
    if isinstance(note, Forget) and note.source not in rewrites.banned(controls):
        return "it is not banned: it would be learned again"
    upto = {p: i.end if p in built.closed else built.clock.get(p, 0) for p, i in ends.items()}
    for p, info in ends.items():
        if not info.trimmed <= upto[p] <= info.end or (p in now.closed and upto[p] < info.end):
            return f"the state ends at row {upto[p]} of partition {p}, which ends at {info.end}"
    try:
        taken = Undone(note.taken())
    except ValueError:
        return "the rows to be excluded are not valid spans"
    spans = [span for several in taken.ranges.values() for span in several]
    if len(spans) > rewrites.SPANS_MAX:
        runs, most = len(spans), rewrites.SPANS_MAX
        return f"its rows form {runs:,} spans, at most {most:,} can be excluded; give --since"
    if any(after < 0 or upto <= after for after, upto in spans):
        return "the rows to be excluded are not valid spans"
    if taken.upto(upto) != taken.ranges:
        return "rows to be excluded are beyond the end of the state"
    return None
