"""This benchmark measures what one event costs on a large sparse model.

The cost is bytes pushed, and time until the event is learned.  The large model and the small one
are served by the same service and asked in turns; an event touches nine weights of either, which
it knows already.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.learners import COUNT_LABEL, counting
from benchmarks.fixtures.service import Running, service
from online.learning.merged import Learner
from online.models.adapters.linear import Linear
from online.settings.limits import Limits
from paramserver.core import wire
from replay import codec
from replay.example import Example
from replay.journal.base import Row, Verdict

SMALL, LARGE = 1_000, 1_000_000
BYTES_MAX: Final = 4_096
RATIO_MAX: Final = 1.5
_TOUCHED = 9
_WIDE = 4_000  # weights of one event while the model is filled
_BODY = 5  # such events of one body
_TURN = 100  # events of one model before it is the other's turn

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Cost:
    """One event on a model of ``weights``: bytes of its push, and medians of the rounds in ms.

    ``ratio`` is the median of the rounds' ratios to the smallest model.
    """

    weights: int
    push_bytes: int
    feedback_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True, slots=True)
class Found:
    """The models, the smallest first."""

    costs: list[Cost]

    @property
    def good(self) -> bool:
        """An event's push is small, and the large model's event costs what the small one's does."""
        last = self.costs[-1]
        return last.push_bytes <= BYTES_MAX and last.ratio <= RATIO_MAX


def run(*, large: int = LARGE, rounds: int = 9, progress: Progress = lambda line: None) -> Found:
    """Fill both models, then ``rounds`` times 100 events on each in turn."""
    sizes = (SMALL, large)
    times: dict[int, list[float]] = {size: [] for size in sizes}
    limits = {"names_max": 4 * large, "names_s": 1e6}  # they are to be filled at once
    models = [_settings(size) for size in sizes]
    with service({"replicas": 1, "models": models, "limits": limits}) as running:
        for size in sizes:
            progress(f"a model of {size:,} weights")
            _fill(running, size)
        for i in range(-1, rounds):
            for size in sizes:
                median = _turn(running, size, i)
                if i >= 0:  # the first warms up
                    times[size].append(median)
            progress(f"round {i + 1} of {rounds}")
    costs = []
    for size in sizes:
        ratios = [mine / other for mine, other in zip(times[size], times[SMALL], strict=True)]
        costs.append(
            Cost(
                size, push_bytes(size), statistics.median(times[size]),
                statistics.median(ratios), min(ratios), max(ratios),
            )
        )  # fmt: skip
    return Found(costs)


def push_bytes(weights: int) -> int:
    """Bytes of the push of one event on a model that has ``weights``, as it is sent."""
    learner = Learner(
        lambda: Linear(counting()), task="regression", spec="0" * 64,
        retain_bytes=1 << 30, rows_max=1,
    )  # fmt: skip
    learner.open_partition(1)
    learner.on_reply(_nothing())
    names = _names(weights)
    offset = 0
    while True:
        wide = [name for _, name in zip(range(_WIDE), names, strict=False)]
        if not wide:
            break
        offset += 1
        learner.learn(_row(offset, wide))
        learner.pushes(1 << 20)
    learner.learn(_row(offset + 1, [f"w{i}" for i in range(_TOUCHED)]))
    last = learner.pushes(1 << 20)[-1]
    return len(wire.encode(last))


def _nothing() -> wire.SyncReply:
    return wire.SyncReply(
        format=wire.FORMAT, spec="0" * 64, epoch=1, count=0, acks=[], kind="all", blocks={},
        clock={}, closed=[], durable={}, orphans=[], confirmed_ms=0.0,
    )  # fmt: skip


def _row(offset: int, names: list[str]) -> Row:
    payload = codec.encode(Example(dict.fromkeys(names, 1.0), COUNT_LABEL))
    key = offset.to_bytes(16, "big")
    return Row(0, 1, offset, key, f"e{offset}", "", Verdict.ACCEPTED, 1.0, payload, 0.0)


def _names(weights: int) -> Iterator[str]:
    return (f"w{i}" for i in range(weights))


def _settings(weights: int) -> dict[str, Any]:
    return {
        "name": f"m{weights}",
        "task": "regression",
        "learner": "benchmarks.fixtures.learners:counting",
        "sync": {"merge": "sum"},
    }


def _fill(running: Running, weights: int) -> None:
    names = list(_names(weights))
    assert Limits().features_max >= _WIDE
    with contextlib.closing(Connection(running.url, 60)) as client:
        for first in range(0, weights, _WIDE * _BODY):
            part = names[first : first + _WIDE * _BODY]
            events = [
                {"features": dict.fromkeys(part[k : k + _WIDE], 1.0), "label": COUNT_LABEL,
                 "event_id": f"fill-{first + k}"}
                for k in range(0, len(part), _WIDE)
            ]  # fmt: skip
            code, answer = client.post(f"/v1/models/m{weights}/feedback", {"events": events})
            assert code == 200, answer
            assert {event["status"] for event in answer["events"]} == {"learned"}, answer


def _turn(running: Running, weights: int, turn: int) -> float:
    """Median of the milliseconds that one event takes, one after the other."""
    path, times = f"/v1/models/m{weights}/feedback", []
    with contextlib.closing(Connection(running.url)) as client:
        for i in range(_TURN):
            first = 97 * i % (weights - _TOUCHED)
            body = {
                "features": {f"w{first + k}": 1.0 for k in range(_TOUCHED)},
                "label": COUNT_LABEL,
                "event_id": f"turn-{turn}-{i}",
            }
            begun = time.perf_counter()
            code, answer = client.post(path, body)
            times.append((time.perf_counter() - begun) * 1e3)
            assert code == 200, answer
    return statistics.median(times)
