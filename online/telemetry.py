"""Prometheus text for all replicas of all models, and the service's log format."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_GAUGES = ("contact_age_s", "age_ms", "waiting", "own", "behind_rows")


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
            put(
                "online_server_up",
                "the parameter server answers",
                base,
                server is not None,
                gauge=True,
            )
            for key in ("epoch", "count", "restore_s"):
                if server and isinstance(server.get(key), (int, float)):
                    put(
                        f"online_server_{key}",
                        f"{key} of the server",
                        base,
                        server[key],
                        gauge=True,
                    )
        yield from families.values()


def exposition(models: Iterable[Mapping[str, Any]]) -> str:
    """Prometheus text of the given model statuses."""
    registry = CollectorRegistry()
    registry.register(_Collector(models))
    return generate_latest(registry).decode()


def log_to_stderr(level: int) -> None:
    """One line a decision, with time, level and name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("online", "paramserver", "replay"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
