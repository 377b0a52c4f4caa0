"""Retention in the SQLite journal: removes the oldest rows of each partition."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping

from replay.journal.base import Row
from replay.journal.sqlite import proof
from replay.journal.sqlite import schema as sql


def trim(
    db: sqlite3.Connection,
    model: int,
    upto: Mapping[int, int],
    n: int,
    is_old: Callable[[Row, int], bool],
    unchecked: int,
) -> int:
    """Remove at most ``n`` rows of the model's partitions, with their claims; return how many.

    Of partition ``p`` the oldest rows up to offset ``upto[p]`` are removed, up to the first one
    that is not old, so that no gaps arise.

    Parameters:
        is_old: Called with a row and the running time (ms) at which it was written.
        unchecked: Rows with a seq up to this may lack a checksum.
    """
    removed = 0
    for partition in sorted(upto):
        columns = db.execute(f"{sql.PARTITION} WHERE p.id = ?", (partition,)).fetchone()
        if removed == n or columns is None or columns[1] != model:
            continue
        first = last = proof.as_partition(columns).trimmed
        newest = 0
        for record in db.execute(
            sql.OLDEST, (partition, first, upto[partition], n - removed)
        ).fetchall():
            if not proof.good_row(record, unchecked):
                continue  # damaged, so its time is not trusted: the rows after it decide
            row = proof.as_row(record, unchecked)
            if not is_old(row, int(record[sql.RAN] or 0)):
                break
            last, newest = row.offset, row.seq
        if last > first:
            db.execute(sql.DROP_ROWS, (partition, first, last))
            for above in (0, sql.CLAIM_ENDED, 2 * sql.CLAIM_ENDED):
                db.execute(sql.DROP_CLAIMS, (partition, above + first, above + last))
            db.execute(sql.SET_TRIMMED, (last, partition))
            db.execute(sql.PROVE_PARTITION, (partition,))
            proof.model_of(db, model)
            db.execute(sql.SET_TRIMMED_SEQ, (newest, model))
            db.execute(sql.PROVE_MODEL, (model,))
        removed += last - first
    return removed
