"""Every alarm of the rules fires when its symptom is there, and only then.

A service is scraped twice, five minutes apart, healthy and with one thing wrong; the rules are
worked out here as Prometheus does, as far as they go.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families
from telemetry_world import rules, status

from online.telemetry import prometheus

Labels = frozenset[tuple[str, str]]
Series = dict[tuple[str, Labels], float]
Vector = dict[Labels, float]
Status = dict[str, Any]

SELECTOR: Final = re.compile(r'(\w+)(?:{(\w+)="(\w+)"})?')
APART_S: Final = 300.0


def scraped(models: list[Status]) -> Series:
    text = prometheus.exposition(models)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def by(vector: Vector, names: str, together: Callable[[list[float]], float]) -> Vector:
    wanted, groups = set(names.replace(" ", "").split(",")), defaultdict[Labels, list[float]](list)
    for labels, value in vector.items():
        groups[frozenset(x for x in labels if x[0] in wanted)].append(value)
    return {labels: together(values) for labels, values in groups.items()}


def quantile(q: float, buckets: Vector) -> Vector:
    """As ``histogram_quantile``: in a straight line within the bucket."""
    groups = defaultdict[Labels, list[tuple[float, float]]](list)
    for labels, value in buckets.items():
        rest = frozenset(x for x in labels if x[0] != "le")
        groups[rest].append((float(dict(labels)["le"]), value))
    found: Vector = {}
    for labels, counts in groups.items():
        counts.sort()
        rank, low, below = q * counts[-1][1], 0.0, 0.0
        for bound, count in counts:
            if count >= rank and count > below:
                whole = low if math.isinf(bound) else bound
                found[labels] = low + (whole - low) * (rank - below) / (count - below)
                break
            low, below = bound, count
    return found


def evaluated(query: str, before: Series, now: Series) -> Vector:
    if at := re.fullmatch(r"(rate|increase)\((.*)\[\d+m\]\)", query):
        was, is_ = (evaluated(at[2], series, series) for series in (before, now))
        seconds = APART_S if at[1] == "rate" else 1.0
        return {
            labels: (value - was[labels]) / seconds
            for labels, value in is_.items()
            if labels in was
        }
    if at := re.fullmatch(r"(max|sum) by \(([\w, ]+)\) \((.*)\)", query):
        return by(evaluated(at[3], before, now), at[2], max if at[1] == "max" else sum)
    if at := re.fullmatch(r"histogram_quantile\(([\d.]+), (.*)\)", query):
        return quantile(float(at[1]), evaluated(at[2], before, now))
    at = SELECTOR.fullmatch(query)
    assert at is not None, f"not understood: {query}"
    wanted = set() if at[2] is None else {(at[2], at[3])}
    return {labels: x for (name, labels), x in now.items() if name == at[1] and wanted <= labels}


def fires(expression: str, before: Series, now: Series) -> bool:
    if at := re.fullmatch(r"absent\((.*)\)", expression):
        return not evaluated(at[1], before, now)
    at = re.fullmatch(r"(.*) (==|>|<) ([\d.]+)", expression)
    assert at is not None, f"not understood: {expression}"
    bound = float(at[3])
    compared = {"==": bound.__eq__, ">": bound.__lt__, "<": bound.__gt__}[at[2]]
    return any(compared(value) for value in evaluated(at[1], before, now).values())


def healthy() -> Status:
    """One replica that answers within a millisecond, and of which nothing is wrong."""
    durations = prometheus.Durations()
    for what in prometheus.DURATIONS:
        for _ in range(1_000):
            durations.note(what, 0.0008)
    found = status()
    counters = dict.fromkeys(prometheus._COUNTERS, 0.0)
    gauges = {**dict.fromkeys(prometheus._GAUGES, 0.0), "age_ms": 20.0}
    found["replicas"] = {"one": {**gauges, **counters, **durations.report()}}
    return found


def grown(found: Status) -> Status:
    """The same five minutes later: more requests, as fast."""
    durations = prometheus.Durations()
    for what in prometheus.DURATIONS:
        for _ in range(2_000):
            durations.note(what, 0.0008)
    found["replicas"]["one"] |= durations.report()
    return found


def slow(what: str, seconds: float) -> Callable[[Status], None]:
    def make(found: Status) -> None:
        durations = prometheus.Durations()
        for i in range(2_000):
            durations.note(what, seconds if i % 20 == 0 else 0.0008)
        found["replicas"]["one"] |= durations.report()

    return make


def replica(**more: float) -> Callable[[Status], None]:
    return lambda found: found["replicas"]["one"].update(more)


def part(name: str, **more: Any) -> Callable[[Status], None]:
    return lambda found: found[name].update(more)


def no_server(found: Status) -> None:
    found["server"] = None


SYMPTOMS: Final[Mapping[str, Callable[[Status], None]]] = {
    "ParameterServerAway": no_server,
    "ShardAway": part("server", shards=[{"state": "serving"}, {"state": "away"}]),
    "ReplicaWithoutContact": replica(contact_age_s=6.0),
    "ReplicaLacksEvents": replica(unserved_s=6.0),
    "ModelTooOld": replica(age_ms=6_000.0),
    "LearningBehind": replica(behind_rows=3.0),
    "JournalNearlyFull": part("journal", used_ratio=0.9),
    "JournalFullSoon": part("journal", days_left=3.0),
    "JournalRefuses": replica(refused_journal=1.0),
    "JournalBusy": replica(refused_busy=1.0),
    "LearningQueueFull": replica(refused_queue=1.0),
    "JoinsDropped": replica(joins_dropped=1.0),
    "ClockSetBack": replica(ids_from_the_future=1.0),
    "InternalErrors": replica(internal_errors=1.0),
    "LearnerProcessDies": replica(learner_restarts=3.0),
    "ParameterServerRestarts": part("server", epoch=9),
    "SnapshotDamaged": part("server", refused={"1-2": "its checksum"}),
    "SnapshotsRemoved": part("server", vanished=1),
    "ErrorRose": replica(drift_state=3.0),
    "TriggerShown": replica(triggers=1.0),
    "FrozenForADay": part("rewrites", frozen=True),
    "WorseThanNoChange": part("quality", kappa_t=-0.2),
    "PredictionsSlow": slow("predict", 0.4),
    "FeedbackSlow": slow("feedback", 4.0),
}


def fired(before: list[Status], now: list[Status]) -> set[str]:
    series = scraped(before), scraped(now)
    return {rule["alert"] for rule in rules() if fires(rule["expr"], *series)}


def test_nothing_fires_while_nothing_is_wrong() -> None:
    assert fired([healthy()], [grown(healthy())]) == set()


@pytest.mark.parametrize("alarm", SYMPTOMS)
def test_an_alarm_fires_with_its_symptom_and_no_other_does(alarm: str) -> None:
    now = grown(healthy())
    SYMPTOMS[alarm](now)
    assert fired([healthy()], [now]) == {alarm}


def test_a_service_that_is_gone_is_noticed() -> None:
    assert fired([healthy()], []) == {"ServiceAbsent"}


def test_every_alarm_has_its_symptom_here() -> None:
    assert {rule["alert"] for rule in rules()} == {*SYMPTOMS, "ServiceAbsent"}


def test_what_is_not_understood_is_no_silence() -> None:
    with pytest.raises(AssertionError, match="not understood"):
        fires("avg(online_age_seconds) > 5", {}, {})
