"""A state without a source, built as a forget builds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import replica_world as worlds

from online.rebuild.forget import Bases, check_reach, influence
from online.rebuild.rebuild import Built, ForgetScope, Method, Rebuild, nothing
from online.rows.history import Decisions
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention
from replay.journal.sqlite.journal import SqliteJournal

SPEC = worlds.SPEC


def built(
    journal: SqliteJournal,
    folder: Path,
    wanted: ForgetScope,
    build: Callable[[], Any],
    *,
    task: Any = "regression",
    base: str | None = None,
    rewrite: int = 0,
    ordered: bool = False,
) -> tuple[Built, str | None]:
    """A state without the source, published aside as ``aside-1``, and what it was built from."""
    decisions = Decisions(SPEC)
    decisions.read(journal, "m")
    found = influence(journal, "m", decisions, wanted, 0.0)
    bases = Bases(journal, "m", decisions, journal.partitions("m"))
    history = SnapshotHistory(open_snapshots(lineage_place(str(folder), "m", SPEC)), Retention())
    history.index()
    head = journal.head("m", SPEC).snapshot
    if base is None:
        check_reach(found, wanted)
        chosen = bases.before(history, head, 0, found)
    else:
        chosen = bases.named(history, head, base)
    start = nothing("m", SPEC, "{}", decisions.without)
    if chosen.name is not None:
        start = history.load(chosen.name)
    rebuild = Rebuild(journal, decisions, wanted, start, Method(build, task, ordered))
    rebuild.run()
    made = rebuild.built((1, 0), rewrite, 5.0)
    history.publish("aside-1", made.state)
    return made, chosen.name
