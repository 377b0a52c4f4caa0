"""R6 through a service: two replicas, from the first lie to the last honest row learned again."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

from benchmarks.attacks.undo import (
    ALARM_MAX,
    BACK_S_MAX,
    LIARS,
    POINTS,
    SHARES,
    STREAMS,
    Course,
    course,
    during,
)
from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.service import Running, service
from benchmarks.fixtures.single_replica import Row

_NAME: Final = "m"
_PATH: Final = f"/v1/models/{_NAME}"
_SNAPSHOT_S: Final = 1.0
_PAGE: Final = 200
_PATIENCE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Served:
    """One drill over HTTP; accuracies in percent on rows that are held back.

    ``alarm``: lies until a rollback by itself, ``back_s``: from the alarm's row to the first answer
    of other values, ``waited``: answers of 429 and 503, sent again.  ``relearned``: honest rows
    that the rollbacks had taken out.
    """

    what: str
    clean: float
    harm: float
    recovered: float
    alarm: float
    back_s: float
    rollbacks: int
    relearned: int
    waited: int
    good: bool


def run(
    streams: Sequence[tuple[str, Any, str]] = STREAMS[:1], rows: int = 2_400
) -> Iterator[Served]:
    """Run each stream and share of lies: without an attack, with alarms only, with a rollback."""
    for (name, task, learner), share in product(streams, SHARES):
        given = course(name, task, learner, share, 0, rows)
        clean = _play(given, "tell", lies=False)
        told = _play(given, "tell", lies=True)
        back = _play(given, "rollback", lies=True)
        good = (
            back.alarm <= ALARM_MAX
            and back.back_s <= BACK_S_MAX
            and back.accuracy >= clean.accuracy - POINTS
        )
        yield Served(
            f"{name}, {during(share)}", clean.accuracy, told.accuracy, back.accuracy, back.alarm,
            back.back_s, back.rollbacks, back.relearned, back.waited, good,
        )  # fmt: skip


@dataclass(slots=True)
class _Played:
    accuracy: float = 0.0
    alarm: float = float("inf")
    back_s: float = float("inf")
    rollbacks: int = 0
    relearned: int = 0
    waited: int = 0


def _play(given: Course, on_rise: str, *, lies: bool) -> _Played:
    with tempfile.TemporaryDirectory(prefix="online-bench-root-") as folder:
        root = Path(folder) / "root.jsonl"
        root.write_text(
            "".join(json.dumps({"features": x, "label": y}) + "\n" for x, y in given.root)
        )
        model = {
            "name": _NAME, "task": given.task, "learner": given.learner, "filters": "none",
            "root_set": str(root), "drift": {"on_rise": on_rise},
            "snapshots": {"interval_s": _SNAPSHOT_S},
        }  # fmt: skip
        with service({"replicas": 2, "models": [model]}) as running:
            return _Drill(running, given).played(on_rise, lies=lies)


class _Drill:
    """A drill sends a course to one service, and then does what an operator does."""

    def __init__(self, running: Running, given: Course) -> None:
        self._running, self._given, self._out = running, given, _Played()

    def played(self, on_rise: str, *, lies: bool) -> _Played:
        """Until the last lie; then what an operator does, if it goes back."""
        given, out = self._given, self._out
        posts = [p for p in given.posts[: given.ended] if lies or p[0] not in LIARS]
        with contextlib.closing(Connection(self._running.url)) as self._client:
            changes, lied = self._sent(posts)
            if on_rise == "rollback" and changes:
                self._measure(changes, lied)
                self._undo(lied[0])
            out.accuracy = self._accuracy(given.asked)
        return out

    def _sent(self, posts: Sequence[Any]) -> tuple[list[float], list[float]]:
        """When answers had another epoch than before, and when lies were sent (POSIX seconds)."""
        epochs, changes, lied = {0}, list[float](), list[float]()
        begun = time.monotonic()
        for n, (source, features, label) in enumerate(posts):
            if source in LIARS and not lied:  # snapshots come by the clock
                time.sleep(max(begun + 3 * _SNAPSHOT_S - time.monotonic(), 0.0))
            if source in LIARS:
                lied.append(time.time())
            event = {"features": features, "label": label, "source": source, "event_id": str(n)}
            epoch = int(str(self._posted("feedback", event)["version"]).split(".")[0])
            if epoch > max(epochs):
                changes += [time.time()] if len(epochs) > 1 else []
                epochs.add(epoch)
        return changes, lied

    def _posted(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            code, answer = self._client.post(f"{_PATH}/{what}", body)
            if code not in (429, 503) or time.monotonic() > deadline:
                assert code in (200, 202), (code, answer)
                return dict(answer)
            self._out.waited += 1
            time.sleep(0.02)

    def _measure(self, changes: Sequence[float], lied: Sequence[float]) -> None:
        alarms = list[float]()
        for url in self._running.replica_urls().values():
            with contextlib.closing(Connection(url)) as client:
                newest = client.get(_PATH)[1]["drift"]["newest"]
            alarms += [a["at"] for a in newest if (a["signal"], a["direction"]) == ("error", "up")]
        out, first = self._out, changes[0]
        at = max((at for at in alarms if lied[0] <= at <= first), default=float("-inf"))
        out.rollbacks, out.back_s = len(changes), first - at
        out.alarm = sum(sent <= at for sent in lied) if at > 0 else float("inf")

    def _undo(self, first_lie: float) -> None:
        """Ban the liars, go back to before the first lie, learn the others' rows again."""
        for source in LIARS:
            self._posted("sources", {"source": source, "banned": True})
        listed = self._client.get(f"{_PATH}/snapshots")[1]["snapshots"]
        to = max((s for s in listed if s["created_at"] < first_lie), key=lambda s: s["created_at"])
        self._posted("rollback", {"to": to["name"]})
        cursor: str | None = None
        while True:
            body = {"status": "undone", "after": cursor, "limit": _PAGE}
            page = self._posted("relearn", body)
            self._out.relearned += page["learned"]
            cursor = page["cursor"]
            if cursor is None:
                return

    def _accuracy(self, asked: Sequence[Row]) -> float:
        right = 0
        for at in range(0, len(asked), _PAGE):
            some = asked[at : at + _PAGE]
            answer = self._posted("predict", {"instances": [x for x, _ in some]})
            pairs = zip(answer["predictions"], some, strict=True)
            right += sum(row["prediction"] == label for row, (_, label) in pairs)
        return 100.0 * right / len(asked)
