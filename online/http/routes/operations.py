"""Operators' routes: snapshots, rollback, freeze, quarantine, and events that were left out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, model_validator

from online.rows.history import DISCARDED, QUARANTINED, RELEASED, Choice
from online.serving.operating.status import Cluster

EVENTS_MAX = 1000
"""Largest number of events on one page, and in one request to learn them again."""

Status = Literal["undone", "frozen"]
After = Annotated[
    str | None, Query(description="`cursor` of the previous page; omit it for the first")
]
Of = Annotated[str | None, Query(max_length=256, description="only events of this source")]
Limit = Annotated[int, Query(ge=1, le=EVENTS_MAX, description="largest number of events on a page")]

_EVENT = {
    "event_id": "order-17", "source": "default", "label": "yes", "at": 1764036000.0,
    "row": "3:120", "status": "undone",
}  # fmt: skip


def _body(*examples: dict[str, Any]) -> ConfigDict:
    """Refuse fields that a request does not have, and document it by examples."""
    return ConfigDict(extra="forbid", json_schema_extra={"examples": list(examples)})


class RollbackRequest(BaseModel):
    """The snapshot to which the model is rolled back."""

    model_config = _body({"to": "3-120"})
    to: str = Field(min_length=1, max_length=128, description="a snapshot's name")


class PromoteRequest(BaseModel):
    """The direction of a promotion, and whether to force it."""

    model_config = _body({"back": False})
    back: bool = Field(
        False,
        strict=True,
        description="refuse unless the challenger has served before; an apprentice stops answering",
    )
    force: bool = Field(
        False,
        strict=True,
        description="let an apprentice answer although it is not sure to keep enough reward",
    )


class RelearnRequest(BaseModel):
    """The status of the events to learn again, and the page to start with."""

    model_config = _body({"status": "undone", "limit": 200})
    status: Status
    after: str | None = Field(None, description="`cursor` of the previous answer; omit it to begin")
    limit: int = Field(
        200, ge=1, le=EVENTS_MAX, description="largest number of events in one request"
    )


class DecideRequest(BaseModel):
    """Quarantined events to decide about: given by rows, or a page of one source."""

    model_config = _body({"rows": ["3:120"]}, {"source": "bot"})
    rows: list[str] | None = Field(None, min_length=1, max_length=EVENTS_MAX)
    source: str | None = Field(
        None, max_length=256, description="all events of this source, page by page"
    )
    after: str | None = Field(None, description="`cursor` of the previous answer; omit it to begin")
    limit: int = Field(
        200, ge=1, le=EVENTS_MAX, description="largest number of events in one request"
    )

    @model_validator(mode="after")
    def _one(self) -> DecideRequest:
        if (self.rows is None) == (self.source is None):
            raise ValueError("one of rows and source is needed")
        return self


class UpgradeRequest(BaseModel):
    """Whether a challenger with today's default settings is to learn beside the model."""

    model_config = _body({"on": True})
    on: bool = Field(True, strict=True, description="false: stop the challenger")


class ForgetRequest(BaseModel):
    """A state that `online forget` has rebuilt, and the rows that it excludes."""

    model_config = _body(
        {"source": "bot", "snapshot": "aside-4-130-1f", "base": "3-120", "undone": {"3": [120, 2]}}
    )
    source: str = Field(max_length=256)
    since: float | None = Field(
        None, description="exclude the source's rows from then on, POSIX seconds; none: all of them"
    )
    snapshot: str = Field(min_length=1, max_length=128, description="the state's name")
    base: str | None = Field(
        None, max_length=128, description="the snapshot that it was built from"
    )
    undone: dict[int, list[int]] = Field(
        description="excluded rows by partition: gap, length, gap, length …"
    )
    digests: tuple[tuple[int, int], tuple[int, int]] | None = Field(
        None,
        description="count and hash sum of its events with the excluded rows, and without them",
    )


class WithdrawRequest(BaseModel):
    """Snapshots to be removed for good."""

    model_config = _body({"names": ["3-120"]})
    names: list[str] = Field(max_length=EVENTS_MAX)


class TaughtFile(BaseModel):
    """A file that a backfill has learned."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=1024)
    size: int = Field(ge=0, description="bytes")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    rows: int = Field(ge=0, description="including invalid ones")


class BackfillRequest(BaseModel):
    """A state that `online backfill` has built, and the files that taught it."""

    model_config = _body(
        {
            "snapshot": "aside-4-130-1f",
            "files": [{"name": "2025.csv", "size": 4096, "sha256": "0f" * 32, "rows": 120}],
            "learned": 118,
            "quarantined": 2,
            "known": 0,
            "label": "price_up",
        }
    )
    snapshot: str = Field(min_length=1, max_length=128, description="the state's name")
    files: list[TaughtFile] = Field(min_length=1, max_length=10_000)
    learned: int = Field(ge=0)
    quarantined: int = Field(ge=0)
    known: int = Field(ge=0, description="left out because the journal has their events")
    label: str = Field(max_length=1024, description="column of the labels")


class BanRequest(BaseModel):
    """A source, and whether it is banned from now on."""

    model_config = _body({"source": "bot", "banned": True})
    source: str = Field(max_length=256)
    banned: bool = Field(strict=True)


def _answers(description: str, example: dict[str, Any], **errors: str) -> dict[int | str, Any]:
    """Document a route's answer with an example; ``errors`` have names like ``e409``."""
    content = {"application/json": {"example": example}}
    shown: dict[int | str, Any] = {200: {"description": description, "content": content}}
    for status, text in {"e404": "No such model or snapshot", **errors}.items():
        shown[int(status[1:])] = {"description": text}
    return shown


_UNAVAILABLE = "The server or the journal does not answer; repeat the request, it takes effect once"


def operations(cluster: Cluster) -> APIRouter:
    """Make the routes under ``/v1/models/{model}``, for models that are served."""
    routes = APIRouter(prefix="/v1/models/{model}", tags=["operations"])

    @routes.get("/snapshots", summary="List the kept snapshots")
    async def snapshots(model: str) -> dict[str, Any]:
        return {"snapshots": await cluster.snapshots(model)}

    @routes.post("/snapshots", summary="Publish a snapshot now")
    async def snapshot(model: str, pin: bool = False) -> dict[str, Any]:
        return await cluster.snapshot(model, pin=pin)

    @routes.post("/snapshots/withdraw", summary="Remove snapshots for good, but not the newest")
    async def withdraw(model: str, body: WithdrawRequest) -> dict[str, Any]:
        return await cluster.withdraw(model, body.names)

    @routes.post("/snapshots/{name}/pin", summary="Pin or unpin a snapshot")
    async def pin(model: str, name: str, on: bool = True) -> dict[str, Any]:
        return await cluster.pin(model, name, on=on)

    _add_rewrites(routes, cluster)
    _add_upgrade(routes, cluster)
    _add_freezes(routes, cluster)
    _add_events(routes, cluster)
    _add_quarantine(routes, cluster)
    return routes


def _add_upgrade(routes: APIRouter, cluster: Cluster) -> None:
    @routes.post(
        "/upgrade",
        summary="Start a challenger with today's defaults beside a model with older ones",
        responses=_answers(
            "Decided, durably. The service starts it as the challenger; the status says how both "
            "do, and nothing is promoted",
            {"control": 9, "on": True, "params": {"scale": "limited"}},
            e409="It has today's defaults, or a challenger already, or the service is one process",
            e503=_UNAVAILABLE,
        ),
    )
    async def upgrade(model: str, body: UpgradeRequest) -> dict[str, Any]:
        return await cluster.upgrade(model, on=body.on)


def _add_rewrites(routes: APIRouter, cluster: Cluster) -> None:
    back = {
        "snapshot": "3-120", "control": 5, "undone": 240, "version": [4, 121], "complete": True,
        "missing": [],
    }  # fmt: skip

    @routes.post(
        "/rollback",
        summary="Roll back to a snapshot: rows learned since are marked undone, and kept",
        responses=_answers(
            "Rolled back, durably. `complete`: every replica answers from it",
            back,
            e422="The model can't be rolled back to this snapshot; the message names possible ones",
            e503=_UNAVAILABLE,
        ),
    )
    async def rollback(model: str, body: RollbackRequest) -> dict[str, Any]:
        return await cluster.rollback(model, body.to)

    promoted = {
        "control": 8, "from": "9f2c…", "to": "41aa…", "verdict": "better", "rows": 5200,
        "difference": 0.031, "interval": [0.004, 0.058],
    }  # fmt: skip

    @routes.post(
        "/promote",
        summary="Promote the challenger to serve, or the apprentice to answer",
        responses=_answers(
            "Decided, durably. The replicas are replaced one by one; it is done when the status "
            "says `spec` is `to` and `challenger.spec` is `from`. Of an apprentice: `answers` "
            "says who does, `complete` whether every replica acts on it",
            promoted,
            e409="There is no challenger, it is rows behind, or it has not served before; or the "
            "apprentice is not sure to keep enough of what the caller earns",
            e503=_UNAVAILABLE,
        ),
    )
    async def promote(model: str, body: PromoteRequest) -> dict[str, Any]:
        return await cluster.promote(model, back=body.back, force=body.force)

    @routes.post(
        "/forget",
        summary="Switch to a state rebuilt without a source: see `online forget`",
        responses=_answers(
            "Swapped, durably. `complete`: every replica answers from it",
            {**back, "snapshot": "aside-4-130-1f"},
            e422="The state can't replace the served one; the message says why",
            e503=_UNAVAILABLE,
        ),
    )
    async def forget(model: str, body: ForgetRequest) -> dict[str, Any]:
        asked = body.source, body.since, body.base, body.undone, body.digests
        return await cluster.forget(model, body.snapshot, *asked)

    @routes.post(
        "/backfill",
        summary="Switch to a state taught from tables: see `online backfill`",
        responses=_answers(
            "Swapped, durably; `snapshot` is pinned. `complete`: every replica answers from it",
            {**back, "snapshot": "4-131-from-4-120", "undone": 0},
            e422="The state can't replace the served one; the message says why",
            e503=_UNAVAILABLE,
        ),
    )
    async def backfill(model: str, body: BackfillRequest) -> dict[str, Any]:
        return await cluster.backfill(model, body.snapshot, body.model_dump(exclude={"snapshot"}))


def _add_freezes(routes: APIRouter, cluster: Cluster) -> None:
    acted = {"control": 6, "frozen": 6, "version": [4, 130], "complete": True, "missing": []}

    @routes.post(
        "/freeze",
        summary="Stop learning; feedback is kept as `frozen`",
        responses=_answers(
            "Frozen. `complete`: every replica acts on it, and the version no longer changes",
            acted,
            e503=_UNAVAILABLE,
        ),
    )
    async def freeze(model: str) -> dict[str, Any]:
        return await cluster.freeze(model)

    @routes.post(
        "/unfreeze",
        summary="Resume learning",
        responses=_answers(
            "It learns. `complete`: every replica does",
            {**acted, "control": 7, "frozen": 0},
            e503=_UNAVAILABLE,
        ),
    )
    async def unfreeze(model: str) -> dict[str, Any]:
        return await cluster.unfreeze(model)


def _add_events(routes: APIRouter, cluster: Cluster) -> None:
    page = {"events": [_EVENT], "cursor": "5:3:120", "left": 239, "removed": 0}
    done = {
        "learned": 198, "queued": 0, "failed": 0, "duplicate": 2, "banned": 0,
        "cursor": "5:3:200", "left": 40, "removed": 0,
    }  # fmt: skip

    @routes.get(
        "/events",
        summary="List events that are not in the model: undone by a rollback, or frozen",
        responses=_answers("A page; `cursor` leads to the next one", page, e503=_UNAVAILABLE),
    )
    async def events(
        model: str, status: Status, after: After = None, limit: Limit = 100
    ) -> dict[str, Any]:
        return await cluster.events(model, status, after, limit)

    @routes.post(
        "/relearn",
        summary="Learn these events again, each once, as new rows",
        responses=_answers(
            "Learned; ask again with `cursor` until it is null",
            done,
            e409="The model is frozen",
            e503=_UNAVAILABLE,
        ),
    )
    async def relearn(model: str, body: RelearnRequest) -> dict[str, Any]:
        return await cluster.relearn(model, body.status, body.after, body.limit)


def _add_quarantine(routes: APIRouter, cluster: Cluster) -> None:
    kept = {**_EVENT, "status": "quarantined"}
    page = {"events": [kept], "cursor": "0:3:120", "left": 239, "removed": 0}
    one = {**kept, "features": {"a": 1.5}, "weight": 1.0, "answered": {"true": 0.2}}
    shown = {**one, "version": [4, 121, 0]}
    done = {
        "released": 1, "discarded": 0, "learned": 1, "queued": 0, "failed": 0, "duplicate": 0,
    }  # fmt: skip

    @routes.get(
        "/quarantine",
        summary="List quarantined events, also released and discarded ones",
        responses=_answers("A page; `cursor` leads to the next one", page, e503=_UNAVAILABLE),
    )
    async def quarantine(
        model: str, source: Of = None, after: After = None, limit: Limit = 100
    ) -> dict[str, Any]:
        return await cluster.events(model, QUARANTINED, after, limit, source)

    @routes.get(
        "/quarantine/events/{event}",
        summary="Show a quarantined event, by its row, or by its id and source",
        responses=_answers("The event", shown, e404="No such event", e503=_UNAVAILABLE),
    )
    async def quarantined(model: str, event: str, source: Of = None) -> dict[str, Any]:
        return await cluster.quarantined(model, event, source)

    async def decide(model: str, choice: Choice, body: DecideRequest) -> dict[str, Any]:
        if body.rows is not None:
            return await cluster.decide_rows(model, choice, body.rows)
        assert body.source is not None
        return await cluster.decide_source(model, choice, body.source, body.after, body.limit)

    decided = _answers("Decided; the first decision on an event is final", done, e503=_UNAVAILABLE)

    ban = {"source": "bot", "banned": True, "control": 8, "version": [4, 130]}

    @routes.post(
        "/sources",
        summary="Ban a source, whose feedback is then quarantined, or lift the ban",
        responses=_answers(
            "Decided. `complete`: every replica acts on it",
            {**ban, "complete": True, "missing": []},
            e422="So many are banned already",
            e503=_UNAVAILABLE,
        ),
    )
    async def sources(model: str, body: BanRequest) -> dict[str, Any]:
        return await cluster.ban(model, body.source, banned=body.banned)

    @routes.post(
        "/quarantine/release",
        summary="Release quarantined events: learn them, each once",
        responses={**decided, 409: {"description": "The model is frozen"}},
    )
    async def release(model: str, body: DecideRequest) -> dict[str, Any]:
        return await decide(model, RELEASED, body)

    @routes.post(
        "/quarantine/discard",
        summary="Discard quarantined events: never learn them",
        responses=decided,
    )
    async def discard(model: str, body: DecideRequest) -> dict[str, Any]:
        return await decide(model, DISCARDED, body)
