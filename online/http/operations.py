"""Operators' routes: snapshots, rollback, freeze, quarantine, and events that were left out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, model_validator

from online.rows.history import DISCARDED, QUARANTINED, RELEASED, Choice
from online.serving.status import Cluster

EVENTS_MAX = 1000
"""Largest number of events on one page, and in one request to learn them again."""

Status = Literal["undone", "frozen"]
After = Annotated[str | None, Query(description="cursor of the page before; none: the first page")]
Of = Annotated[str | None, Query(max_length=256, description="of this source only")]
Limit = Annotated[int, Query(ge=1, le=EVENTS_MAX, description="events of one page at most")]

_EVENT = {
    "event_id": "order-17", "source": "default", "label": "yes", "at": 1764036000.0,
    "row": "3:120", "status": "undone",
}  # fmt: skip


class RollbackRequest(BaseModel):
    """Which snapshot the model goes back to."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"to": "3-120"}]})
    to: str = Field(min_length=1, max_length=128, description="a snapshot's name")


class PromoteRequest(BaseModel):
    """Whether what served before is to serve again, and whether figures matter."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"back": False}]})
    back: bool = Field(
        False,
        strict=True,
        description="refuse unless the challenger has served before; an apprentice answers no more",
    )
    force: bool = Field(
        False,
        strict=True,
        description="an apprentice answers, though it is not sure to keep enough",
    )


class RelearnRequest(BaseModel):
    """Which events are learned again, and from where on."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"status": "undone", "limit": 200}]}
    )
    status: Status
    after: str | None = Field(None, description="`cursor` of the answer before; none: begin")
    limit: int = Field(200, ge=1, le=EVENTS_MAX, description="events of one request at most")


class DecideRequest(BaseModel):
    """Quarantined events: some, by their rows, or a page of those of a source."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"rows": ["3:120"]}, {"source": "bot"}]}
    )
    rows: list[str] | None = Field(None, min_length=1, max_length=EVENTS_MAX)
    source: str | None = Field(None, max_length=256, description="all of this source, in pages")
    after: str | None = Field(None, description="`cursor` of the answer before; none: begin")
    limit: int = Field(200, ge=1, le=EVENTS_MAX, description="events of one request at most")

    @model_validator(mode="after")
    def _one(self) -> DecideRequest:
        if (self.rows is None) == (self.source is None):
            raise ValueError("one of rows and source is needed")
        return self


class UpgradeRequest(BaseModel):
    """Whether a model of today's defaults is to learn beside the one that serves."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"on": True}]})
    on: bool = Field(True, strict=True, description="false: it is ended")


class ForgetRequest(BaseModel):
    """A state that `online forget` has built aside, and which rows it is without."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "source": "bot",
                    "snapshot": "aside-4-130-1f",
                    "base": "3-120",
                    "undone": {"3": [120, 2]},
                }
            ]
        },
    )
    source: str = Field(max_length=256)
    since: float | None = Field(None, description="POSIX seconds; none: all of its rows")
    snapshot: str = Field(min_length=1, max_length=128, description="the state's name")
    base: str | None = Field(None, max_length=128, description="what it was built from")
    undone: dict[int, list[int]] = Field(
        description="rows it is without, by partition: gap, length, gap, length …"
    )
    digests: tuple[tuple[int, int], tuple[int, int]] | None = Field(
        None, description="count and sum of the events in it with these rows, and without"
    )


class WithdrawRequest(BaseModel):
    """Snapshots that are to be removed for good."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"names": ["3-120"]}]}
    )
    names: list[str] = Field(max_length=EVENTS_MAX)


class TaughtFile(BaseModel):
    """A file of a backfill."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=1024)
    size: int = Field(ge=0, description="bytes")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    rows: int = Field(ge=0, description="bad ones included")


class BackfillRequest(BaseModel):
    """A state that `online backfill` has built aside, and what taught it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "snapshot": "aside-4-130-1f",
                    "files": [
                        {"name": "2025.csv", "size": 4096, "sha256": "0f" * 32, "rows": 120}
                    ],
                    "learned": 118, "quarantined": 2, "known": 0, "label": "price_up",
                }
            ]
        },
    )  # fmt: skip
    snapshot: str = Field(min_length=1, max_length=128, description="the state's name")
    files: list[TaughtFile] = Field(min_length=1, max_length=10_000)
    learned: int = Field(ge=0)
    quarantined: int = Field(ge=0)
    known: int = Field(ge=0, description="left out: the journal has their events")
    label: str = Field(max_length=1024, description="column of the labels")


class BanRequest(BaseModel):
    """Whether what a source sends is quarantined from now on."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"source": "bot", "banned": True}]}
    )
    source: str = Field(max_length=256)
    banned: bool = Field(strict=True)


def _answers(description: str, example: dict[str, Any], **errors: str) -> dict[int | str, Any]:
    """Document a route's answer with an example; ``errors`` have names like ``e409``."""
    content = {"application/json": {"example": example}}
    shown: dict[int | str, Any] = {200: {"description": description, "content": content}}
    for status, text in {"e404": "No such model or snapshot", **errors}.items():
        shown[int(status[1:])] = {"description": text}
    return shown


_UNAVAILABLE = "The server or the journal does not answer; ask again, it is done once"


def operations(cluster: Cluster) -> APIRouter:
    """Make the routes under ``/v1/models/{model}``, for models that are served."""
    routes = APIRouter(prefix="/v1/models/{model}", tags=["operations"])

    @routes.get("/snapshots", summary="Snapshots kept")
    async def snapshots(model: str) -> dict[str, Any]:
        return {"snapshots": await cluster.snapshots(model)}

    @routes.post("/snapshots", summary="Publish one now")
    async def snapshot(model: str, pin: bool = False) -> dict[str, Any]:
        return await cluster.snapshot(model, pin=pin)

    @routes.post("/snapshots/withdraw", summary="Remove some for good, but the newest")
    async def withdraw(model: str, body: WithdrawRequest) -> dict[str, Any]:
        return await cluster.withdraw(model, body.names)

    @routes.post("/snapshots/{name}/pin", summary="Keep it, or not")
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
        summary="A model of today's defaults learns in shadow beside one that keeps older ones",
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
        summary="Back to a snapshot: what was learned since is undone, and kept",
        responses=_answers(
            "Rolled back, durably. `complete`: every replica answers from it",
            back,
            e422="The snapshot can't be gone back to; the message names those that can",
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
        summary="The challenger serves, or the apprentice answers, with what it has learned",
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
        summary="On with a state built without a source: see `online forget`",
        responses=_answers(
            "Swapped, durably. `complete`: every replica answers from it",
            {**back, "snapshot": "aside-4-130-1f"},
            e422="The state can't take the place of what is served; the message says why",
            e503=_UNAVAILABLE,
        ),
    )
    async def forget(model: str, body: ForgetRequest) -> dict[str, Any]:
        asked = body.source, body.since, body.base, body.undone, body.digests
        return await cluster.forget(model, body.snapshot, *asked)

    @routes.post(
        "/backfill",
        summary="On with a state that tables have taught aside: see `online backfill`",
        responses=_answers(
            "Swapped, durably; `snapshot` is pinned. `complete`: every replica answers from it",
            {**back, "snapshot": "4-131-from-4-120", "undone": 0},
            e422="The state can't take the place of what is served; the message says why",
            e503=_UNAVAILABLE,
        ),
    )
    async def backfill(model: str, body: BackfillRequest) -> dict[str, Any]:
        return await cluster.backfill(model, body.snapshot, body.model_dump(exclude={"snapshot"}))


def _add_freezes(routes: APIRouter, cluster: Cluster) -> None:
    acted = {"control": 6, "frozen": 6, "version": [4, 130], "complete": True, "missing": []}

    @routes.post(
        "/freeze",
        summary="Learn nothing more; feedback is kept as `frozen`",
        responses=_answers(
            "Frozen. `complete`: every replica has seen it, the version stands",
            acted,
            e503=_UNAVAILABLE,
        ),
    )
    async def freeze(model: str) -> dict[str, Any]:
        return await cluster.freeze(model)

    @routes.post(
        "/unfreeze",
        summary="Learn again from here on",
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
        summary="Events that are not in the model: undone by a rollback, or frozen",
        responses=_answers("A page; `cursor` leads to the next one", page, e503=_UNAVAILABLE),
    )
    async def events(
        model: str, status: Status, after: After = None, limit: Limit = 100
    ) -> dict[str, Any]:
        return await cluster.events(model, status, after, limit)

    @routes.post(
        "/relearn",
        summary="Learn them again, each once, as new rows",
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
        summary="Events that were set aside: quarantined, released, discarded",
        responses=_answers("A page; `cursor` leads to the next one", page, e503=_UNAVAILABLE),
    )
    async def quarantine(
        model: str,
        source: Of = None,
        after: After = None,
        limit: Limit = 100,
    ) -> dict[str, Any]:
        return await cluster.events(model, QUARANTINED, after, limit, source)

    @routes.get(
        "/quarantine/events/{event}",
        summary="One of them, by its row, or by its id and source",
        responses=_answers("The event", shown, e404="No such event", e503=_UNAVAILABLE),
    )
    async def quarantined(model: str, event: str, source: Of = None) -> dict[str, Any]:
        return await cluster.quarantined(model, event, source)

    async def decide(model: str, choice: Choice, body: DecideRequest) -> dict[str, Any]:
        if body.rows is not None:
            return await cluster.decide_rows(model, choice, body.rows)
        assert body.source is not None
        return await cluster.decide_source(model, choice, body.source, body.after, body.limit)

    decided = _answers("Decided; the first decision about an event stands", done, e503=_UNAVAILABLE)

    ban = {"source": "bot", "banned": True, "control": 8, "version": [4, 130]}

    @routes.post(
        "/sources",
        summary="Quarantine whatever a source sends from now on, or no longer",
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
        summary="Learn quarantined events after all, each once",
        responses={**decided, 409: {"description": "The model is frozen"}},
    )
    async def release(model: str, body: DecideRequest) -> dict[str, Any]:
        return await decide(model, RELEASED, body)

    @routes.post("/quarantine/discard", summary="Never learn quarantined events", responses=decided)
    async def discard(model: str, body: DecideRequest) -> dict[str, Any]:
        return await decide(model, DISCARDED, body)
