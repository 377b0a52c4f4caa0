"""Converts a model's status to a sample of its time series, and derives events between samples.

Totals only grow, so samples between two others can be dropped: the difference remains.  Counters of
replicas begin at 0 with each process; here they are continued.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from online.telemetry.prometheus import BOUNDS_S

SCORES: Final = (
    "accuracy", "no_change", "majority", "log_loss", "mae", "last_mae", "mean_mae", "reward",
    "evenly",
)  # fmt: skip
"""Means over all rows; multiplied by the number of rows they are totals."""
_COUNTED: Final = ("predictions", "learned", "internal_errors", "server_unreachable")
_PREFIXES: Final = (
    "feedback_refused_", "predict_refused_", "feedback_", "predict_at_", "feedback_at_",
)  # fmt: skip
_GAUGES: Final = ("age_ms", "behind_rows", "drift_state", "filter_quarantined_sources", "names")
"""Gauges of which the maximum over all replicas is taken."""
_MOST: Final = 200  # characters of a mark's text
_FEATURES: Final = 8
"""Most features whose drift is recorded: those with the largest drift."""
_NAME: Final = 64  # characters of a feature's name
ODD: Final = ("rows", "above")
"""Rows of `task: anomaly`, and those of them that were reported as anomalies."""
TENTHS: Final = 10
"""Bins of the calibration curve."""


_ANSWERED: Final = ("epoch", "frozen", "last", "banned")
"""What the parameter server and the journal say; unknown while they do not answer."""


class Mark(msgspec.Struct, frozen=True):
    """Something that happened at a time (POSIX seconds): a start, a rollback, an alarm."""

    at: float
    kind: str
    text: str


class Sample(msgspec.Struct, frozen=True):
    """State of a model at a time.

    Attributes:
        at: POSIX seconds.
        n: Rows judged so far.
        totals: By name; all but the sums of scores only grow.
        gauges: Present values, by name.
        seen: Values that are compared with the next status to derive events.
        raw: By replica and name: raw counters, for the increments of the next sample.
    """

    at: float
    n: float
    totals: dict[str, float]
    gauges: dict[str, float]
    seen: dict[str, Any] = {}
    raw: dict[str, dict[str, float]] = {}


def sample(status: Mapping[str, Any], at: float, before: Sample | None) -> Sample:
    """Make the sample of a status (`GET /v1/models/NAME`); ``before``: the previous sample."""
    quality, n = status["quality"], float(status["quality"].get("n") or 0)
    raw = {name: _counters(report) for name, report in status["replicas"].items()}
    totals = {} if before is None else dict(before.totals)
    for replica, counts in raw.items():
        last = {} if before is None else before.raw.get(replica, {})
        for name, value in counts.items():
            step = value - last.get(name, 0.0)
            totals[name] = totals.get(name, 0.0) + (value if step < 0 else step)
    for name in SCORES:
        totals.pop(f"sum_{name}", None)  # the model may have restarted from nothing
        if (mean := quality.get(name)) is not None:
            totals[f"sum_{name}"] = mean * n
    for name in [name for name in totals if name[:1] == "c" and name[1:2].isdigit()]:
        del totals[name]
    totals |= _calibration(quality.get("reliability") or ())
    if odd := status.get("anomaly"):  # decrease after a rollback, too
        totals |= {name: float(odd[name]) for name in ODD}
    gauges = {"learned": float(status["learned"])}
    for name in ("updates_behind", "memory_bytes"):
        if (now := status.get(name)) is not None:
            gauges[name] = float(now)
    for shift in ((status.get("drift") or {}).get("shifts") or ())[:_FEATURES]:
        if shift.get("psi") is not None:
            gauges[f"psi/{shift['name'][:_NAME]}"] = float(shift["psi"])
    for name in _GAUGES:
        values = [report[name] for report in status["replicas"].values() if name in report]
        if values:
            gauges[name] = float(max(values))
    if (journal := status.get("journal")) and journal.get("size") is not None:
        gauges["journal_bytes"] = float(journal["size"])
    seen = _seen(status)
    if before is not None:  # what did not answer has decided nothing: it is as it was known last
        seen |= {x: before.seen[x] for x in _ANSWERED if seen[x] is None and x in before.seen}
    return Sample(at, n, totals, gauges, seen, raw)


def _calibration(tenths: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By tenth of the probability: rows, the sum of predictions, and the number of positives."""
    scores: dict[str, float] = {}
    for i, tenth in enumerate(tenths[:TENTHS]):
        if n := tenth["n"]:
            scores[f"c{i}n"], scores[f"c{i}said"] = float(n), tenth["score"] * n
            scores[f"c{i}true"] = tenth["share"] * n
    return scores


def _counters(report: Mapping[str, float]) -> dict[str, float]:
    return {
        name: value
        for name, value in report.items()
        if name in _COUNTED or name.startswith(_PREFIXES)
    }


def _seen(status: Mapping[str, Any]) -> dict[str, Any]:
    server, rewrites = status.get("server") or {}, status.get("rewrites") or {}
    drift, filters = status.get("drift") or {}, status.get("filters") or {}
    return {
        "epoch": server.get("epoch"),
        "spec": status.get("spec"),
        "learner": status.get("learner"),
        "frozen": rewrites.get("frozen"),
        "last": rewrites.get("last"),
        "newest": rewrites.get("newest"),
        "banned": rewrites.get("banned"),
        "drift": drift.get("state"),
        "quarantined": filters.get("quarantined_sources"),
        "incident": _headlines(incidents(status)),
        "edge": _release(status.get("edge") or {}),
    }


def incidents(status: Mapping[str, Any]) -> Sequence[str]:
    """The incidents of a status; an older replica reports them in one text."""
    names: Sequence[str] | None = status.get("incidents")
    if names is None:
        return [str(one)] if (one := status.get("incident")) else []
    return names


def _release(edge: Mapping[str, Any]) -> str | None:
    """Description of who uses the newest edge release; None: there is none."""
    if not edge.get("sequence"):
        return None
    named = f"release {edge['sequence']}"
    return f"{named} halted" if edge["halted"] else f"{named} to {edge['percent']} % of devices"


def _headlines(incidents: Sequence[str]) -> str | None:
    """The incidents without values of rows that they may name, because rows can be forgotten."""
    return "; ".join(incident.partition(": ")[0] for incident in incidents) or None


def happened(before: Sample | None, now: Sample) -> Iterator[Mark]:
    """Derive the events between two samples, for readers of the time series."""
    was = {} if before is None else before.seen
    seen = now.seen

    def mark(kind: str, text: str) -> Mark:
        return Mark(now.at, kind, text[:_MOST])

    def new(name: str) -> bool:
        return bool(seen.get(name) is not None and seen.get(name) != was.get(name))

    if new("spec"):
        yield mark("model", f"{seen['learner']} serves")
    rewritten = new("last") and before is not None
    decision = None
    for one in _since(was.get("last"), seen) if rewritten else ():
        kind = str(one.get("kind", "a decision"))
        decision = {"freeze": "frozen", "unfreeze": "learns again"}.get(kind, kind)
        yield mark("decision", decision)
    if new("epoch") and not rewritten:
        yield mark("start", f"the parameter server began epoch {seen['epoch']}")
    stands = "frozen" if seen.get("frozen") else "learns again"
    if new("frozen") and (seen["frozen"] or before is not None) and stands != decision:
        yield mark("decision", stands)
    if new("drift") and seen["drift"] == "act":
        yield mark("alarm", "the error rose")
    if (seen.get("quarantined") or 0) > (was.get("quarantined") or 0):
        yield mark("quarantine", _many(seen["quarantined"], "set aside"))
    if new("banned") and before is not None:
        yield mark("decision", _many(len(seen["banned"]), "banned"))
    if new("edge"):
        yield mark("edge", str(seen["edge"]))
    if new("incident"):
        yield mark("incident", str(seen["incident"]))


def _since(last: Mapping[str, Any] | None, seen: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All decisions after ``last``: there may be several between two samples."""
    after = (last or {}).get("control", 0)
    return [one for one in seen.get("newest") or () if one["control"] > after] or [seen["last"]]


def _many(n: int, what: str) -> str:
    return f"1 source {what}" if n == 1 else f"{n} sources {what}"


def percentile(counts: Mapping[str, float], what: str, q: float) -> float | None:
    """The bound below which a share ``q`` of durations lies, in seconds; None without any.

    ``counts``: increments of ``{what}_at_{i}``, the counts between the bounds
    (:data:`online.telemetry.prometheus.BOUNDS_S`).
    """
    each = [counts.get(f"{what}_at_{i}", 0.0) for i in range(len(BOUNDS_S) + 1)]
    total, below = sum(each), 0.0
    if total <= 0:
        return None
    for bound, n in zip((*BOUNDS_S, BOUNDS_S[-1]), each, strict=True):
        below += n
        if below >= q * total:
            return bound
    return BOUNDS_S[-1]
