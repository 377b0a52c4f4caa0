"""Audits a run before it is published, by reading its files back."""

from __future__ import annotations

import hashlib
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from online.rescore.plan import Plan
from online.rescore.scorer import TOLERANCE
from online.rescore.work import QUARANTINE, SHARDS, hashes, key_sum, note_of
from online.tables.places import Folder

PSI_WARN: Final = 0.1
PSI_BLOCK: Final = 0.25
"""Bounds of the population stability index against the last published run (a rule of thumb)."""

_BINS: Final = 1_000
_QUANTILES: Final = 10
_SHARE_MIN: Final = 1e-4  # least share of a bin: an empty one would make the index infinite
_KEYS_AT_ONCE: Final = 2_000_000  # hashes in memory: 16 MB
_SHOWN: Final = 5
_RANGE: Final = 1e100


class Report(msgspec.Struct, frozen=True):
    """Result of an audit.

    Attributes:
        blocking, warnings: Findings; a run with a blocking one is not published.
        forced: Blocking findings that ``--force`` has overridden.
        histogram: Number of rows by bin of the score (multiclass: by label), for the next run's
            index.
        psi: Index against the previously published run; None if there was none of the same task.
        digests: SHA-256 of each file of the run, by its name.
    """

    rows: int
    scored: int
    quarantined: int
    sampled: int
    least: float | None
    greatest: float | None
    histogram: dict[str, int]
    psi: float | None
    newest: float | None
    digests: dict[str, str]
    blocking: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    forced: tuple[str, ...] = ()


def bin_of(score: np.ndarray, *, regression: bool) -> np.ndarray:
    """Bin number of each score: thousandths of a probability, or for other numbers the sign, the
    exponent and the first five bits (so bins are 3 % wide and in the order of the numbers).
    """
    if not regression:
        return np.clip((score * _BINS).astype(np.int64), 0, _BINS - 1)
    bits = np.ascontiguousarray(score).view(np.int64)
    ordered = np.where(bits < 0, np.int64(-(2**63)) - bits, bits)
    return ordered >> 47


def stability(before: Mapping[str, int], now: Mapping[str, int], *, ordered: bool) -> float:
    """Population stability index: sum of (p - q) ln(p / q) over bins.

    ``ordered``: bins are numbers, and are joined to tenths of ``before``; else they are labels.
    """
    if not ordered:
        names = sorted({*before, *now})
        p = np.array([now.get(name, 0) for name in names], dtype=np.float64)
        q = np.array([before.get(name, 0) for name in names], dtype=np.float64)
    else:
        bins = sorted({*map(int, before), *map(int, now)})
        p = np.array([now.get(str(b), 0) for b in bins], dtype=np.float64)
        q = np.array([before.get(str(b), 0) for b in bins], dtype=np.float64)
        below = (np.cumsum(q) - q) / q.sum()
        tenth = np.minimum((below * _QUANTILES).astype(np.int64), _QUANTILES - 1)
        p, q = (np.bincount(tenth, x, _QUANTILES).astype(np.float64) for x in (p, q))
        p, q = p[(p + q) > 0], q[(p + q) > 0]
    p = np.maximum(p / p.sum(), _SHARE_MIN)
    q = np.maximum(q / q.sum(), _SHARE_MIN)
    return float(((p - q) * np.log(p / q)).sum())


class _Audited:
    """Findings of reading the files so far."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.blocking: list[str] = []
        self.bins: Counter[str] = Counter()
        self.scored = self.bad = self.sampled = 0
        self.least, self.greatest, self.newest = math.inf, -math.inf, -math.inf
        self.not_finite = self.outside = 0
        self.digests: dict[str, str] = {}

    def add(self, number: int, data: bytes) -> None:
        """Read one shard's file and add its findings."""
        shard = self._plan.shards[number]
        where = f"{SHARDS}/{shard.name}"
        try:
            file = pq.ParquetFile(io.BytesIO(data))
            note, table = note_of(file), file.read(use_threads=False)
        except (pa.ArrowException, OSError, KeyError, TypeError, msgspec.DecodeError) as error:
            self.blocking.append(f"{where} is damaged ({error})")
            return
        n = table.num_rows
        if n != note.good or n + note.bad != shard.rows:
            self.blocking.append(
                f"{where}: {n} rows scored and {note.bad} in quarantine, of {shard.rows} read"
            )
        keyed = self._plan.layout.key is not None
        if keyed and str(key_sum(table["key"].to_pylist())) != note.keys:
            self.blocking.append(f"{where}: its keys are not those that were read")
        score = table["score"].to_numpy()
        labels = table["prediction"] if "prediction" in table.column_names else None
        self._scores(score, labels)
        self._samples(where, note.sampled, score, labels)
        self.scored, self.bad = self.scored + n, self.bad + note.bad
        if note.newest is not None:
            self.newest = max(self.newest, note.newest)

    def _scores(self, score: np.ndarray, labels: Any) -> None:
        finite = np.isfinite(score)
        self.not_finite += int((~finite).sum())
        fine = score[finite]
        if not len(fine):
            return
        regression = self._plan.task == "regression"
        low, high = (-_RANGE, _RANGE) if regression else self._plan.within
        self.outside += int(((fine < low) | (fine > high)).sum())
        self.least, self.greatest = min(self.least, fine.min()), max(self.greatest, fine.max())
        if self._plan.task == "multiclass":
            for pair in labels.value_counts().to_pylist():
                self.bins[str(pair["values"])] += pair["counts"]
            return
        numbers, counts = np.unique(bin_of(fine, regression=regression), return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            self.bins[str(number)] += count

    def _samples(
        self, where: str, sampled: Sequence[tuple[int, str | None, float | None]],
        score: np.ndarray, labels: Any,
    ) -> None:  # fmt: skip
        tolerance = TOLERANCE[self._plan.method]
        for at, label, single in sampled:
            self.sampled += 1
            if single is None or at >= len(score):  # missing rows are reported elsewhere
                continue
            held = float(score[at])
            same = labels is None or labels[at].as_py() == label
            if not same or not abs(held - single) <= tolerance * max(1.0, abs(single)):
                shown = "" if labels is None else f"{labels[at].as_py()} "
                self.blocking.append(
                    f"{where}, line {at}: {shown}{held!r}, and {label or ''} {single!r} alone"
                )


def examine(plan: Plan, folder: Folder, before: Report | None, *, force: bool) -> Report:
    """Read the run's files back and judge them.  Raises LocationFailed."""
    result = _Audited(plan)
    base = f"runs/{plan.run}"
    for shard in plan.shards:
        name = f"{SHARDS}/{shard.name}"
        try:
            data = folder.read(f"{base}/{name}")
        except FileNotFoundError:
            result.blocking.append(f"{name} is missing")
            continue
        result.digests[name] = hashlib.sha256(data).hexdigest()
        result.add(shard.number, data)
    for name in sorted(folder.names(f"{base}/{QUARANTINE}")):
        data = folder.read(f"{base}/{QUARANTINE}/{name}")
        result.digests[f"{QUARANTINE}/{name}"] = hashlib.sha256(data).hexdigest()
    _judge(plan, result)
    keyed = plan.layout.key is not None and not result.blocking
    if keyed and (duplicates := _duplicates(plan, folder, result.scored)):
        result.blocking.append(f"keys that occur more than once: {', '.join(duplicates)}")
    psi, drifted, warnings = _drift(plan, result.bins, before)
    forced = tuple(drifted) if force else ()
    if result.bad:
        warnings.append(f"{result.bad} rows are in quarantine")
    return Report(
        plan.rows, result.scored, result.bad, result.sampled,
        float(result.least) if result.scored and math.isfinite(result.least) else None,
        float(result.greatest) if result.scored and math.isfinite(result.greatest) else None,
        dict(result.bins), psi, result.newest if math.isfinite(result.newest) else None,
        result.digests, tuple(result.blocking + ([] if force else drifted)), tuple(warnings),
        forced,
    )  # fmt: skip


def _judge(plan: Plan, audited: _Audited) -> None:
    blocking = audited.blocking
    if audited.scored + audited.bad != plan.rows:
        blocking.append(
            f"{audited.scored} rows scored and {audited.bad} in quarantine, of {plan.rows} read"
        )
    if not audited.scored:
        blocking.append("every row is in quarantine")
    if audited.not_finite:
        blocking.append(
            f"{audited.not_finite} scores are no finite numbers: the model has no answer"
        )
    if audited.outside:
        blocking.append(f"{audited.outside} scores are outside of their range")


def _drift(
    plan: Plan, bins: Mapping[str, int], before: Report | None
) -> tuple[float | None, list[str], list[str]]:
    """The stability index, blocking findings, and warnings."""
    if before is None or not before.histogram or not bins:
        return None, [], []
    psi = stability(before.histogram, bins, ordered=plan.task != "multiclass")
    text = f"scores have moved since the run published before: stability index {psi:.3f}"
    if psi >= PSI_BLOCK:
        return psi, [f"{text}, at most {PSI_BLOCK} is published without --force"], []
    return psi, [], [f"{text}, {PSI_WARN} is worth a look"] if psi >= PSI_WARN else []


def _duplicates(plan: Plan, folder: Folder, rows: int) -> list[str]:
    """Some keys that occur more than once, found by comparing hashes in parts."""
    parts = -(-rows // _KEYS_AT_ONCE)
    for part in range(parts):
        hashes = np.concatenate([
            found[found % parts == part]
            for _, found in _hashes(plan, folder)
        ])  # fmt: skip
        ordered = np.sort(hashes)
        same = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(same):
            continue
        counts: Counter[str] = Counter()
        for keys, found in _hashes(plan, folder):
            counts.update(keys[i] for i in np.flatnonzero(np.isin(found, same)).tolist())
        if duplicates := [key for key, count in counts.items() if count > 1]:
            return duplicates[:_SHOWN]
    return []


def _hashes(plan: Plan, folder: Folder) -> Iterator[tuple[list[str], np.ndarray]]:
    for shard in plan.shards:
        data = folder.read(f"runs/{plan.run}/{SHARDS}/{shard.name}")
        keys = pq.read_table(io.BytesIO(data), columns=["key"], use_threads=False)["key"]
        listed: list[str] = keys.to_pylist()
        yield listed, np.fromiter(hashes(listed), np.uint64, len(listed))
