"""Does the service learn exactly as the plain library does?  Row by row, over HTTP."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from itertools import islice
from typing import Any

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.service import Running, service
from evaluation.streams import open_stream
from online.models.loading.load import load
from online.settings.config import data_dir
from replay.example import Label

MODELS: dict[str, dict[str, Any]] = {
    "LR(.005)": {
        "stream": "elec2", "task": "binary", "learner": "logreg",
        "params": {"lr": 0.005, "scale": "plain"},
    },
    "LR(.05)": {
        "stream": "elec2", "task": "binary", "learner": "logreg",
        "params": {"lr": 0.05, "scale": "plain"},
    },
    "ALMA": {
        "stream": "elec2", "task": "binary",
        "learner": "benchmarks.fixtures.learners:alma", "params": {},
    },
    "softmax": {
        "stream": "insects", "task": "multiclass", "learner": "softmax",
        "params": {"lr": 0.05, "scale": "plain"},
    },
    "MLP 8-32-1": {
        "stream": "elec2", "task": "binary", "learner": "mlp",
        "params": {
            "scale": "plain",
            "inputs": ["date", "day", "period", "nswprice", "nswdemand", "vicprice", "vicdemand",
                       "transfer"],
        },
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fidelity:
    """One model on one stream: the service beside the plain library."""

    model: str
    stream: str
    rows: int
    served_accuracy: float
    plain_accuracy: float
    last_label: float
    largest_difference: float
    other_labels: int
    rows_per_s: float


def run(name: str, rows: int | None = None) -> Fidelity:
    """Play a stream row by row against one replica and against the plain learner."""
    spec = MODELS[name]
    settings = {
        "replicas": 1,
        "models": [{"name": "m", **{k: v for k, v in spec.items() if k != "stream"}}],
    }
    with service(settings) as running:
        return compare(running, name, rows)


def compare(running: Running, name: str, rows: int | None) -> Fidelity:
    """The comparison itself, against a running service."""
    import time
    from pathlib import Path

    spec = MODELS[name]
    stream = open_stream(spec["stream"], data_dir())
    plain = load(
        spec["learner"], spec["params"], task=spec["task"], classes=None, key=b"", base_dir=Path()
    ).model
    n = right = plain_right = last_right = other = 0
    worst, last = 0.0, None
    begun = time.monotonic()
    with contextlib.closing(Connection(running.url)) as client:
        for features, label in islice(stream.rows, rows):
            status, answer = client.post("/v1/models/m/predict", {"features": features})
            assert status == 200, answer
            expected = plain.predict(features)
            plain.learn(features, label, 1.0)
            served = answer.get("probabilities") or {}
            for key, p in (expected.probabilities or {}).items():
                worst = max(worst, abs(served[_text(key)] - p))
            other += answer["prediction"] != expected.label
            n += 1
            right += answer["prediction"] == label
            plain_right += expected.label == label
            last_right += label == last
            last = label
            status, receipt = client.post(
                "/v1/models/m/feedback", {"id": answer["id"], "label": label}
            )
            assert (status, receipt["status"]) == (200, "learned"), receipt
    seconds = time.monotonic() - begun
    return Fidelity(
        name, stream.name, n, right / n, plain_right / n, last_right / n, worst, other, n / seconds
    )


def _text(label: Label) -> str:
    return label if isinstance(label, str) else json.dumps(label)
