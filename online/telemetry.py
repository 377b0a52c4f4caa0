"""Prometheus text for all replicas of all models, and the service's log format."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from replay.plain import plain

_GAUGES = (
    "contact_age_s", "unserved_s", "served_events", "served_epoch", "from_peer",
    "age_ms", "waiting", "own", "behind_rows", "joins_waiting", "learn_us",
    "learn_share", "replay_fill", "average_gap", "drift_state", "drift_before",
    "drift_after", "filter_sources", "names", "classes",
    "filter_quarantined_sources", "filter_drift", "filter_active", "triggers",
)  # fmt: skip


_CHALLENGER = (
    ("behind_rows", "rows that the challenger has still to learn"),
    ("rows", "rows on which it is compared with what serves"),
    ("late", "rows whose labels came too late to compare"),
    ("champion", "accuracy (regression: mean absolute error) of what serves, on these rows"),
    ("challenger", "the same of the challenger"),
    ("difference", "mean difference of the scores, above 0 in the challenger's favour"),
)
_VERDICTS = {"better": 1, "worse": -1}


class _Collector:
    def __init__(self, models: Iterable[Mapping[str, Any]]) -> None:
        self._models = list(models)

    def collect(self) -> Iterator[Metric]:
        """One family a name, with labels model and replica."""
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}

        def put(name: str, text: str, labels: dict[str, str], value: float, *, gauge: bool) -> None:
            if name not in families:
                kind = GaugeMetricFamily if gauge else CounterMetricFamily
                families[name] = kind(name, text, labels=list(labels))
            families[name].add_metric(list(labels.values()), value)

        for model in self._models:
            base = {"model": str(model["model"])}
            for replica, report in model["replicas"].items():
                labels = {**base, "replica": replica}
                for key, value in report.items():
                    gauge = key in _GAUGES
                    put(f"online_{key}", f"{key} of a replica", labels, value, gauge=gauge)
            for key, value in model["quality"].items():
                if isinstance(value, (int, float)) and value is not None:
                    text = "prequential quality of all learned events"
                    put("online_prequential", text, {**base, "metric": key}, value, gauge=True)
            put("online_learned_events", "events in the model", base, model["learned"], gauge=True)
            server = model["server"]
            up = server is not None
            put("online_server_up", "the parameter server answers", base, up, gauge=True)
            for name, text, found in _state(model):
                if isinstance(found, (int, float)):
                    put(f"online_{name}", text, base, found, gauge=True)
        yield from families.values()


def _state(model: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Name, text and value of each gauge of a model; None where it is not known."""
    server, journal = model["server"] or {}, model["journal"] or {}
    rewrites = model["rewrites"] or {}
    for key in ("epoch", "count", "restore_s"):
        yield f"server_{key}", f"{key} of the server", server.get(key)
    yield "rollback_reach_s", "age of the oldest snapshot", server.get("reach_s")
    yield "snapshots_refused", "damaged snapshots", len(server["refused"]) if server else None
    text = "snapshots whose files somebody removed, since the server started"
    yield "snapshots_vanished", text, server.get("vanished")
    yield "frozen", "1: the model learns nothing, feedback is kept", rewrites.get("frozen")
    yield "undone_rows", "rows that decisions took out of the model", rewrites.get("undone")
    lost = (rewrites.get("lost") or {}).get("events", 0 if rewrites else None)
    yield "lost_events", "events in the model that the journal has lost, accepted", lost
    banned = rewrites.get("banned")
    yield "banned_sources", "sources that are banned", None if banned is None else len(banned)
    rival = model.get("challenger") or {}
    for key, text in _CHALLENGER:
        yield f"challenger_{key}", text, rival.get(key)
    if rival:
        yield (
            "challenger_verdict",
            "1: better, -1: worse, 0: open",
            _VERDICTS.get(str(rival.get("verdict")), 0),
        )
    for side, value in zip(("low", "high"), rival.get("interval") or (), strict=False):
        yield f"challenger_difference_{side}", "its confidence sequence", value
    yield "journal_bytes", "size of the journal, of all models", journal.get("size")
    yield "journal_bound_bytes", "size at which feedback is refused", journal.get("bound")
    yield "journal_used_ratio", "size of the journal as a share of it", journal.get("used_ratio")
    yield "journal_days_left", "days until it is full, if it fills", journal.get("days_left")
    yield "journal_bytes_per_day", "its growth, in bytes a day", journal.get("bytes_per_day")
    yield "journal_rows", "rows kept of the model", journal.get("rows")
    yield "journal_rows_per_day", "their growth, in rows a day", journal.get("rows_per_day")
    yield "joins_stored", "predictions and labels that wait for each other", journal.get("waiting")


def exposition(models: Iterable[Mapping[str, Any]]) -> str:
    """Prometheus text of the given model statuses."""
    registry = CollectorRegistry()
    registry.register(_Collector(models))
    return generate_latest(registry).decode()


class Lines(logging.Formatter):
    """One line an entry, whatever the texts in it hold; a traceback's lines stand further right."""

    def format(self, record: logging.LogRecord) -> str:
        """The entry as text."""
        record.message = plain(record.getMessage())
        record.asctime = self.formatTime(record)
        text = self.formatMessage(record)
        if record.exc_info:
            lines = self.formatException(record.exc_info).split("\n")
            text = "\n  ".join((text, *map(plain, lines)))
        return text


def log_to_stderr(level: int) -> None:
    """One line a decision, with time, level and name."""
    # Not sys.stderr: in a replica that is Serve's, which keeps the lines in memory by the thousand.
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("online", "paramserver", "replay"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
