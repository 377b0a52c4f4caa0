"""Completes a backfill: values learned from tables become the base snapshot of a lineage.

First the snapshot is published, then the control row that names it (the decision) is written, then
the head is moved.  A crash before the row changes nothing; after a crash behind it the next start
completes the backfill.
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
    recovered: Recovered,
    values: Blocks,
    lesson: Lesson,
    now_s: float,
) -> Based:
    """Make ``values`` the state that the lineage continues from.

    Parameters:
        found: The state that was recovered under this process's epoch.
        values: That state after learning the tables.
        lesson: Files and counts of the backfill.
        now_s: POSIX seconds.

    Raises:
        PublishFailed, Superseded: Definite: nothing was changed.
        DecisionUncertain: The row may have been written; if so, the next start acts on it.
    """
    server = recovered.server
    now = server.state(now_s, recovered.snapshot, {"backfilled": lesson.learned})
    state = replace(now, version=(server.epoch, server.count + 1), values=values)
    name = snapshot_name(state.version, recovered.base)
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
    with contextlib.suppress(Exception):  # a start finds the base through the control row, too
        store.move_head(server.model, server.spec, server.epoch, name)
    return Based(rows[-1].seq, note)
