"""Operations on a model and on a batch of events, each written once as steps.

:mod:`online.client.drives` turns the steps into blocking or awaitable methods.
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

_OPERATOR_S: Final = 100.0  # the service waits for its replicas, each within its own bound


class ModelVerbs(ChoiceVerbs):
    """One model of a service: predictions, feedback, and an operator's actions.

    Parameters:
        calls: Makes the requests.
        name: The model's name at the service.
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
        """Predict one row: a mapping, or a row of a data frame.  Raises ClientError.

        Parameters:
            after: ``seen`` of a receipt: the answer's ``includes`` says whether the model has
                learned that row.
            until_included: Repeat the request until a replica has; else NotIncluded is raised.
            details: The answer names features that are ``missing`` in the row or ``unknown``.
            explain: The answer's ``explanation`` has the contribution of each feature.
            nearest: Number of nearest learned rows to return; needs an admin token.
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
        """Predict many rows with one version of the model.

        Parameters:
            instances: A list of rows, a data frame, or an array whose columns are ``names``.
            ids: Return an id for the label of each row.
            details: Name ``missing`` and ``unknown`` features of each row.

        Returns:
            The answers; ``frame()`` converts them to a data frame.
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
        """Send the label of a prediction (``id``) or of features; returns the receipt.

        Parameters:
            label: May be omitted for rows of ``task: anomaly``, and sent later with the same id.
            event_id: Your own id of the event.  Without it and without ``id`` one is generated, so
                that retries count once.
            event_time: POSIX seconds.
            provisional: The label may change: the next one with the same id is final unless it is
                provisional too, and undoes what this one taught.

        ``conflict``, ``expired`` and ``failed`` are receipts, too: read ``status``.  Raises
        ClientError.
        """
        event = Event(label, id, features, event_id, source, weight, event_time, provisional)
        return (yield from self._calls.feedback(self.name, _plain(event, "")))

    @verb
    def feedback_many(self, events: Sequence[Event]) -> Steps[list[Receipt]]:
        """Send many events in one request, at most ``limits.rows_max``; returns their receipts.

        The receipts are in the events' order; a ``refused`` one has the reason in ``error``.
        Raises ClientError.
        """
        plain = [_plain(event, f"events[{i}].") for i, event in enumerate(events)]
        return (yield from self._calls.many(self.name, plain))

    @verb
    def status(self) -> Steps[Status]:
        """Return the model's status (docs/monitoring.md).  Raises ClientError."""
        return Status((yield from self._get("")))

    # -- for operators -----------------------------------------------------------------------

    @verb
    def snapshots(self) -> Steps[list[Data]]:
        """Return the stored snapshots, newest first."""
        snapshots: list[Data] = (yield from self._get("/snapshots"))["snapshots"]
        return snapshots

    @verb
    def snapshot(self, *, pin: bool = False) -> Steps[Data]:
        """Publish a snapshot now; ``pin`` exempts it from retention."""
        return (yield from self._post(f"/snapshots?pin={_json(pin)}"))

    @verb
    def pin(self, snapshot: str, *, on: bool = True) -> Steps[Data]:
        """Exempt a snapshot from retention, or (``on=False``) end that."""
        return (yield from self._post(f"/snapshots/{quote(snapshot, '')}/pin?on={_json(on)}"))

    @verb
    def rollback(self, to: str) -> Steps[Data]:
        """Return to a snapshot; rows learned since are undone, and can be learned again."""
        return (yield from self._post("/rollback", {"to": to}))

    @verb
    def freeze(self) -> Steps[Data]:
        """Stop learning; feedback is stored as ``frozen``."""
        return (yield from self._post("/freeze"))

    @verb
    def unfreeze(self) -> Steps[Data]:
        """Resume learning from here on."""
        return (yield from self._post("/unfreeze"))

    @verb
    def promote(self, *, back: bool = False, force: bool = False) -> Steps[Data]:
        """Promote the challenger, or let an apprentice answer, ready or (``force``) not.

        ``back``: revert to the model that served before; an apprentice stops answering.
        """
        body = {"back": back, "force": True} if force else {"back": back}
        return (yield from self._post("/promote", body))

    @verb
    def upgrade(self, *, on: bool = True) -> Steps[Data]:
        """Learn a model with today's defaults as challenger; ``on=False``: end that."""
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
        """Serve a state that was built aside without a source.

        `online forget` bans the source, builds the state from the journal, and calls this.
        """
        given = {"source": source, "snapshot": snapshot, "undone": dict(undone)}
        more = {"base": base, "since": since}
        body = {**given, **{name: value for name, value in more.items() if value is not None}}
        return (yield from self._post("/forget", body))

    @verb
    def events(
        self, status: Literal["undone", "frozen"], *, after: str | None = None, limit: int = 100
    ) -> Steps[Data]:
        """Return a page of events that are not in the model; ``cursor`` leads to the next page."""
        return (yield from self._get("/events", status=status, after=after, limit=limit))

    @verb
    def relearn(
        self, status: Literal["undone", "frozen"], *, after: str | None = None, limit: int = 200
    ) -> Steps[Data]:
        """Learn a page of such events, each once; repeat with ``cursor`` until it is None."""
        return (yield from self._post("/relearn", given(status=status, after=after, limit=limit)))

    @verb
    def quarantine(
        self, *, source: str | None = None, after: str | None = None, limit: int = 100
    ) -> Steps[Data]:
        """Return a page of quarantined events; ``cursor`` leads to the next page."""
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
        """Learn quarantined events after all: some by ``row``, or a page of a source's events."""
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
        """Decide never to learn quarantined events: some by ``row``, or a page of a source's."""
        body = given(rows=rows, source=source, after=after, limit=limit)
        return (yield from self._post("/quarantine/discard", body))

    @verb
    def ban(self, source: str, *, banned: bool = True) -> Steps[Data]:
        """Quarantine whatever a source sends from now on, or (``banned=False``) end that."""
        return (yield from self._post("/sources", {"source": source, "banned": banned}))

    def _get(self, path: str, **query: Any) -> Steps[Data]:
        query_text = urlencode(given(**query))
        url = self._path(path) + (f"?{query_text}" if query_text else "")
        return (yield from self._calls.ask(Request("GET", url, None), Data))

    def _post(self, path: str, body: Data | None = None) -> Steps[Data]:
        """Send an operator's request, which waits for the replicas and is not repeated."""
        data = None if body is None else msgspec.json.encode(body)
        request = Request("POST", self._path(path), data, _OPERATOR_S)
        return (yield from self._calls.ask(request, Data, twice=False))


def _plain(event: Event, field: str) -> Event:
    """A copy of the event with plain values."""
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
    """Unsent events in their order, each with an id that makes retries safe.

    An event is removed when its receipt has an outcome.  Events that could not be sent, or were
    refused for lack of room, stay.
    """

    def __init__(self, calls: Calls, rows: int, kept_max: int) -> None:
        self._calls, self._rows, self.kept_max = calls, rows, kept_max
        self._events: list[Event] = []
        self._receipts: list[Receipt] = []  # of events that were sent, not returned yet

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event) -> bool:
        """Add an event; returns whether there are enough to be sent."""
        self._events.append(self._calls.named(event))
        return len(self._events) >= self._rows

    def next(self) -> list[Event]:
        """The events of the next request."""
        return self._events[: self._rows]

    def sent(self, events: Sequence[Event], receipts: Sequence[Receipt]) -> bool:
        """Remove events that have an outcome; returns whether there were any."""
        self._receipts += receipts
        done = [not waits(receipt) for receipt in receipts]
        unsent = [event for event, over in zip(events, done, strict=True) if not over]
        self._events[: len(events)] = unsent
        return any(done)

    def answered(self) -> list[Receipt]:
        """Return the receipts since the last call."""
        receipts, self._receipts = self._receipts, []
        return receipts


class BatchVerbs:
    """A batch of events that are sent ``rows`` at a time, and completely at the end of a ``with``.

    If :meth:`add` or :meth:`flush` raises, the events stay in the batch: flush again, with the same
    ids; the receipts of those that were sent come with the next.  ``add`` refuses events beyond
    ``kept_max``.
    """

    def __init__(self, model: ModelVerbs, pending: Pending) -> None:
        self._model, self.pending = model, pending

    def __repr__(self) -> str:
        return f"<batch of {self._model.name}: {len(self.pending)} events wait>"

    @verb
    def add(self, event: Event) -> Steps[list[Receipt]]:
        """Add an event; returns receipts of events that were sent, usually none."""
        event = _plain(event, "")
        if len(self.pending) >= self.pending.kept_max:
            yield from self._send()
        if self.pending.put(event):
            yield from self._send()
        return self.pending.answered()

    @verb
    def flush(self) -> Steps[list[Receipt]]:
        """Send all events; returns their receipts in order.  Raises ClientError."""
        yield from self._send()
        return self.pending.answered()

    def _send(self) -> Generator[Request | float, Reply | None, None]:
        while events := self.pending.next():
            receipts = yield from ModelVerbs.feedback_many(self._model, events)
            if not self.pending.sent(events, receipts):
                return
