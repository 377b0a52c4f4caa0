"""Durable, deduplicated learning as a library: :class:`Learner`, without HTTP.

It runs the parts of a service (:mod:`online.service.one_process`) behind method calls: with the
same journal, the same guarantees and the same state folder.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import msgspec

from online.errors import RequestError
from online.messages.model_status import Status
from online.messages.structs import (
    Event,
    FeedbackRequest,
    Prediction,
    PredictRequest,
    Receipt,
    Receipts,
)
from online.messages.values import plain_value
from online.service.one_process import OneProcess, Progress, Ready, settings_for, starting
from online.service.parts.assembly import Assembly
from online.settings.purposes import TaskName
from replay.example import Label


class _Calls:
    """Front for direct calls: it only keeps the loop alive until the end."""

    def __init__(self) -> None:
        self.url = ""
        self.waits_s: float | None = None
        self._end: Callable[[], object] | None = None

    def open(self) -> None:
        """Acquire nothing: there is no port."""

    def loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        """Return None: asyncio's default loop is used."""
        return None

    async def serve(self, assembly: Assembly, ready: Ready) -> None:
        """Wait until :meth:`end` is called."""
        over, loop = asyncio.Event(), asyncio.get_running_loop()
        self._end = partial(loop.call_soon_threadsafe, over.set)
        ready()
        await over.wait()

    def end(self) -> None:
        """End the loop for learning."""
        if self._end is not None:
            with contextlib.suppress(RuntimeError):  # the loop is already closed
                self._end()

    def close(self) -> None:
        """Release nothing, because :meth:`open` acquires nothing."""


class Learner:
    """A model that learns each event durably and exactly once; its state is kept in a folder.

    As a context manager it is closed at the end of the block.  Its methods may be called from any
    thread and block: in a coroutine call them through ``asyncio.to_thread``.  A new learner on a
    folder that this program has open closes the previous one.

    Parameters:
        model: A river estimator, a :class:`~online.models.network.Network`, an
            :class:`~online.models.estimator.Estimator` or an object of your own class, which is
            copied; a function or class that makes one; or a ``learner`` as in a settings file.
        state_dir: State folder.  State that is stored there replaces what the object has learned
            if both have the same structure; else the learner is refused.
        task: ``binary``, ``multiclass``, ``regression`` or ``anomaly``; None: the task that the
            model itself declares.
        name: The model's name for a service that continues the folder.
        settings: Further settings of the service, named as in a settings file: ``{"limits": {…}}``.
        fresh, relearn: Begin without the stored state; learn the whole journal again.
        say: Is called with lines about the start and the end; None: nothing is printed.
        of_model: Further settings of the model, such as ``classes`` or ``filters``.

    Raises:
        ConfigError, LearnerUnusable, StartRefused: With the remedy; nothing is changed then.
    """

    def __init__(
        self,
        model: Any,
        state_dir: str | Path,
        *,
        task: TaskName | None = None,
        name: str = "model",
        settings: Mapping[str, Any] | None = None,
        fresh: bool = False,
        relearn: bool = False,
        say: Progress | None = None,
        **of_model: Any,
    ) -> None:
        self._name = name
        with starting:
            resolved = settings_for(model, task, name, state_dir, settings or {}, of_model)
            if (before := _open.pop(resolved.state_dir, None)) is not None:
                before.close()
            self._rows_max = resolved.limits.rows_max
            self._parts = OneProcess(resolved, _Calls(), say or _silent)
            self._parts.start(fresh=fresh, relearn=relearn)
            _open[resolved.state_dir] = self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        what = f"in {self.state_dir}" if self._parts.alive() else "closed"
        return f"<online learner {self._name} {what}>"

    @property
    def state_dir(self) -> Path:
        """The state folder of the model."""
        return self._parts.settings.state_dir

    def predict_one(self, x: Mapping[str, Any]) -> Label | None:
        """Predicted label; changes no state.  Raises RequestError, ClientError."""
        label: Label | None = self._predict(x).prediction
        return label

    def predict_proba_one(self, x: Mapping[str, Any]) -> dict[str, float]:
        """Probability of each label, by the label's text; empty if the model has none."""
        shown = self._predict(x).probabilities
        return shown if isinstance(shown, dict) else {}

    def score_one(self, x: Mapping[str, Any]) -> float:
        """Anomaly score of a row for a model of ``task: anomaly``; above 0.5 it is an anomaly."""
        score = self._predict(x).score
        if isinstance(score, msgspec.UnsetType):
            raise TypeError(f"{self._name} is no model of task: anomaly")
        return score

    def learn_one(
        self,
        x: Mapping[str, Any],
        y: Label | None = None,
        *,
        event_id: str | None = None,
        source: str = Event().source,
        weight: float = 1.0,
        event_time: float | None = None,
        provisional: bool = False,
    ) -> Receipt:
        """Record and learn a labelled row; on return it is on disk and in the model.

        Parameters:
            y: The label; it may be left out of rows of ``task: anomaly``.
            event_id: Your own id, unique within ``source``: a repeat is recognized by it, even
                after a crash, and answered with ``duplicate``.  None: a repeat is a new event.
            weight, event_time: Importance (1 is an ordinary row), and POSIX seconds.
            provisional: The label may change: its effect is undone when the event is sent again
                with its final label.

        Returns:
            The outcome, with a ``status`` (docs/requests.md): ``learned``, or ``clipped``,
            ``quarantined`` or ``failed`` with its reason.

        Raises:
            RequestError, ClientError: With field and hint; nothing was recorded, unless the error
                says that it may have been.
        """
        event = FeedbackRequest(
            label=plain_value("label", y), features=plain_value("features", x),
            event_id=event_id, source=source, weight=weight, event_time=event_time,
            provisional=provisional,
        )  # fmt: skip

        async def step(parts: Assembly) -> Receipt | Receipts:
            return (await parts.serving(self._name).feedback(event))[1]

        with _hinted():
            receipt = self._parts.call(step)
        assert isinstance(receipt, Receipt)
        return receipt

    def learn_many(
        self,
        rows: Iterable[tuple[Mapping[str, Any], Label | None]],
        *,
        event_ids: Iterable[str] | None = None,
        source: str = Event().source,
    ) -> list[Receipt]:
        """Record and learn many labelled rows, up to ``limits.rows_max`` per commit.

        Returns one receipt per row, in order.  A row that is ``refused`` has the reason in
        ``error``; the other rows are still learned.  Raises ValueError for a row without an
        id, if there are fewer ids than rows; the commits before are learned.
        """
        events = (
            Event(
                label=plain_value(f"rows[{i}].label", y),
                features=plain_value(f"rows[{i}].features", x),
                event_id=event_id,
                source=source,
            )
            for i, (x, y, event_id) in enumerate(_with_ids(rows, event_ids))
        )
        receipts: list[Receipt] = []
        while batch := list(islice(events, self._rows_max)):
            receipts += self._record(batch)
        return receipts

    def report(self) -> Status:
        """Metrics beside those of simple baselines, and what was learned; changes no state."""
        return Status(self._parts.status(self._name))

    def close(self) -> None:
        """Publish a last snapshot and release the state folder.  Does nothing when repeated."""
        self._parts.stop()
        if _open.get(self.state_dir) is self:
            del _open[self.state_dir]

    def _record(self, events: list[Event]) -> list[Receipt]:
        with _hinted():
            return self._parts.call(lambda parts: parts.serving(self._name).record(events))

    def _predict(self, x: Mapping[str, Any]) -> Prediction:
        request = PredictRequest(features=plain_value("features", x))

        async def step(parts: Assembly) -> Any:
            return parts.serving(self._name).predict(request)

        with _hinted():
            answer = self._parts.call(step)
        assert isinstance(answer, Prediction)
        return answer


def _with_ids(
    rows: Iterable[tuple[Mapping[str, Any], Label | None]], ids: Iterable[str] | None
) -> Iterator[tuple[Mapping[str, Any], Label | None, str | None]]:
    """Yield the rows with their ids.  Raises ValueError at a row for which there is none."""
    left = None if ids is None else iter(ids)
    for i, (x, y) in enumerate(rows):
        event_id = None if left is None else next(left, None)
        if left is not None and event_id is None:
            raise ValueError(f"rows[{i}] has no id: event_ids has {i}, give one for each row")
        yield x, y, event_id


@contextlib.contextmanager
def _hinted() -> Iterator[None]:
    """Add field and hint to the error as a note; over HTTP they are in the body."""
    try:
        yield
    except RequestError as error:
        error.add_note(f"{error.field or 'the call'}: {error.hint}")
        raise


def _silent(_: str) -> None:
    """Discard a line about the start or the end."""


_open: dict[Path, Learner] = {}
