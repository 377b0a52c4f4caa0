"""The end of a backfill: values that tables have taught become the base of a lineage.

The snapshot comes first and nobody asks for it; the control row that names it is the decision;
the head follows.  What stops before the row has changed nothing, what stops after it is finished
by the next start.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import msgspec

from paramserver.core import rewrites
from paramserver.core.blocks import Blocks
from paramserver.errors import DecisionUncertain
from paramserver.process.bases import Backfill, Based, Lesson, publish_pinned, withdraw_pinned
from paramserver.process.lineage import Recovered, decide
from paramserver.snapshots.history import SnapshotHistory, snapshot_name
from paramserver.store import Store


def make_base(
    store: Store,
    history: SnapshotHistory,
    found: Recovered,
    values: Blocks,
    lesson: Lesson,
    now_s: float,
) -> Based:
    """Let ``values`` be the state that the lineage goes on from.

    Parameters:
        found: The state that was recovered, under an epoch of ours; ``values`` are it with the
            lesson.
        now_s: POSIX seconds.

    Raises:
        PublishFailed, Superseded: Definite: nothing was changed.
        DecisionUncertain: The row may stand: the next start acts on it if it does.
    """
    server = found.server
    now = server.state(now_s, found.snapshot, {"backfilled": lesson.learned})
    state = replace(now, version=(server.epoch, server.count + 1), values=values)
    name = snapshot_name(state.version, found.base)
    publish_pinned(history, name, state)
    note = Backfill(
        server.spec, name, state.control, dict(state.clock), sorted(state.closed), state.position,
        list(lesson.files), lesson.learned, lesson.quarantined, lesson.known, lesson.label,
    )  # fmt: skip
    key = f"{rewrites.BACKFILL}:{server.spec}:{name}"
    try:
        rows = decide(store, server, rewrites.BACKFILL, key, msgspec.json.encode(note))
    except DecisionUncertain:
        raise
    except Exception:
        withdraw_pinned(history, name)
        raise
    with contextlib.suppress(Exception):  # a start goes from the old head over the row to the base
        store.move_head(server.model, server.spec, server.epoch, name)
    return Based(rows[-1].seq, note)
