"""Is a challenger judged fairly where one replica answers and another takes the labels?

Two replicas of one model in this process, with the real journal, parameter server, learner and
challenger: all predictions go to the first, all labels to the second.  What the second learns
reaches the first some rows later, so an answer lacks labels that had come before the question.  A
challenger that is no better must not be promoted for knowing them, a better one must be.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.service import service, status
from online.challenger.comparison import Standing
from online.challenger.shadow import Shadow
from online.learning.merged import Learner
from online.learning.scores import score_of
from online.models.loaded import Loaded
from online.models.loading.from_settings import load_model
from online.rows.prediction_ids import event_key
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import open_journal
from paramserver.core import wire
from paramserver.process.actor import ParameterServer, ServerSettings
from paramserver.process.lineage import Lineage
from replay import codec
from replay.example import Example, Features
from replay.journal.base import NewRow, Verdict

EQUAL: Final = ({"learner": "logreg", "params": {"lr": 0.05}}, {"lr": 0.0501})
BETTER: Final = ({"learner": "logreg", "params": {"lr": 0.0005}}, {"lr": 0.05})
ROWS: Final = 3_000
LAG_ROWS: Final = 40
"""Rows between two exchanges of a replica with the server."""
_KEY: Final = b"0" * 32
_SETTLE_S: Final = 120.0
_LOOKS_S: Final = 3.0
_STEP_S: Final = 0.002


@dataclass(frozen=True, slots=True)
class Line:
    """Runs of one pair: how many promoted it, and the mean difference of the scores in points.

    ``difference`` is above 0 in the challenger's favour; ``compared`` are rows in all runs.
    """

    what: str
    runs: int
    promoted: int
    compared: int
    late: int
    difference: float
    good: bool


def turning(rows: int, seed: int) -> Iterator[tuple[Features, bool]]:
    """Labels that follow a direction which turns all the time: the newest ones matter most."""
    rng = Random(seed)
    angle = rng.random() * 6.0
    for _ in range(rows):
        angle += 0.004
        x, z = rng.gauss(0.0, 1.0), rng.gauss(0.0, 1.0)
        right = x * math.cos(angle) + z * math.sin(angle) > 0.0
        yield {"x": x, "z": z}, right if rng.random() < 0.95 else not right


class Apart:
    """The service of one model, a step at a time: one replica answers, another one learns.

    ``writes``: rows say what the answer knew, as they do since there is something to compare.
    """

    def __init__(
        self,
        folder: Path,
        champion: dict[str, Any],
        challenger: dict[str, Any],
        *,
        writes: bool = True,
    ) -> None:
        self._writes = writes
        challenge = {**champion, "params": challenger, "promote": "auto", "delay": 1}
        model = {"name": "m", "task": "binary", **champion, "challenger": challenge}
        self._settings = Settings(state_dir=folder, models=(ModelSettings.model_validate(model),))
        self._model = self._settings.models[0]
        self._loaded = self._load(self._model)
        self.journal = open_journal(self._settings)
        loaded = self._loaded
        self._server = ParameterServer(
            Lineage("m", loaded.spec_hash, loaded.spec_text, "sum"),
            lambda: open_journal(self._settings),
            str(folder / "served"),
            ServerSettings(),
            background=False,
        )
        assert self._server.restore()
        self._asked, self._taught = self._replica("a"), self._replica("b")
        self._now_s, self._rows = 1_000.0, 0
        self.proposed: list[Standing] = []
        challenging = self._model.challenging
        assert challenging is not None
        self.shadow = Shadow(
            self._settings, self._model, self._load(challenging), self.journal,
            rival=loaded.spec_hash, now_s=lambda: self._now_s, monotonic_s=lambda: self._now_s,
            propose=self.proposed.append,
        )  # fmt: skip
        self.shadow.begin()

    def _load(self, model: ModelSettings) -> Loaded:
        return load_model(model, self._settings, _KEY)

    def _replica(self, name: str) -> tuple[Learner, int]:
        learner = Learner(
            self._loaded.build, task="binary", spec=self._loaded.spec_hash,
            retain_bytes=1 << 20, rows_max=64,
        )  # fmt: skip
        partition = self.journal.register("m", name, self._loaded.spec_hash, 1.0).id
        learner.open_partition(partition)
        self._exchange(name, learner, partition)
        return learner, partition

    def _exchange(self, name: str, learner: Learner, partition: int) -> None:
        request = wire.SyncRequest(
            format=wire.FORMAT, replica=name, partition=partition, pushes=learner.pushes(64),
            since=learner.since, values=True, adopting=[], adopts=False,
        )  # fmt: skip
        learner.on_reply(wire.decode_reply(self._server.sync(wire.encode(request))))
        list(learner.drop_old())

    @property
    def replicas(self) -> tuple[tuple[Learner, int], tuple[Learner, int]]:
        """Who answers and who is taught, each with its partition."""
        return self._asked, self._taught

    def play(self, rows: Iterator[tuple[Features, bool]]) -> Standing:
        """Ask and teach them all; how the challenger stands then."""
        for features, label in rows:
            self._now_s += _STEP_S
            self._teach(self._answered(features, label))
            if self._rows % LAG_ROWS == 0:
                self._exchange("b", *self._taught)
            if self._rows % LAG_ROWS == LAG_ROWS // 2:
                self._exchange("a", *self._asked)
            self.shadow.step()
        self._now_s += 10.0
        while self.shadow.step():
            pass
        return self.shadow.standing()

    def _answered(self, features: Features, label: bool) -> Example:
        learner, _ = self._asked
        answer = learner.predict(features)
        version = (*learner.version, learner.own)
        score = score_of("binary", answer)
        return Example(
            features, label, 1.0, score, version, self._now_s, notes=answer.notes,
            known=learner.known() if self._writes else None,
        )  # fmt: skip

    def _teach(self, example: Example) -> None:
        learner, partition = self._taught
        self._now_s += _STEP_S
        self._rows += 1
        name = f"e{self._rows}"
        key = event_key("event", "t", name)
        row = NewRow(key, name, "t", Verdict.ACCEPTED, codec.encode(example), self._now_s)
        self.journal.append(partition, self._rows - 1, [row])
        for taken in self.journal.read(partition, self._rows, 1):
            learner.learn(taken)

    def close(self) -> None:
        """Let go of the files."""
        self.journal.close()


def run(
    *, runs: int = 20, rows: int = ROWS, first: int = 0, progress: Callable[[str], None]
) -> list[Line]:
    """Both pairs, each so many times on other rows."""
    lines = []
    for what, (champion, challenger) in (("equal", EQUAL), ("better", BETTER)):
        promoted, found = 0, []
        for seed in range(first, first + runs):
            with tempfile.TemporaryDirectory(prefix="online-shadowed-") as name:
                world = Apart(Path(name), champion, challenger)
                found.append(world.play(turning(rows, seed)))
                promoted += bool(world.proposed)
                world.close()
            progress(f"{what} {seed}: {found[-1]}")
        compared = sum(one.rows for one in found)
        difference = sum((one.difference or 0.0) * one.rows for one in found)
        lines.append(
            Line(
                what=f"a challenger that is {what}", runs=runs, promoted=promoted,
                compared=compared, late=sum(one.late for one in found),
                difference=100.0 * difference / max(compared, 1),
                good=promoted == (runs if what == "better" else 0),
            )
        )  # fmt: skip
    return lines


def over_http(rows: int = 2_000, seed: int = 0) -> Line:
    """The equal pair as a service of two replicas: predictions to one of them, labels to the other.

    They exchange twice a second, which at this rate is more rows behind than the replicas above.
    """
    champion, challenger = EQUAL
    challenge = {**champion, "params": challenger, "promote": "auto", "delay": 2, "rows_min": 500}
    model = {
        "name": "m", "task": "binary", **champion, "challenger": challenge,
        "sync": {"interval_ms": 500}, "filters": "none",
    }  # fmt: skip
    with service({"replicas": 2, "models": [model]}) as running:
        first = status(running, "m")["spec"]
        asked, taught = sorted(running.replica_urls().values())
        with (
            contextlib.closing(Connection(asked)) as ask,
            contextlib.closing(Connection(taught)) as teach,
        ):
            for features, label in turning(rows, seed):
                _, answer = ask.post("/v1/models/m/predict", {"features": features})
                code, receipt = teach.post(
                    "/v1/models/m/feedback", {"id": answer["id"], "label": label}
                )
                assert code == 200, receipt
        deadline = time.monotonic() + _SETTLE_S
        while (found := status(running, "m"))["challenger"].get("learned") != rows:
            assert time.monotonic() < deadline, found["challenger"]
            time.sleep(0.5)
        time.sleep(_LOOKS_S)  # it is judged once a second
        found = status(running, "m")
    one = found["challenger"]
    promoted = int(found["spec"] != first)
    return Line(
        what="an equal one, over HTTP", runs=1, promoted=promoted, compared=one["rows"],
        late=one["late"], difference=100.0 * (one["difference"] or 0.0),
        good=promoted == 0 and one["rows"] > rows / 2,
    )  # fmt: skip
