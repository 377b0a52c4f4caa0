"""The table of `python -m benchmarks hosts`: several runs of each fault, medians and the worst."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psutil

from benchmarks.faults.hosts import Fault, Result, run
from online.errors import OnlineError


def row(result: Result) -> dict[str, Any]:
    """A row of the table: counts instead of lists."""
    return {
        "fault": result.fault,
        "seconds": result.seconds,
        "server on": result.server_on,
        "acknowledged": result.acknowledged,
        "during": result.acknowledged_during,
        "lost": len(result.lost),
        "twice": len(result.twice),
        "refused": sum(n for name, n in result.statuses.items() if "after 503" in name),
        "adopted": result.adopted,
        "resumed s": result.resumed_s,
        "answered": result.answered,
        "silent": result.silent,
        "good": result.good,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each fault in a line: medians and the worst of its runs.

    ``rows`` are of :func:`row`, or have ``failed``, the reason why a run came to no end.
    """
    kinds = dict.fromkeys((row["fault"], row["seconds"]) for row in rows)
    return [_line([r for r in rows if (r["fault"], r["seconds"]) == kind]) for kind in kinds]


def _line(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    done = [run for run in runs if "failed" not in run]
    resumed = [run["resumed s"] for run in done]
    during = [run["during"] for run in done]
    return {
        "fault": runs[0]["fault"],
        "seconds": runs[0]["seconds"],
        "runs": len(runs),
        "good": sum(run["good"] for run in done),
        "lost": sum(run["lost"] for run in done),
        "twice": sum(run["twice"] for run in done),
        "acknowledged": sum(run["acknowledged"] for run in done),
        "during, median": statistics.median(during) if during else None,
        "refused": sum(run["refused"] for run in done),
        "resumed s, median": statistics.median(resumed) if resumed else None,
        "resumed s, worst": max(resumed, default=None),
        "silent": sorted({name for run in done for name in run["silent"]}),
    }


def campaign(
    plan: Iterable[tuple[Fault, float]],
    runs: int,
    *,
    seed: int = 0,
    keep: Callable[[Mapping[str, Any]], None],
    progress: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Rows of all runs.  Each is given to ``keep`` when it is there; one that fails stops none."""
    rows: list[dict[str, Any]] = []
    for fault, seconds in plan:
        for number in range(runs):
            begun = time.monotonic()
            try:
                result = run(fault, seconds=seconds, seed=seed + number, progress=progress)
                progress(result.sockets)
                found = row(result)
            except (OnlineError, OSError, TimeoutError, psutil.Error) as error:
                found = {"fault": fault, "seconds": seconds, "good": False, "failed": str(error)}
            found |= {"seed": seed + number, "took s": round(time.monotonic() - begun, 1)}
            rows.append(found)
            keep(found)
    return rows
