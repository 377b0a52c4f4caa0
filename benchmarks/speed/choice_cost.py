"""CPU time of choices beside that of predictions, and of rewards beside that of feedback.

Blocks of requests of each kind go to one service one after the other, and in the opposite order in
every other turn; only the processor's time of the service counts, which other load leaves alone.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.service import service

ACTIONS: Final = 20
FEATURES: Final = 10
_CONTEXT: Final = 5
_PROCESS_CLOCK: Final = 2  # clock_getcpuclockid(3)
_MODELS: Final = [
    {"name": "number", "task": "regression", "learner": "linear"},
    {"name": "shop", "task": "choose"},
]


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time a request, and how many of them cost what one of the others costs.

    ``ratio`` is that of the other's time to this one's, median of the turns.
    """

    what: str
    beside: str
    requests: int
    us: float
    other_us: float
    ratio: float
    least: float
    most: float
    asked: float
    good: bool


ASKED: Final = (  # "predict" is of `linear`, "predict one action" of the model that chooses
    ("choose", "predict", 0.25),
    ("choose", "predict one action", 0.0),
    ("reward", "feedback", 1.0),
    ("committed choose", "feedback", 0.8),
)


class Caller:
    """Asks one service; what was answered is rewarded later."""

    def __init__(self, client: Connection, seed: int) -> None:
        self._client, self._rng, self._n = client, random.Random(seed), 0
        self._named = f"own-{seed}"
        self._predicted: list[str] = []
        self._chosen: list[str] = []
        self.kinds: dict[str, Callable[[], None]] = {
            "predict": self._predict,
            "choose": self._choose,
            "predict one action": self._predict_one,
            "committed choose": self._commit,
            "feedback": self._feedback,
            "reward": self._reward,
        }

    def ask(self, kind: str, times: int) -> None:
        """Send so many requests of a kind."""
        for _ in range(times):
            self.kinds[kind]()

    def _numbers(self, n: int) -> dict[str, float]:
        return {f"x{i}": self._rng.gauss(0.0, 1.0) for i in range(n)}

    def _post(self, model: str, action: str, body: dict[str, Any]) -> str:
        code, answer = self._client.post(f"/v1/models/{model}/{action}", body)
        assert code == 200, answer
        return str(answer.get("id"))

    def _question(self) -> dict[str, Any]:
        actions = [{"id": f"a{i}", "features": self._numbers(FEATURES)} for i in range(ACTIONS)]
        return {"context": self._numbers(_CONTEXT), "actions": actions}

    def _predict(self) -> None:
        self._predicted.append(
            self._post("number", "predict", {"features": self._numbers(FEATURES)})
        )

    def _predict_one(self) -> None:
        row = self._numbers(_CONTEXT) | {f"@{k}": v for k, v in self._numbers(FEATURES).items()}
        self._post("shop", "predict", {"features": {**row, "@": "a1"}})

    def _choose(self) -> None:
        self._chosen.append(self._post("shop", "choose", self._question()))

    def _commit(self) -> None:
        self._n += 1
        self._post("shop", "choose", {**self._question(), "id": f"{self._named}-{self._n}"})

    def _feedback(self) -> None:
        body = {"id": self._predicted.pop(), "label": self._rng.random()}
        self._post("number", "feedback", body)

    def _reward(self) -> None:
        body = {"id": self._chosen.pop(), "reward": float(self._rng.random() < 0.5)}
        self._post("shop", "reward", body)


def run(turns: int = 9, requests: int = 640, callers: int = 16) -> list[Cost]:
    """Measure each pair in the same turns; the first one only warms up."""
    spent: dict[str, list[float]] = {}
    with contextlib.ExitStack() as opened:
        running = opened.enter_context(service({"cluster": "embedded", "models": _MODELS}))
        clock = ~running.process.pid << 3 | _PROCESS_CLOCK
        pool = opened.enter_context(ThreadPoolExecutor(callers))
        clients = [Connection(running.url) for _ in range(callers)]
        several = [
            Caller(opened.enter_context(contextlib.closing(client)), seed)
            for seed, client in enumerate(clients)
        ]
        kinds = list(several[0].kinds)
        for turn in range(turns + 1):
            for kind in kinds if turn % 2 == 0 else _later(kinds):
                begun = time.clock_gettime(clock)
                for done in [pool.submit(one.ask, kind, requests // callers) for one in several]:
                    done.result()
                took = time.clock_gettime(clock) - begun
                if turn:
                    spent.setdefault(kind, []).append(1e6 * took / requests)
    return list(_costs(spent, requests * turns))


def _later(kinds: list[str]) -> list[str]:
    """Return them in the other order; ids are there before they are rewarded."""
    return [kinds[i] for i in (3, 2, 1, 0, 5, 4)]


def _costs(spent: dict[str, list[float]], requests: int) -> Iterator[Cost]:
    for what, beside, asked in ASKED:
        ratios = [b / a for a, b in zip(spent[what], spent[beside], strict=True)]
        ratio = statistics.median(ratios)
        yield Cost(
            what, beside, requests, statistics.median(spent[what]),
            statistics.median(spent[beside]), ratio, min(ratios), max(ratios), asked,
            ratio >= asked,
        )  # fmt: skip
