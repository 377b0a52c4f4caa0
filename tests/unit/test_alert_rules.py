"""Each alarm of the rules for Prometheus fires by its symptom, and none without one: promtool."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from telemetry_world import RULES, rules, status

from online.telemetry import prometheus

PROMTOOL: Final = shutil.which("promtool")
STEP_S: Final = 30
WELL: Final = 20  # steps before the symptom
SYMPTOM_STEPS: Final = 24 * 120 + 40  # a day and twenty minutes

Symptom = Callable[[dict[str, Any]], object]
Series = dict[str, tuple[float, bool]]  # value, and whether it only goes up

pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")


def well() -> dict[str, Any]:
    """A status without anything to complain of."""
    found = status()
    quiet = dict.fromkeys([*prometheus._GAUGES, *prometheus._COUNTERS], 0.0)
    durations = prometheus.Durations()
    for what in prometheus.DURATIONS:
        durations.note(what, 0.0003)
    found["replicas"] = {
        "one": {**quiet, "age_ms": 200.0, "drift_state": 1.0, **durations.report()}
    }
    found["server"]["shards"] = [{"state": "serving"}, {"state": "serving"}]
    return found


def reports(**values: float) -> Symptom:
    return lambda found: found["replicas"]["one"].update(values)


def journal(**values: float) -> Symptom:
    return lambda found: found["journal"].update(values)


def server(**values: Any) -> Symptom:
    return lambda found: found["server"].update(values)


def slow(what: str) -> Symptom:
    def answered(found: dict[str, Any]) -> None:
        durations = prometheus.Durations()
        for _ in range(5):
            durations.note(what, 9.0)
        found["replicas"]["one"].update(durations.report())

    return answered


SYMPTOMS: Final[dict[str, Symptom]] = {
    "ServiceAbsent": lambda found: found.clear(),
    "ParameterServerAway": lambda found: found.update(server=None),
    "ShardAway": server(shards=[{"state": "serving"}, {"state": "away"}]),
    "ReplicaWithoutContact": reports(contact_age_s=20.0),
    "ReplicaLacksEvents": reports(unserved_s=6.0),
    "ModelTooOld": reports(age_ms=8000.0),
    "LearningBehind": reports(behind_rows=12.0),
    "JournalNearlyFull": journal(used_ratio=0.85),
    "JournalFullSoon": journal(days_left=3.0),
    "JournalRefuses": reports(refused_journal=1.0),
    "JournalBusy": reports(refused_busy=1.0),
    "LearningQueueFull": reports(refused_queue=1.0),
    "JoinsDropped": reports(joins_dropped=1.0),
    "ClockSetBack": reports(ids_from_the_future=1.0),
    "InternalErrors": reports(internal_errors=1.0),
    "LearnerProcessDies": reports(learner_restarts=1.0),
    "ParameterServerRestarts": server(epoch=4),
    "SnapshotDamaged": server(refused={"3-9": "checksum"}),
    "SnapshotsRemoved": server(vanished=1),
    "ErrorRose": reports(drift_state=3.0),
    "TriggerShown": reports(triggers=1.0),
    "FrozenForADay": lambda found: found["rewrites"].update(frozen=True),
    "WorseThanNoChange": lambda found: found["quality"].update(kappa_t=-0.1),
    "PredictionsSlow": slow("predict"),
    "FeedbackSlow": slow("feedback"),
}


def scraped(found: dict[str, Any]) -> Series:
    """The series of `/metrics`, as the service writes them of a status."""
    out: Series = {}
    if not found:  # nobody answers
        return out
    for made in text_string_to_metric_families(prometheus.exposition([found])):
        rises = made.type in ("counter", "histogram") or made.name == "online_server_epoch"
        for sample in made.samples:
            labels = ",".join(
                f"{name}={json.dumps(value)}" for name, value in sample.labels.items()
            )
            out[f"{sample.name}{{{labels}}}"] = (sample.value, rises)
    return out


def course(before: Series, after: Series) -> list[dict[str, str]]:
    """What Prometheus has of it: well, then the symptom; what is counted goes on being counted."""
    made = []
    for name in before | after:
        was, rises = before.get(name, (0.0, False))
        now, _ = after.get(name, (None, False))
        first = f"{was}x{WELL - 1}" if name in before else f"_x{WELL}"
        if now is None:
            later = f"_x{SYMPTOM_STEPS}"
        elif rises:
            later = f"{now}+{max(now - was, 0.0)}x{SYMPTOM_STEPS - 1}"
        else:
            later = f"{now}x{SYMPTOM_STEPS - 1}"
        made.append({"series": name, "values": f"{first} {later}"})
    return made


def fires(alert: str, at_s: int, times: int) -> dict[str, Any]:
    query = f'count(ALERTS{{alertname=~"{alert}",alertstate="firing"}})'
    samples = [{"labels": "{}", "value": times}] if times else []
    return {"expr": query, "eval_time": f"{at_s}s", "exp_samples": samples}


def seconds(text: str) -> int:
    return int(text[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[text[-1]]


def tried(name: str, symptom: Symptom, wanted: list[dict[str, Any]]) -> dict[str, Any]:
    found = well()
    symptom(found)
    return {
        "name": name, "interval": f"{STEP_S}s", "promql_expr_test": wanted,
        "input_series": course(scraped(well()), scraped(found)),
    }  # fmt: skip


def objections(folder: Path, tests: list[dict[str, Any]]) -> str:
    file = folder / "alarms.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": tests}))
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", str(file)], capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_each_alarm_fires_by_its_symptom(tmp_path: Path) -> None:
    assert set(SYMPTOMS) == {rule["alert"] for rule in rules()}
    tests = []
    for rule in rules():
        due_s = WELL * STEP_S + seconds(rule.get("for", "0s")) + 600  # rates look back
        wanted = [fires(rule["alert"], WELL * STEP_S - 30, 0), fires(rule["alert"], due_s, 1)]
        tests.append(tried(rule["alert"], SYMPTOMS[rule["alert"]], wanted))
    assert objections(tmp_path, tests) == ""


def test_without_a_symptom_none_fires_and_a_wrong_expectation_is_found(tmp_path: Path) -> None:
    hours = [fires(".*", hour * 3600, 0) for hour in range(1, 24)]
    assert objections(tmp_path, [tried("well", lambda _: None, hours)]) == ""
    wrong = [fires("ErrorRose", 3600, 1)]
    assert "FAILED" in objections(tmp_path, [tried("wrong", lambda _: None, wrong)])
