"""Metrics of all replicas and models as Prometheus text.

A replica reports flat numbers with each exchange, such as ``predict_refused_busy`` and ``age_ms``.
Here they become metric families by OpenMetrics conventions: base units in the name, ``_total`` on
counters, error codes and outcomes as labels, one sentence of help a family.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import generate_latest as as_openmetrics
from prometheus_client.samples import Exemplar

BOUNDS_S: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
)  # fmt: skip
"""Upper bounds of the duration histogram's buckets, in seconds; one more bucket is unbounded."""

OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

DURATIONS: Final = {
    "predict": "Time from a request for predictions to its answer, in the replica.",
    "feedback": "Time from a request with feedback to its answer, in the replica: waiting "
    "for earlier events, the commit and learning included.",
    "choose": "Time from a request to choose among actions to its answer, in the replica.",
    "reward": "Time from a request with rewards to its answer, in the replica; as for feedback.",
    "exchange": "Time of an exchange with the parameter server.",
    "freshness": "Age of the model that answered a request for predictions.",
}
"""The durations that a replica reports as histograms, with their help texts."""

_AT: Final = "_at_"  # predict_at_3 is the count in bucket 3
_SUM: Final = "_sum_s"
_TRACED: Final = "traced_"  # the newest traced request: traced_predict_s, and its id in pieces
_PIECES: Final = 3
_PIECE_BITS: Final = 43  # a float holds integers of 53 bits
_PIECE_MASK: Final = (1 << _PIECE_BITS) - 1


class Durations:
    """Duration histograms, which add up over replicas and over time."""

    def __init__(self) -> None:
        self._counts = {what: [0] * (len(BOUNDS_S) + 1) for what in DURATIONS}
        self._sums = dict.fromkeys(DURATIONS, 0.0)
        self._traced: dict[str, tuple[float, int]] = {}

    def note(self, what: str, seconds: float, trace: str | None = None) -> None:
        """Count a duration of :data:`DURATIONS`; ``trace`` is its trace id, if it is traced."""
        self._counts[what][bisect_left(BOUNDS_S, seconds)] += 1
        self._sums[what] += seconds
        if trace is not None:
            self._traced[what] = (seconds, int(trace, 16))

    def report(self) -> dict[str, float]:
        """The nonzero counts, and the sum of seconds of each histogram, as flat numbers."""
        out: dict[str, float] = {}
        for what, counts in self._counts.items():
            if any(counts):
                out |= {f"{what}{_AT}{i}": float(n) for i, n in enumerate(counts) if n}
                out[f"{what}{_SUM}"] = round(self._sums[what], 6)
        for what, (seconds, trace) in self._traced.items():  # the 128-bit id as three floats
            out[f"{_TRACED}{what}_s"] = seconds
            for i in range(_PIECES):
                out[f"{_TRACED}{what}_{i}"] = float(trace >> _PIECE_BITS * i & _PIECE_MASK)
        return out


def _exemplar(what: str, report: Mapping[str, float]) -> tuple[int, Exemplar] | None:
    """The newest traced request's exemplar, and the index of its bucket."""
    if (seconds := report.get(f"{_TRACED}{what}_s")) is None:
        return None
    pieces = (int(report.get(f"{_TRACED}{what}_{i}", 0)) << _PIECE_BITS * i for i in range(_PIECES))
    return bisect_left(BOUNDS_S, seconds), Exemplar({"trace_id": f"{sum(pieces):032x}"}, seconds)


_GAUGES: Final = {
    "contact_age_s": "Time since the replica's last contact with the parameter server.",
    "unserved_s": "How long the replica has been behind the server's events.",
    "served_events": "Events in the model that answers.",
    "served_epoch": "Epoch of the values under the model that answers.",
    "from_peer": "1: the values are a copy of another replica's, from a start without the server.",
    "age_ms": "Age of the replica's model, since the last pull confirmed as current.",
    "waiting": "Requests that wait for the journal.",
    "own": "Rows learned here that are not in the server's values yet.",
    "behind_rows": "Committed rows that are not learned yet.",
    "joins_waiting": "Predictions that wait to be written for a stored join.",
    "learn_us": "Mean time of learning a row.",
    "learn_share": "Share of a processor core that learning takes.",
    "replay_fill": "Rows held for rehearsal.",
    "rows_held": "Rows of a table that the replica holds, if not all (cache.rows).",
    "average_gap": "Relative distance between the averaged parameters and those that learn.",
    "drift_state": "Drift of the replica's rows: 0 not enough data, 1 ok, 2 watch, 3 act.",
    "drift_before": "Error before the newest alarm.",
    "drift_after": "Error after the newest alarm.",
    "filter_sources": "Sources of feedback that the filters know.",
    "filter_quarantined_sources": "Sources in quarantine.",
    "filter_drift": "1: many sources changed at once, so no source is quarantined.",
    "filter_active": "1: there are enough sources to judge a single one.",
    "names": "Names of features that the model knows.",
    "classes": "Classes that the model knows.",
    "triggers": "Triggers found by the newest search.",
}
_COUNTERS: Final = {
    "predictions": "Rows for which a prediction was answered.",
    "choices": "Choices among actions that were answered.",
    "choices_written": "Choices that were written before they were answered.",
    "choices_repeated": "Choices repeated under an id, answered as the first time.",
    "rewards_defaulted": "Choices without a reward in time, which got the default.",
    "labels_defaulted": "Predictions without a label in time, which count as negatives.",
    "defaults_held": "Times that all waits for defaults restarted, because the clock was set back.",
    "choices_activated": "Deferred choices that were activated.",
    "choices_agreed": "Choices of an apprentice that agreed with the baseline.",
    "learned": "Rows that were learned.",
    "failed": "Rows on which the model raised, or at which three learners died.",
    "answers_not_taken": "Answers dropped because their clients did not read them in time.",
    "refused_busy": "Events that got 429: too many wait for the journal.",
    "refused_queue": "Events that got 429: background learning is too far behind.",
    "refused_journal": "Events that got 503: the journal's disk or server takes none.",
    "feedback_timeouts": "Events that got 503: the journal did not answer in time.",
    "journal_retries": "Commits that were tried again.",
    "server_unreachable": "Exchanges with the parameter server that failed.",
    "adopted": "Partitions of other replicas that were taken over.",
    "sealed": "Partitions that another replica has taken over.",
    "relearned": "Rows that were learned a second time, after a loss.",
    "damaged": "Events whose stored row cannot be read.",
    "replay_rows": "Rows that were rehearsed.",
    "rows_missed": "Uses of a table's rows that were not held.",
    "rows_fetched": "Rows of a table that were fetched from the parameter server.",
    "rows_received": "Rows of a table in the parameter server's replies: fetched and changed ones.",
    "rows_evicted": "Rows of a table that were dropped because others are used more.",
    "learned_without_rows": "Events learned before the rows of a table that they need had come.",
    "replay_purged": "Rehearsal rows dropped because their source was quarantined.",
    "tokens_too_long": "Predictions whose id would be too long for a token.",
    "joins_kept": "Predictions that were stored before their label.",
    "corrected": "Final labels of events whose first label was provisional.",
    "joins_joined": "Predictions joined with a label that was waiting.",
    "joins_reused": "Predictions whose id was already taken by an earlier one.",
    "joins_dropped": "Predictions that were not stored for a join: their labels will be unknown.",
    "joins_refused": "Labels and predictions refused because there was no room to wait.",
    "values_clipped": "Outlying values, learned as the nearest end of the recent values.",
    "names_left_out": "Values under new names, left out for lack of room.",
    "ids_from_the_future": "Labels of ids stamped later than the clock.",
    "learner_restarts": "Learner processes that ended and were started again.",
    "internal_errors": "Unexpected errors in a background loop; the log has them.",
    "drift_alarms": "Alarms of the drift detectors.",
    "drift_served": "Answers that the drift watch has seen.",
    "drift_judged": "Labelled rows that the drift watch has judged.",
    "filter_sources_evicted": "Sources evicted by the filters because there were too many.",
    "triggers_found": "Triggers found by searches so far.",
    "trigger_searches": "Searches for triggers.",
    "trigger_searches_failed": "Searches for triggers that could not be made.",
}
_BY_LABEL: Final = (
    ("predict_refused_", "predict_refused", "code", "Requests for predictions that were refused."),
    ("feedback_refused_", "feedback_refused", "code", "Requests with feedback that were refused."),
    ("choose_refused_", "choose_refused", "code", "Requests to choose that were refused."),
    ("reward_refused_", "reward_refused", "code", "Requests with rewards that were refused."),
    ("deltas_refused_", "deltas_refused", "code", "Deltas of devices that were refused."),
    ("feedback_", "feedback", "outcome", "Events of feedback."),
    ("deltas_", "deltas", "outcome", "Deltas of devices."),
    ("filter_", "filter_rows", "verdict", "Rows that the filters have judged."),
)
"""Counters that form one family: their prefix, the family, its label, its help."""

_CHALLENGER: Final = (
    ("behind_rows", "Rows that the challenger has still to learn."),
    ("rows", "Rows on which the challenger is compared with the serving model."),
    ("late", "Rows whose labels came too late to compare."),
    ("champion", "Accuracy (regression: mean absolute error) of the serving model on these rows."),
    ("challenger", "Accuracy (regression: mean absolute error) of the challenger."),
    ("difference", "Mean difference of the scores, above 0 in the challenger's favour."),
)
_TABLES: Final = (
    ("waiting", "Rows not added to bounded tables because their ids were too rare"),
    ("late", "Rows not added to bounded tables because they were begun before an eviction"),
    ("left", "Rows evicted from bounded tables"),
)
_VERDICTS: Final = {"better": 1, "worse": -1}
_UNITS: Final = (("_ms", 1e-3), ("_us", 1e-6), ("_s", 1.0))


def family(key: str) -> tuple[str, dict[str, str], float, str]:
    """Return the family, labels, factor and help of a replica's reported key.

    Names that end in a unit of time are converted to seconds.
    """
    if key not in _GAUGES and key not in _COUNTERS:
        for begins, name, label, text in _BY_LABEL:
            if key.startswith(begins):
                return f"online_{name}", {label: key.removeprefix(begins)}, 1.0, text
    text = _GAUGES.get(key) or _COUNTERS.get(key) or f"{key} of a replica."
    name, factor = in_seconds(key)
    return f"online_{name}", {}, factor, text


def in_seconds(name: str) -> tuple[str, float]:
    """Return the name with its base unit, and the factor for its values."""
    for unit, factor in _UNITS:
        if name.endswith(unit):
            return f"{name.removesuffix(unit)}_seconds", factor
    return name, 1.0


class _Families:
    """Metric families by name, each with the label names of its first sample."""

    def __init__(self) -> None:
        self._made: dict[str, Metric] = {}

    def put(self, name: str, text: str, labels: Mapping[str, str], value: float) -> None:
        """Add a gauge's value."""
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = GaugeMetricFamily(name, text, labels=list(labels))
        assert isinstance(made, GaugeMetricFamily)
        made.add_metric(list(labels.values()), value)

    def count(self, name: str, text: str, labels: Mapping[str, str], value: float) -> None:
        """Add a counter's value."""
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = CounterMetricFamily(name, text, labels=list(labels))
        assert isinstance(made, CounterMetricFamily)
        made.add_metric(list(labels.values()), value)

    def durations(self, labels: Mapping[str, str], report: Mapping[str, float]) -> None:
        """Add a replica's duration histograms."""
        for what, text in DURATIONS.items():
            counts = [report.get(f"{what}{_AT}{i}", 0.0) for i in range(len(BOUNDS_S) + 1)]
            if not any(counts):
                continue
            name = f"online_{what}_seconds"
            made = self._made.get(name)
            if made is None:
                made = self._made[name] = HistogramMetricFamily(name, text, labels=list(labels))
            assert isinstance(made, HistogramMetricFamily)
            bounds = [*(format(bound, "g") for bound in BOUNDS_S), "+Inf"]
            exemplar = _exemplar(what, report)
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = [
                (bound, count, exemplar[1])
                if exemplar is not None and exemplar[0] == i
                else (bound, count)
                for i, (bound, count) in enumerate(zip(bounds, accumulate(counts), strict=True))
            ]
            made.add_metric(list(labels.values()), buckets, report.get(f"{what}{_SUM}", 0.0))

    def all(self) -> Iterable[Metric]:
        """Return the families that have a value."""
        return self._made.values()


class _Collector:
    def __init__(self, models: Iterable[Mapping[str, Any]]) -> None:
        self._models = list(models)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families, one per name."""
        families = _Families()
        for model in self._models:
            base = {"model": str(model["model"])}
            for replica, report in model["replicas"].items():
                self._replica(families, {**base, "replica": replica}, report)
            text = "Prequential quality of all learned events."
            for key, value in model["quality"].items():
                if isinstance(value, (int, float)):
                    families.put("online_prequential", text, {**base, "metric": key}, value)
            families.put("online_learned_events", "Events in the model.", base, model["learned"])
            up = model["server"] is not None
            families.put("online_server_up", "1: the parameter server answers.", base, up)
            _slices(families, base, model.get("slices") or {})
            for name, text, number in _state(model):
                if isinstance(number, (int, float)):
                    named, factor = in_seconds(name)
                    families.put(f"online_{named}", text, base, number * factor)
        for name, text, number in _journal(self._models):
            families.put(f"online_{name}", text, {}, number)
        yield from families.all()

    def _replica(
        self, families: _Families, labels: Mapping[str, str], report: Mapping[str, float]
    ) -> None:
        for key, value in report.items():
            if _AT in key or key.startswith(_TRACED) or key.endswith(_SUM):
                continue
            name, more, factor, text = family(key)
            put = families.put if key in _GAUGES else families.count
            put(name, text, {**labels, **more}, value * factor)
        families.durations(labels, report)


def _slices(
    families: _Families, base: Mapping[str, str], slices: Mapping[str, Mapping[str, Any]]
) -> None:
    """Add the scores of the slices of a model's rows."""
    text = "Scores and coverage of the rows that have a value of a feature."
    for feature, values in slices.items():
        for value, scores in values.items():
            labels = {**base, "feature": feature, "value": value}
            for metric, score in scores.items():
                families.put("online_slice", text, {**labels, "metric": metric}, score)


def _journal(models: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str, float]]:
    """Yield the gauges of the journal, which all models share."""
    journal: Mapping[str, Any] = next(
        (found for model in models if (found := model["journal"])), {}
    )
    for key, name, text in (
        ("size", "journal_bytes", "Size of the journal."),
        ("bound", "journal_bound_bytes", "Size of the journal at which feedback is refused."),
        ("used_ratio", "journal_used_ratio", "Size of the journal as a share of its bound."),
        ("days_left", "journal_days_left", "Days until the journal is full, as it grows now."),
        ("bytes_per_day", "journal_bytes_per_day", "Growth of the journal, in bytes a day."),
    ):
        if isinstance(value := journal.get(key), (int, float)):
            yield name, text, value


def _state(model: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield name, help and value of each gauge of a model; the value is None if unknown."""
    server, journal = model["server"] or {}, model["journal"] or {}
    rewrites = model["rewrites"] or {}
    yield "server_epoch", "Starts, rollbacks and reloads of the server.", server.get("epoch")
    yield "server_count", "Pushes that the server has applied in this epoch.", server.get("count")
    yield "server_restore_s", "Time that the server's last start took.", server.get("restore_s")
    yield "rollback_reach_s", "Age of the oldest snapshot.", server.get("reach_s")
    if shards := server.get("shards"):
        away = sum(one["state"] == "away" for one in shards)
        yield "shards_away", "Parameter servers of the model that do not answer.", away
    text = "Damaged snapshots that were rejected."
    yield "snapshots_refused", text, len(server["refused"]) if server else None
    text = "Snapshots whose files were removed from outside since the server started."
    yield "snapshots_vanished", text, server.get("vanished")
    tables = server.get("tables") or {}
    yield "table_rows", "Rows of the tables of ids that are bounded.", tables.get("rows")
    text = "Rows that replicas hold, as the server records it (limits.held_rows_max)."
    yield "table_rows_recorded", text, tables.get("held")
    text = "Replicas that receive all changed rows, because there was no room for their records."
    yield "table_replicas_unrecorded", text, tables.get("unrecorded")
    for key, text in _TABLES:
        yield f"table_rows_{key}", f"{text}, since the server started.", tables.get(key)
    yield "frozen", "1: the model learns nothing, feedback is recorded.", rewrites.get("frozen")
    yield "undone_rows", "Rows that decisions took out of the model.", rewrites.get("undone")
    lost = (rewrites.get("lost") or {}).get("events", 0 if rewrites else None)
    yield "lost_events", "Events in the model that the journal has lost, accepted.", lost
    banned = rewrites.get("banned")
    yield "banned_sources", "Sources that are banned.", None if banned is None else len(banned)
    rival = model.get("challenger") or {}
    for key, text in _CHALLENGER:
        yield f"challenger_{key}", text, rival.get(key)
    if rival:
        text = "1: the challenger is better, -1: worse, 0: open."
        yield "challenger_verdict", text, _VERDICTS.get(str(rival.get("verdict")), 0)
    for side, value in zip(("low", "high"), rival.get("interval") or (), strict=False):
        text = f"The {side} end of the interval of the difference."
        yield f"challenger_difference_{side}", text, value
    sure = model.get("confidence") or {}
    text = "Share of sets or intervals that contained the label."
    yield "confidence_coverage", text, sure.get("coverage")
    yield "confidence_level", "Coverage that was requested.", sure.get("level")
    yield "confidence_size", "Mean number of labels in a set.", sure.get("size")
    yield "confidence_width", "Mean width of an interval.", sure.get("width")
    sharp = model.get("calibration") or {}
    text = "Factor on the logarithms of probabilities; 1: uncalibrated."
    yield "calibration_sharpness", text, sharp.get("sharpness")
    yield "calibration_gained", "Log loss gained per row by calibration.", sharp.get("gained")
    odd = model.get("anomaly") or {}
    yield "anomaly_share", "Share of the learned rows answered as anomalies.", odd.get("share")
    yield "anomaly_threshold", "Rank above which a row is an anomaly.", odd.get("threshold")
    yield "anomaly_unlabelled_rows", "Rows learned without a label.", odd.get("unlabelled")
    yield "journal_rows", "Rows of the model in the journal.", journal.get("rows")
    text = "Growth of the model's rows in the journal, a day."
    yield "journal_rows_per_day", text, journal.get("rows_per_day")
    text = "Predictions and labels that wait for each other in the store."
    yield "joins_stored", text, journal.get("waiting")


def exposition(models: Iterable[Mapping[str, Any]], *, openmetrics: bool = False) -> str:
    """Format model statuses as Prometheus text; OpenMetrics text includes trace ids."""
    registry = CollectorRegistry()
    registry.register(_Collector(models))
    written = as_openmetrics if openmetrics else generate_latest
    return written(registry).decode()
