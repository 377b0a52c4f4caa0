"""The time series of one model as a SQLite file, written by one process and read by any.

Samples get sparser with age: all of the last hour, one per minute for a day, one per quarter of an
hour for 32 days, one per hour for 366 days; a model takes some megabytes, whatever its traffic.
Only aggregates are stored, and nothing else depends on them: deleting the folder loses the chart.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sqlite3
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from online.monitoring.samples import (
    ODD,
    SCORES,
    TENTHS,
    Mark,
    Sample,
    happened,
    percentile,
    sample,
)

log = logging.getLogger(__name__)

_AGES_S: Final = ((3600.0, 0), (86_400.0, 60), (32 * 86_400.0, 900), (366 * 86_400.0, 3600))
"""Pairs of age and interval (seconds): up to this age one sample per interval is kept; 0: all."""
_MARKS_MAX: Final = 5_000
_THIN_S: Final = 900.0  # between two runs that delete samples
_BUSY_S: Final = 2.0
FOLDER: Final = "history"
"""Name of the folder of time series in a state folder."""

POINTS_MAX: Final = 2_000
RATES: Final = ("predictions", "learned", "feedback_learned", "feedback_quarantined")

_DEFLATED: Final = b"x"  # first byte of data compressed by zlib
_decode: Final = msgspec.msgpack.Decoder(Sample).decode

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS samples (at REAL PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS marks (at REAL, kind TEXT, text TEXT, PRIMARY KEY (at, kind, text));
"""


class Series:
    """Writes the time series of one model; use it in one process at a time.

    Parameters:
        folder: Folder of a service's time series; created if missing.
    """

    def __init__(self, folder: Path, model: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = file_of(folder, model)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))  # independent of the umask
        try:
            self._db, self._last = _open(file)
        except (sqlite3.DatabaseError, msgspec.MsgspecError, zlib.error) as error:
            log.warning("%s is damaged (%s), so a new one is started", file, error)
            for left in (file, file.with_name(f"{file.name}-journal")):
                left.unlink(missing_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
            self._db, self._last = _open(file)
        self._thinned_at = -math.inf

    def add(self, status: dict[str, Any], at: float) -> tuple[Mark, ...]:
        """Add a status of the model (``GET /v1/models/NAME``) as of ``at`` (POSIX seconds).

        A status of the same time as the last one is ignored.  If the clock was set back, the
        samples from times that have not come yet are deleted, and their events moved to ``at``.

        Returns the events since the last sample; none for the very first.  If the file can't be
        written, the chart has a gap.
        """
        before = self._last
        if before is not None and at == before.at:
            return ()
        taken = sample(status, at, before)
        marks = tuple(happened(before, taken))
        try:
            self._write(taken, marks)
        except sqlite3.Error as error:
            log.info("the history has a gap: %r", error)
        self._last = taken
        return () if before is None else marks

    def _write(self, taken: Sample, marks: Sequence[Mark]) -> None:
        with self._db:
            self._db.execute("BEGIN")
            # Only the newest sample needs the values for comparison with the next one.
            if self._last is not None:
                bare = msgspec.structs.replace(self._last, seen={}, raw={})
                self._db.execute("UPDATE samples SET body = ? WHERE at = ?", _row(bare)[::-1])
            if self._last is not None and taken.at < self._last.at:
                self._db.execute("DELETE FROM samples WHERE at >= ?", (taken.at,))
                self._db.execute("UPDATE OR IGNORE marks SET at = ? WHERE at > ?", (taken.at,) * 2)
            self._db.execute("INSERT INTO samples VALUES (?, ?)", _row(taken))
            rows = [(mark.at, mark.kind, mark.text) for mark in marks]
            self._db.executemany("INSERT OR IGNORE INTO marks VALUES (?, ?, ?)", rows)
        if not self._thinned_at <= taken.at < self._thinned_at + _THIN_S:
            self.thin(taken.at)

    def thin(self, now: float) -> None:
        """Delete samples that are too dense for their age; the last one per interval is kept."""
        with self._db:
            self._db.execute("BEGIN")
            for (young, _), (old, step) in pairwise(_AGES_S):
                # Samples that were this old at the last run were thinned then.
                thinned_at = self._thinned_at if self._thinned_at <= now else -math.inf
                span = (max(now - old, thinned_at - young - step), now - young)
                self._db.execute(
                    "DELETE FROM samples WHERE at > ? AND at <= ? AND at NOT IN (SELECT max(at) "
                    "FROM samples WHERE at > ? AND at <= ? GROUP BY CAST(at / ? AS INTEGER))",
                    (*span, *span, step),
                )
            self._db.execute("DELETE FROM samples WHERE at <= ?", (now - _AGES_S[-1][0],))
            self._db.execute(
                "DELETE FROM marks WHERE at <= (SELECT at FROM marks ORDER BY at DESC "
                "LIMIT 1 OFFSET ?)",
                (_MARKS_MAX,),
            )
        self._thinned_at = now

    def close(self) -> None:
        """Close the file of the history."""
        self._db.close()


def _open(file: Path) -> tuple[sqlite3.Connection, Sample | None]:
    """Open the file; returns the connection and the newest sample."""
    db = sqlite3.connect(file, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA synchronous = OFF")  # durability is not worth waiting for the disk
        db.executescript(_TABLES)
        record = db.execute("SELECT body FROM samples ORDER BY at DESC LIMIT 1").fetchone()
        return db, None if record is None else _sample_of(record[0])
    except BaseException:
        db.close()
        raise


def _row(taken: Sample) -> tuple[float, bytes]:
    return taken.at, zlib.compress(msgspec.msgpack.encode(taken), 1)


def _sample_of(body: bytes) -> Sample:
    """Decode a sample; those of older versions are not compressed."""
    plain = zlib.decompress(body) if body[:1] == _DEFLATED else body
    return _decode(plain)


def file_of(folder: Path, model: str) -> Path:
    """Path of a model's time series."""
    return folder / f"{model}.db"


def read(
    folder: Path, model: str, since: float, until: float, points: int | None
) -> dict[str, Any]:
    """Read the time series of a model between two times (POSIX seconds).

    Parameters:
        points: Most steps; None: every recorded step.

    Returns:
        dict: ``columns``: by name, lists of equal length: ``at`` (end of the step), ``n`` (rows
            judged so far), means over the rows of the step (``accuracy``, ``no_change`` …; None: no
            row), ``anomalies`` (share of rows reported as anomalies), rates in rows per second,
            ``predict_p50_s``, ``predict_p99_s``, ``feedback_p99_s``, gauges.  ``marks``: events.
            ``recorded``: False if there is no file.
    """
    file = file_of(folder, model)
    if not file.exists():
        return {"model": model, "recorded": False, "columns": {"at": []}, "marks": []}
    opened = sqlite3.connect(f"file:{file}?mode=ro", timeout=_BUSY_S, uri=True)
    with contextlib.closing(opened) as db:
        # The first difference is to the sample before; else to the first sample.
        before = (
            db.execute(
                "SELECT at, body FROM samples WHERE at <= ? ORDER BY at DESC LIMIT 1", (since,)
            ).fetchone()
            or db.execute(
                "SELECT at, body FROM samples WHERE at <= ? ORDER BY at LIMIT 1", (until,)
            ).fetchone()
        )
        begin = since if before is None else max(since, before[0])
        most = POINTS_MAX if points is None else max(1, min(points, POINTS_MAX))
        step = max((until - begin) / most, 1e-9) if points is not None else 1e-6
        rows = db.execute(
            "SELECT max(at), body FROM samples WHERE at > ? AND at <= ? "
            "GROUP BY CAST((at - ?) / ? AS INTEGER) ORDER BY 1",
            (begin, until, begin, step),
        ).fetchall()
        marks = db.execute(
            "SELECT at, kind, text FROM marks WHERE at > ? AND at <= ? ORDER BY at", (since, until)
        ).fetchall()
    taken = [_sample_of(body) for _, body in ([before] if before else []) + rows]
    return {
        "model": model,
        "recorded": True,
        "columns": _columns(taken),
        "marks": [msgspec.to_builtins(Mark(*mark)) for mark in marks],
    }


def _columns(taken: Sequence[Sample]) -> dict[str, list[float | None]]:
    """Differences of consecutive samples, by name."""
    steps = [_step(was, now) for was, now in pairwise(taken)]
    names = dict.fromkeys(name for step in steps for name in step)
    return {"at": [], **{name: [step.get(name) for step in steps] for name in names}}


def _step(was: Sample, now: Sample) -> dict[str, float | None]:
    """Return the differences between two samples, by name."""
    rows, seconds = now.n - was.n, now.at - was.at
    counts = {name: value - was.totals.get(name, 0.0) for name, value in now.totals.items()}
    out: dict[str, float | None] = {"at": now.at, "n": now.n}
    for name in SCORES:
        if f"sum_{name}" in now.totals:
            # With fewer rows than before, after a rollback, the difference is meaningless.
            out[name] = counts[f"sum_{name}"] / rows if rows > 0 else None
    if tenths := [i for i in range(TENTHS) if f"c{i}n" in now.totals]:
        off = [abs(counts[f"c{i}said"] - counts[f"c{i}true"]) for i in tenths]
        judged = sum(counts[f"c{i}n"] for i in tenths)
        out["calibration_error"] = sum(off) / judged if rows > 0 and judged > 0 else None
    if all(name in now.totals and name in was.totals for name in ODD):
        learned, above = (counts[name] for name in ODD)
        out["anomalies"] = above / learned if learned > 0 else None
    for name in RATES:
        if name in counts:
            out[f"{name}_per_s"] = counts[name] / seconds
    refused = [value for name, value in counts.items() if "_refused_" in name]
    out["refused_per_s"] = sum(refused) / seconds
    for what, q in (("predict", 0.5), ("predict", 0.99), ("feedback", 0.99)):
        out[f"{what}_p{q * 100:.0f}_s"] = percentile(counts, what, q)
    return {**out, **now.gauges}
