"""A status in which everything has a value, and the rules that ask for its metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from online.telemetry import prometheus

RULES: Final = Path(__file__).parents[3] / "deploy" / "prometheus" / "rules.yaml"


def report() -> dict[str, float]:
    """All that a replica may report."""
    durations = prometheus.Durations()
    for seconds in (0.0003, 0.0004, 0.002, 99.0):
        for what in prometheus.DURATIONS:
            durations.note(what, seconds)
    counters = {
        "predict_refused_busy": 2.0, "feedback_refused_busy": 3.0, "feedback_learned": 40.0,
        "feedback_conflict": 1.0, "deltas_refused_too_large": 1.0, "deltas_learned": 2.0,
        "filter_accepted": 38.0, "filter_quarantined": 2.0,
    }  # fmt: skip
    every = dict.fromkeys([*prometheus._GAUGES, *prometheus._COUNTERS], 1.0)
    return {**every, "age_ms": 1500.0, "learn_us": 80.0, **counters, **durations.report()}


def status(model: str = "m") -> dict[str, Any]:
    server = {"epoch": 3, "count": 9, "restore_s": 0.5, "reach_s": 60.0, "refused": {}}
    journal = {
        "size": 10, "bound": 100, "used_ratio": 0.1, "days_left": 30.0, "bytes_per_day": 3.0,
        "rows": 5, "rows_per_day": 7.0, "waiting": 0,
    }  # fmt: skip
    shards = [{"state": "serving"}, {"state": "restoring"}]
    tables = {"rows": 50, "waiting": 4, "late": 3, "left": 2, "held": 7, "unrecorded": 1}
    rewrites = {"frozen": False, "undone": 0, "banned": []}
    rival = {
        "verdict": "better", "interval": (0.1, 0.2), "rows": 9, "behind_rows": 0, "late": 0,
        "difference": 0.15, "champion": 0.8, "challenger": 0.95,
    }  # fmt: skip
    return {
        "model": model, "replicas": {"one": report(), "two": report()},
        "quality": {"n": 40, "accuracy": 0.9, "kappa_t": 0.1, "f1": None}, "learned": 40,
        "server": {**server, "vanished": 0, "tables": tables, "shards": shards}, "journal": journal,
        "rewrites": rewrites,
        "challenger": rival, "slices": {"city": {"here": {"accuracy": 0.9}}},
        "confidence": {"coverage": 0.9, "level": 0.9, "size": 1.1, "width": 2.0},
        "calibration": {"sharpness": 0.8, "n": 40, "late": 3.0, "gained": 0.01},
        "anomaly": {"threshold": 0.99, "rows": 9, "unlabelled": 7, "above": 1, "share": 0.1},
    }  # fmt: skip


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found
