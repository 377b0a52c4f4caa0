"""Retention in the SQLite journal: the oldest rows of each partition, within one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from replay.journal import sqliteschema as sql


def trim(db: sqlite3.Connection, model: int, upto: Mapping[int, int], before: float, n: int) -> int:
    """Remove at most ``n`` rows of the model's partitions, with their claims; how many.

    Of partition ``p`` the oldest up to offset ``upto[p]`` go, as far as they were taken before
    ``before``; the first that was not ends it, so that what stays has no holes.
    """
    removed = 0
    for partition in sorted(upto):
        found = db.execute(sql.TRIMMED, (partition, model)).fetchone()
        if removed == n or found is None:
            continue
        first = last = int(found[0])
        newest = 0
        for offset, at, seq in db.execute(
            sql.OLDEST, (partition, first, upto[partition], n - removed)
        ).fetchall():
            if at >= before:
                break
            last, newest = int(offset), int(seq)
        if last > first:
            db.execute(sql.DROP_ROWS, (partition, first, last))
            for above in (0, sql.CLAIM_ENDED):
                db.execute(sql.DROP_CLAIMS, (partition, above + first, above + last))
            db.execute(sql.SET_TRIMMED, (last, partition))
            db.execute(sql.SET_TRIMMED_SEQ, (newest, model))
        removed += last - first
    return removed
