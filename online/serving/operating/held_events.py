"""Events in the journal that the model has not learned: lists them, decides, and relearns them.

Any replica can answer.  What is written is written once, however often it is requested.
"""

from __future__ import annotations

import asyncio
import contextvars
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from online.audit.log import note
from online.errors import RequestError, invalid
from online.replica.replica import ModelReplica
from online.rows import history
from online.rows.history import (
    DISCARDED,
    FROZEN,
    QUARANTINED,
    RELEASED,
    Choice,
    Decisions,
    Listed,
    Page,
)
from replay import codec
from replay.errors import ReplayError
from replay.journal.base import Journal, Row

ASK_TIMEOUT_S: Final = 2.0
PUSH_S: Final = 5.0
"""Longest wait for the server; an exchange takes about 60 ms."""
_LOOK_S: Final = 0.05
_ROW: Final = re.compile(r"[1-9][0-9]{0,17}:[1-9][0-9]{0,17}")


class HeldEvents:
    """Handles unlearned events of the models in one replica.

    Parameters:
        facts: Returns what does not change of a model, by the model's name.
    """

    def __init__(
        self,
        replicas: Mapping[str, ModelReplica],
        journals: Mapping[str, Journal],
        facts: Callable[[str], dict[str, Any]],
    ) -> None:
        self._replicas, self._journals, self._facts = replicas, journals, facts

    async def events(
        self, model: str, status: str, after: str | None, limit: int, source: str | None = None
    ) -> dict[str, Any]:
        """Return a page of undone, frozen or quarantined events, of all sources or of one."""
        page = await self._page(model, status, after, limit, source)
        shown = [event.listed(status, self._label(model, event.row)) for event in page.events]
        if status == QUARANTINED:
            for out, event in zip(shown, page.events, strict=True):
                out |= _evidence(event.row)
        return {
            "events": shown, "cursor": page.cursor, "left": page.left, "removed": page.removed,
        }  # fmt: skip

    async def relearn(
        self, model: str, status: str, after: str | None, limit: int
    ) -> dict[str, Any]:
        """Learn a page of these events again, each exactly once however often it is requested.

        Events of a banned source are left unchanged, and so are frozen ones, which no filter has
        judged, of a source that is quarantined now: ``banned`` counts both.
        """
        page = await self._page(model, status, after, limit)
        self._check_learning(model, f"no {status} events either")
        if page.events:
            await self.note(model, "relearn", {"status": status, "events": len(page.events)})
        filters = self._replicas[model].filters
        aside: Sequence[str] = ()
        if status == FROZEN and filters is not None:
            aside = filters.reputations.quarantined
        kept = [
            e.standing is None and (e.next_decision is None or e.row.source in aside)
            for e in page.events
        ]
        banned = sum(kept)
        some = [e for e, left in zip(page.events, kept, strict=True) if not left]
        taken = await self._again(model, some)
        return {
            **taken,
            "duplicate": len(page.events) - sum(taken.values()) - banned,
            "banned": banned,
            "cursor": page.cursor,
            "left": page.left,
            "removed": page.removed,
        }

    # -- quarantine --------------------------------------------------------------------------

    async def quarantined(self, model: str, name: str, source: str | None) -> dict[str, Any]:
        """Return a quarantined event with evidence, by its row (``3:120``) or its id and source."""
        decisions = await self._decided(model)
        row = await self._find(model, name, source)
        event = await self._read_on(model, history.set_aside, decisions, row) if row else None
        if row is None or event is None:
            hint = "`online quarantine list` names them: give the row, or id and source"
            message = f"no quarantined event {name[:80]!r}"
            raise RequestError(404, "unknown_event", message, "event", hint)
        out: dict[str, Any] = event.listed(QUARANTINED, self._label(model, row))
        example = codec.decode(row.payload)
        return {
            **out, **_evidence(row), "features": example.features, "weight": example.weight,
            "answered": example.score, "version": example.version,
        }  # fmt: skip

    async def decide_rows(self, model: str, choice: Choice, names: Sequence[str]) -> dict[str, Any]:
        """Release or discard quarantined events by their rows; the first decision stands."""
        decisions = await self._decided(model)
        events: list[Listed] = []
        for i, name in enumerate(names):
            row = await self._find(model, name, None)
            event = await self._read_on(model, history.set_aside, decisions, row) if row else None
            if event is None:
                hint = "`online quarantine list` names the rows"
                raise invalid(f"rows[{i}]", f"no quarantined row {name[:80]!r}", hint)
            events.append(event)
        return await self._decide(model, choice, events)

    async def decide_source(
        self, model: str, choice: Choice, source: str, after: str | None, limit: int
    ) -> dict[str, Any]:
        """Release or discard a page of a source's quarantined events."""
        page = await self._page(model, QUARANTINED, after, limit, source)
        done = await self._decide(model, choice, page.events)
        return {**done, "cursor": page.cursor, "left": page.left}

    async def _decide(self, model: str, choice: Choice, events: Sequence[Listed]) -> dict[str, Any]:
        """Decide about events, and learn those that are released now or were earlier."""
        if choice == RELEASED:
            self._check_learning(model, "no released events either")
        store, journal = self._replicas[model].store, self._journals[model]
        open_ = [event.event.key for event in events if event.choice is None]
        try:
            asked_by = contextvars.copy_context()  # journal operations run on another thread
            for key in open_:
                await store.write(asked_by.run, history.decide, journal, model, key, choice)
            decisions = await self._decided(model)
            look = partial(history.set_aside, journal, model, decisions)
            now = [event for e in events if (event := await store.read(look, e.row)) is not None]
        except (ReplayError, TimeoutError) as error:
            raise _unavailable(error) from None
        stands = Counter(event.choice for event in now)
        if choice == DISCARDED:  # count only those that this call decided
            stands[DISCARDED] = sum(e.choice == DISCARDED and e.event.key in open_ for e in now)
        released = [event for event in now if event.choice == RELEASED]
        taken = await self._again(model, released) if choice == RELEASED else {}
        return {
            "released": stands[RELEASED], "discarded": stands[DISCARDED], **taken,
            "duplicate": len(events) - len(open_),
        }  # fmt: skip

    async def _find(self, model: str, name: str, source: str | None) -> Row | None:
        """Return the row with this name, or the row of the event that has this id."""
        journal = self._journals[model]
        partition, _, offset = name.partition(":")
        if _ROW.fullmatch(name):
            known = await self._on(model, journal.partition, int(partition))
            if known is not None and known.model == model:
                rows = await self._on(model, journal.read, int(partition), int(offset), 1)
                return rows[0] if rows else None
        keys = self._replicas[model].store.keys
        own = keys.event("default" if source is None else source, name)
        for key in (keys.token(name), keys.join(None, name), own):
            row: Row | None = await self._on(model, journal.find, model, key)
            if row is not None:
                return row
        return None

    async def note(self, model: str, act: str, about: dict[str, Any]) -> None:
        """Write an operation into the log of decisions before it is done."""
        store, asked_by = self._replicas[model].store, contextvars.copy_context()
        try:
            await store.write(asked_by.run, note, self._journals[model], act, model, about)
        except ReplayError as error:
            raise _unavailable(error) from None

    # -- journal operations -------------------------------------------------------------------

    async def _again(self, model: str, events: Sequence[Listed]) -> dict[str, int]:
        """Write the rows by which events are learned again; return the outcomes of new ones."""
        replica = self._replicas[model]
        rows = [row for event in events if (row := event.again(replica.now_s())) is not None]
        recorded = await replica.writer.record(rows, decided=True) if rows else []
        if (
            rows
        ):  # else a rollback that is asked for now would leave them on top of what it restores
            await pushed(replica)
        new = Counter(result.status for result in recorded if not result.repeat)
        new["learned"] += new.pop("clipped", 0)
        if new["frozen"]:  # frozen meanwhile: the rows say so and can be requested again
            message = f"the model was frozen meanwhile; {new['learned']} events were learned"
            raise RequestError(409, "still_frozen", message, None, "Unfreeze it: online unfreeze")
        return {status: new[status] for status in ("learned", "queued", "failed")}

    def _check_learning(self, model: str, what: str) -> None:
        replica = self._replicas[model]
        if replica.control.decisions.frozen or replica.learner.frozen:
            message = f"the model is frozen: it learns nothing, so {what}"
            hint = "Unfreeze it first: online unfreeze"
            raise RequestError(409, "still_frozen", message, None, hint, 1)

    async def _page(
        self, model: str, status: str, after: str | None, limit: int, source: str | None = None
    ) -> Page:
        decisions = await self._decided(model)
        where = decisions, status, after, limit, source
        page: Page = await self._read_on(model, history.walk, *where)
        return page

    async def _decided(self, model: str) -> Decisions:
        """Return the decisions of the control rows, including the newest."""
        control = self._replicas[model].control
        try:
            return await asyncio.wait_for(control.current(), ASK_TIMEOUT_S)
        except (ReplayError, TimeoutError) as error:
            raise _unavailable(error) from None

    async def _read_on(self, model: str, step: Callable[..., Any], *args: Any) -> Any:
        return await self._on(model, step, self._journals[model], model, *args)

    async def _on(self, model: str, step: Callable[..., Any], *args: Any) -> Any:
        """Run a reading operation of the journal."""
        try:
            return await self._replicas[model].store.read(step, *args)
        except ReplayError as error:
            raise _unavailable(error) from None

    def _label(self, model: str, row: Row) -> Any:
        """The row's label, as the model's settings name it."""
        example = codec.decode(row.payload)
        if example.moved is not None or codec.is_erased(row.payload):
            return None
        label = example.sent_label
        names = self._facts(model).get("labels")
        return names[bool(label)] if names else label


def _unavailable(error: Exception) -> RequestError:
    hint = "Repeat the request; nothing is learned twice"
    message = f"the journal does not answer: {error}"
    return RequestError(503, "journal_unavailable", message, None, hint, 1)


def _evidence(row: Row) -> dict[str, Any]:
    """Return why a row was quarantined, as far as the row says so."""
    judged = codec.decode(row.payload).judged
    if judged is None:
        return {}
    return {"reason": judged.reason, "score": judged.score, "evidence": judged.evidence}


async def pushed(replica: ModelReplica) -> None:
    """Wait until the server has all rows that this replica has learned by now.

    It waits at most :data:`PUSH_S` seconds.
    """
    learner, partition = replica.learner, replica.writer.partition
    if (track := learner.tracks.get(partition)) is None or track.held:
        return
    last, looks = track.next - 1, int(PUSH_S / _LOOK_S)
    while looks and partition in learner.tracks and learner.clock.get(partition, 0) < last:
        looks -= 1
        await asyncio.sleep(_LOOK_S)
