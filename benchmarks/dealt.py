"""Several replicas learn one model's feedback in one process, deterministically and quickly.

The learners, filters and the server are those of the service; between them stand no journal, no
HTTP and no clock.  Events are dealt in turn, and each replica pushes and pulls after so many of its
own: far more in a turn than a service that exchanges every 20 ms has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from online.learning.bounds import with_target
from online.learning.merged import Learner
from online.learning.scores import score_of
from online.models.load import load
from online.settings.model import ModelSettings
from online.trust.filtering import filtering_for
from paramserver.core import wire
from paramserver.core.server import Server
from replay import codec
from replay.example import Example, Features, Label
from replay.journal.base import NewRow, Outcome, Partition, Row, Verdict

EVERY: Final = 32
"""Own events between two exchanges."""

_SPEC: Final = "0" * 64
_ROWS_MAX: Final = 1024


class _Replica:
    def __init__(
        self,
        settings: ModelSettings,
        partition: int,
        server: Server,
        build: Callable[[], Any],
        *,
        vouched: bool,
    ) -> None:
        self._task, self._partition, self._server = settings.task, partition, server
        self.learner = Learner(
            build, task=settings.task, spec=_SPEC,
            retain_bytes=1 << 30, rows_max=_ROWS_MAX, compensates=True,
        )  # fmt: skip
        self.filters = filtering_for(
            settings, self.learner, None, sources_max=1_000, vouched=vouched
        )
        self.learner.evidence.heard = self.filters
        self.learner.bounds.on = settings.filters != "none"
        self.learner.open_partition(partition)
        self._offset = 0
        self.exchange()

    def step(self, n: int, source: str, features: Features, label: Label, weight: float) -> NewRow:
        answer = self.learner.predict(features)
        features, sent = self.learner.bounds.taught(features)
        example = Example(features, label, weight, score_of(self._task, answer), raw=sent)
        example = with_target(self.learner.bounds, example)
        key, payload = n.to_bytes(16, "little"), codec.encode(example)
        verdict = Verdict.ACCEPTED if example.raw is None else Verdict.CLIPPED
        row = NewRow(key, str(n), source, verdict, payload, float(n))
        self._offset += 1
        if self.filters is not None:
            (row,) = self.filters.judge([row])
            self.filters.committed([row], [Outcome(True, self._row(n, row))])
        assert self.learner.learn(self._row(n, row)) is None
        return row

    def _row(self, n: int, row: NewRow) -> Row:
        given = (row.key, row.event_id, row.source, row.verdict, row.factor, row.payload, row.at)
        return Row(n, self._partition, self._offset, *given)

    def exchange(self) -> None:
        request = wire.SyncRequest(
            wire.FORMAT, str(self._partition), self._partition, self.learner.pushes(_ROWS_MAX),
            self.learner.since, True, [],
        )  # fmt: skip
        acks = [self._server.push(push, _open) for push in request.pushes]
        reply = wire.encode(self._server.reply(request, acks, [], 0.0))
        self.learner.on_reply(wire.decode_reply(reply))


class Dealt:
    """Replicas that take turns.

    Parameters:
        build: Makes the model; None: the learner of the settings alone.

    Attributes:
        counts: Rows by verdict.
    """

    def __init__(
        self,
        settings: ModelSettings,
        replicas: int = 2,
        *,
        vouched: bool = True,
        build: Callable[[], Any] | None = None,
    ) -> None:
        make = build or partial(_model, settings)
        server = Server(settings.name, _SPEC, "", "compensated", 1)
        self.replicas = [
            _Replica(settings, i + 1, server, make, vouched=vouched) for i in range(replicas)
        ]
        self.counts = Counter[str]()
        self.n = 0

    @property
    def model(self) -> Any:
        """Return the model that the first replica answers from."""
        return self.replicas[0].learner.serving

    def step(
        self,
        source: str,
        features: Features,
        label: Label,
        weight: float = 1.0,
        to: int | None = None,
    ) -> NewRow:
        """One event; the row that was written.  ``to``: the replica that gets it, not the next."""
        self.n += 1
        at = self.n % len(self.replicas) if to is None else to
        row = self.replicas[at].step(self.n, source, features, label, weight)
        self.counts[row.verdict] += 1
        # one after the other, as often as each would by its own events: an idle one pulls, too
        place = self.n % (EVERY * len(self.replicas))
        if place % EVERY == EVERY - 1:
            self.replicas[place // EVERY].exchange()
        return row


def _open(partition: int) -> Partition:
    return Partition(partition, "m", str(partition), _SPEC, 2**40, sealed=False)


def _model(settings: ModelSettings) -> Any:
    return load(
        settings.learner, settings.params, task=settings.task, classes=None, key=bytes(32),
        base_dir=Path(),
    ).model  # fmt: skip
