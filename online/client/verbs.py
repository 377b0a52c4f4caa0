"""This module says what can be done with a model, and with a batch of events, each written once.

The methods are steps: :mod:`online.client.drives` makes of them methods that wait, or are awaited.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final, Literal
from urllib.parse import quote, urlencode

import msgspec

from online.client.calls import Calls, Label, Reply, Request, Steps, row, waits
from online.client.choices import ChoiceVerbs, given
from online.client.drives import verb
from online.messages.model_status import Status
from online.messages.structs import Event, Prediction, Predictions, Receipt
from online.messages.values import plain_rows, plain_value

Data = dict[str, Any]

_OPERATOR_S: Final = 100.0  # the service waits for its replicas, each within a bound of its own


class ModelVerbs(ChoiceVerbs):
    """One model of a service, by its name: what is asked of it, and what operators do with it.

    Parameters:
        calls: Makes the requests.
        name: By which the service knows it.
    """

    def __repr__(self) -> str:
        return f"<model {self.name}>"

    # -- predictions and labels --------------------------------------------------------------

    @verb
    def predict(
        self,
        features: Any,
        *,
        id: str | None = None,
        max_age_ms: float | None = None,
        after: str | None = None,
        until_included: bool = False,
        details: bool = False,
        explain: bool = False,
        nearest: int = 0,
    ) -> Steps[Prediction]:
        """The answer to one row: a mapping, or a row of a data frame.

        ``after`` is ``seen`` of a receipt: the answer's ``includes`` says whether the model has
        learned that row.  With ``until_included`` the question is repeated until one has, else
        NotIncluded is raised.  With ``details`` the answer names what is ``missing`` in the row,
        and what is ``unknown``; with ``explain`` its ``explanation`` says what each feature has
        added to it, and so many ``nearest`` learned rows if a token for admin asks.  Raises
        ClientError.
        """
        x = plain_value("features", features)
        body = row(x, id, max_age_ms, after, details or None, explain or None, nearest or None)
        if until_included and after is not None:
            return (yield from self._calls.included(self.name, body))
        return (yield from self._calls.predict(self.name, body, Prediction))

    @verb
    def predict_many(
        self,
        instances: Any,
        *,
        names: Sequence[str] | None = None,
        ids: bool = False,
        max_age_ms: float | None = None,
        details: bool = False,
    ) -> Steps[Predictions]:
        """Answers to many rows by one model; with ``ids`` each has an id for its label.

        With ``details`` each names what is ``missing`` in its row, and what is ``unknown``.

        ``instances`` is a list of rows, a data frame, or an array whose columns are ``names``.
        ``frame()`` of what comes back is a data frame again.
        """
        body: Data = {"instances": plain_rows("instances", instances, names), "ids": ids}
        if max_age_ms is not None:
            body["max_age_ms"] = max_age_ms
        if details:
            body["details"] = True
        return (yield from self._calls.predict(self.name, body, Predictions))

    @verb
    def feedback(
        self,
        label: Label | msgspec.UnsetType = msgspec.UNSET,
        *,
        id: str | None = None,
        features: Any = None,
        event_id: str | None = None,
        source: str = Event().source,
        weight: float = 1.0,
        event_time: float | None = None,
        provisional: bool = False,
    ) -> Steps[Receipt]:
        """Send the label of a prediction (``id``) or of features; what became of it.

        Rows of ``task: anomaly`` may come without a label; it may be sent later, with the same id.
        Without an id of either kind one is made up, so that a repeat counts once.  ``event_time``
        is in POSIX seconds.  A ``provisional`` label may change: sent again under the same id,
        without the word, it is final, and what the first one taught is taken back.  A
        ``conflict``, ``expired`` or ``failed`` is a receipt, too: read ``status``.  Raises
        ClientError.
        """
        event = Event(label, id, features, event_id, source, weight, event_time, provisional)
        return (yield from self._calls.feedback(self.name, _plain(event, "")))

    @verb
    def feedback_many(self, events: Sequence[Event]) -> Steps[list[Receipt]]:
        """Send many events in one body, at most ``limits.rows_max``; a receipt each, in order.

        A ``refused`` receipt has the reason in ``error``.  Raises ClientError.
        """
        plain = [_plain(event, f"events[{i}].") for i, event in enumerate(events)]
        return (yield from self._calls.many(self.name, plain))

    @verb
    def status(self) -> Steps[Status]:
        """Return what the service says of the model (docs/monitoring.md).  Raises ClientError."""
        return Status((yield from self._get("")))

    # -- for operators -----------------------------------------------------------------------

    @verb
    def snapshots(self) -> Steps[list[Data]]:
        """Return the snapshots that are stored, newest first."""
        found: list[Data] = (yield from self._get("/snapshots"))["snapshots"]
        return found

    @verb
    def snapshot(self, *, pin: bool = False) -> Steps[Data]:
        """Publish a snapshot now; with ``pin`` it stays until it is unpinned."""
        return (yield from self._post(f"/snapshots?pin={_json(pin)}"))

    @verb
    def pin(self, snapshot: str, *, on: bool = True) -> Steps[Data]:
        """Have a snapshot stay, or (``on=False``) go in its time."""
        return (yield from self._post(f"/snapshots/{quote(snapshot, '')}/pin?on={_json(on)}"))

    @verb
    def rollback(self, to: str) -> Steps[Data]:
        """Go back to a snapshot; what was learned since is undone, and can be learned again."""
        return (yield from self._post("/rollback", {"to": to}))

    @verb
    def freeze(self) -> Steps[Data]:
        """Have the model learn nothing more; feedback is stored as ``frozen``."""
        return (yield from self._post("/freeze"))

    @verb
    def unfreeze(self) -> Steps[Data]:
        """Have the model learn again from here on."""
        return (yield from self._post("/unfreeze"))

    @verb
    def promote(self, *, back: bool = False, force: bool = False) -> Steps[Data]:
        """Have the challenger serve, or an apprentice answer, ready or (``force``) not.

        ``back``: only if it is what served before; an apprentice answers no more.
        """
        body = {"back": back, "force": True} if force else {"back": back}
        return (yield from self._post("/promote", body))

    @verb
    def upgrade(self, *, on: bool = True) -> Steps[Data]:
        """Have the model with today's defaults learn in shadow beside it; False: no longer."""
        return (yield from self._post("/upgrade", {"on": on}))

    @verb
    def forget(
        self,
        source: str,
        *,
        snapshot: str,
        base: str | None = None,
        since: float | None = None,
        undone: Mapping[int, Sequence[int]],
    ) -> Steps[Data]:
        """Go on with a state without a source that was built aside.

        `online forget` bans the source, builds that state from the journal, and does this.
        """
        given = {"source": source, "snapshot": snapshot, "undone": dict(undone)}
        more = {"base": base, "since": since}
        body = {**given, **{name: value for name, value in more.items() if value is not None}}
        return (yield from self._post("/forget", body))

    @verb
    def events(
        self,
        status: Literal["undone", "frozen"],
        *,
        after: str | None = None,
        limit: int = 100,
    ) -> Steps[Data]:
        """Return a page of events that are not in the model; ``cursor`` leads to the next one."""
        return (yield from self._get("/events", status=status, after=after, limit=limit))

    @verb
    def relearn(
        self,
        status: Literal["undone", "frozen"],
        *,
        after: str | None = None,
        limit: int = 200,
    ) -> Steps[Data]:
        """Learn such events, each once; go on with ``cursor`` until it is None."""
        return (yield from self._post("/relearn", given(status=status, after=after, limit=limit)))

    @verb
    def quarantine(
        self, *, source: str | None = None, after: str | None = None, limit: int = 100
    ) -> Steps[Data]:
        """Return a page of events that were set aside; ``cursor`` leads to the next one."""
        return (yield from self._get("/quarantine", source=source, after=after, limit=limit))

    @verb
    def release(
        self,
        rows: Sequence[str] | None = None,
        *,
        source: str | None = None,
        after: str | None = None,
        limit: int = 200,
    ) -> Steps[Data]:
        """Learn quarantined events after all: some, by their ``row``, or a page of a source's."""
        body = given(rows=rows, source=source, after=after, limit=limit)
        return (yield from self._post("/quarantine/release", body))

    @verb
    def discard(
        self,
        rows: Sequence[str] | None = None,
        *,
        source: str | None = None,
        after: str | None = None,
        limit: int = 200,
    ) -> Steps[Data]:
        """Never learn quarantined events: some, by their ``row``, or a page of a source's."""
        body = given(rows=rows, source=source, after=after, limit=limit)
        return (yield from self._post("/quarantine/discard", body))

    @verb
    def ban(self, source: str, *, banned: bool = True) -> Steps[Data]:
        """Quarantine whatever a source sends from now on, or (``banned=False``) no longer."""
        return (yield from self._post("/sources", {"source": source, "banned": banned}))

    def _get(self, path: str, **query: Any) -> Steps[Data]:
        asked = urlencode(given(**query))
        found: Data = yield from self._calls.get(self._path(path) + (f"?{asked}" if asked else ""))
        return found

    def _post(self, path: str, body: Data | None = None) -> Steps[Data]:
        """Do what an operator asks; it waits for the replicas.  A promotion twice is none."""
        data = None if body is None else msgspec.json.encode(body)
        request = Request("POST", self._path(path), data, _OPERATOR_S)
        reply: Reply = yield from self._calls.send(request, twice=False)
        found: Data = msgspec.json.decode(reply.body)
        return found


def _plain(event: Event, field: str) -> Event:
    """The event with plain values; the client's own stays as it is."""
    features = event.features
    return msgspec.structs.replace(
        event,
        label=msgspec.UNSET
        if event.label is msgspec.UNSET
        else plain_value(f"{field}label", event.label),
        features=None if features is None else plain_value(f"{field}features", features),
        weight=plain_value(f"{field}weight", event.weight),
        event_time=plain_value(f"{field}event_time", event.event_time),
    )


def _json(flag: bool) -> str:
    return "true" if flag else "false"


class Pending:
    """Events that wait to be sent, in their order, each with an id that makes a repeat safe.

    An event leaves when it has a receipt that says what became of it.  What could not be sent, or
    was refused for want of room, stays.
    """

    def __init__(self, calls: Calls, rows: int, kept_max: int) -> None:
        self._calls, self._rows, self.kept_max = calls, rows, kept_max
        self._events: list[Event] = []

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event) -> bool:
        """Whether there are enough to be sent."""
        self._events.append(self._calls.named(event))
        return len(self._events) >= self._rows

    def next(self) -> list[Event]:
        """Those to be sent in the next body."""
        return self._events[: self._rows]

    def sent(self, events: Sequence[Event], receipts: Sequence[Receipt]) -> bool:
        """Take out what has an outcome; whether there was any."""
        done = [not waits(receipt) for receipt in receipts]
        kept = [event for event, over in zip(events, done, strict=True) if not over]
        self._events[: len(events)] = kept
        return any(done)


class BatchVerbs:
    """Events that go out ``rows`` at a time, and all of them at the end of a ``with``.

    An exception of :meth:`add` or :meth:`flush` leaves the events in it: flush again, with the
    same ids.  ``add`` does not take an event above ``kept_max``.
    """

    def __init__(self, model: ModelVerbs, pending: Pending) -> None:
        self._model, self.pending = model, pending

    def __repr__(self) -> str:
        return f"<batch of {self._model.name}: {len(self.pending)} events wait>"

    @verb
    def add(self, event: Event) -> Steps[list[Receipt]]:
        """Take an event; receipts of what was sent, which is mostly nothing."""
        event = _plain(event, "")
        if len(self.pending) >= self.pending.kept_max:
            yield from self._flush()
        return (yield from self._flush()) if self.pending.put(event) else []

    @verb
    def flush(self) -> Steps[list[Receipt]]:
        """Send all of them; a receipt each, in order.  Raises ClientError."""
        return (yield from self._flush())

    def _flush(self) -> Generator[Request | float, Reply | None, list[Receipt]]:
        found: list[Receipt] = []
        while events := self.pending.next():
            receipts = yield from ModelVerbs.feedback_many(self._model, events)
            found += receipts
            if not self.pending.sent(events, receipts):
                break
        return found
