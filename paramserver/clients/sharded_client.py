"""A client that presents the parameter servers (shards) of a model as one.

A request goes to all shards at once; pushes are split by shard, with the same row bounds.  The
replies are joined into one: its version is the sum of the shards' versions, its clock the minimum
of theirs, and each shard's clock is included.  If a shard does not answer, or has not applied a
decision that another one has, there is no reply, as without contact to a server.  Only shard 0's
decisions are still reported, because a ban or a freeze needs no values.

Values that are too large for one message come in parts, shard by shard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from paramserver.clients.client import Client
from paramserver.core import wire
from paramserver.core.shards import Cut, joined
from paramserver.core.wire import Place, Push, SyncReply, SyncRequest, Version
from paramserver.errors import RequestRefused, ServerUnavailable, ShardAway

_VERSIONS_MAX: Final = 1024  # joint versions whose parts by shard are remembered
_EPOCHS_MAX: Final = 64
_CAME_MAX: Final = 64
_BRIEF_S: Final = 1.0
_PATIENT_EVERY: Final = 5  # every 5th request gets the full timeout: the shard may only be slow
_OF_ONE: Final = frozenset({"backfill", "promote", "relearn", "upgrade", "withdraw"})
"""Methods that are supported with a single server only."""


class ShardedReply(SyncReply, frozen=True, array_like=True):
    """The joint reply of several shards.

    Attributes:
        clocks: The clock of each shard's values.
        first: Version of shard 0.
    """

    clocks: tuple[dict[int, int], ...] = ()
    first: Version = (0, 0)


class _Came(NamedTuple):
    """Progress of a pull in parts: each shard's version, and the shard and start of the next."""

    since: tuple[Version, ...]
    shard: int
    after: Place | None


class ShardedClient(Client):
    """A client of all shards of a model.  Use from one event loop.

    Methods other than ``sync`` and ``status`` are called on shard 0 only.
    """

    def __init__(self, name: str, clients: Sequence[Client]) -> None:
        super().__init__(name)
        self._clients, self._cut = clients, Cut(len(clients))
        self._newest, self._missed = [0] * len(clients), [0] * len(clients)
        self._epochs: dict[int, tuple[int, ...]] = {}
        self._versions: dict[Version, tuple[Version, ...]] = {}
        self._came: dict[tuple[Version, Place | None], _Came] = {}

    async def _call(self, method: str, args: tuple[object, ...]) -> Any:
        if method in _OF_ONE:
            raise RequestRefused(f"{method}: a model with {len(self._clients)} shards has it not")
        return await self._clients[0]._call(method, args)

    async def call(self, method: str, timeout_s: float, *args: object) -> Any:
        """Call shard 0; ``status`` includes the other shards, each with the same timeout."""
        if method != "status":
            return await super().call(method, timeout_s, *args)
        calls = [one.call(method, timeout_s, *args) for one in self._clients]
        answer, *others = await asyncio.gather(*calls, return_exceptions=True)
        if isinstance(answer, BaseException):
            raise answer
        return _with_shards(answer, others)

    async def sync(self, request: SyncRequest, timeout_s: float) -> SyncReply:
        """Push and pull in one request; errors as :meth:`Client.sync`, of any shard."""
        pushes = self._pushes(request.pushes)
        came = None
        since: Sequence[Version | None] = [None] * len(self._clients)
        if request.since is not None:
            came = self._came.get((request.since, request.after))
            if came is not None:
                since = came.since
            elif request.after is None:
                since = self._versions.get(request.since, since)
        requests = [
            self._asked(shard, request, pushes[shard], since[shard], came)
            for shard in range(len(self._clients))
        ]
        answers = await asyncio.gather(
            *(
                one.sync(requests[shard], self._patience_s(shard, timeout_s))
                for shard, one in enumerate(self._clients)
            ),
            return_exceptions=True,
        )
        for shard, answer in enumerate(answers):
            away = isinstance(answer, ServerUnavailable)
            self._missed[shard] = self._missed[shard] + 1 if away else 0
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        for error in sorted(errors, key=lambda error: isinstance(error, ServerUnavailable)):
            if isinstance(error, ServerUnavailable) and isinstance(first := answers[0], SyncReply):
                raise ShardAway(
                    error.name, error.reason, first.control, first.frozen, first.rewrite
                )
            raise error
        replies = [answer for answer in answers if not isinstance(answer, BaseException)]
        return self._reply(request, came, since, replies)

    def _patience_s(self, shard: int, timeout_s: float) -> float:
        """Return the timeout for a shard: short if its last request failed, except for shard 0.

        Decisions of shard 0 are reported only after all timeouts, so a shard that hangs must not
        delay them.  Every ``_PATIENT_EVERY``-th request in a row gets the full timeout.
        """
        briefly = shard and self._missed[shard] % _PATIENT_EVERY
        return min(timeout_s, _BRIEF_S) if briefly else timeout_s

    def _asked(
        self,
        shard: int,
        request: SyncRequest,
        pushes: list[Push],
        since: Version | None,
        came: _Came | None,
    ) -> SyncRequest:
        """Return the request for one shard; in a pull in parts only one is asked for values."""
        after, values = None, True
        if came is not None and came.shard < len(self._clients):
            values, after = shard == came.shard, came.after
            since = since if after is not None else None
        more: dict[str, Any] = {} if shard == 0 else {"report": None, "marks": [], "role": ""}
        return msgspec.structs.replace(
            request, pushes=pushes, since=since, values=values,
            after=after if values else None, **more,
        )  # fmt: skip

    def _pushes(self, pushes: Sequence[Push]) -> list[list[Push]]:
        """Split pushes by shard, translating the joint epoch and base to each shard's own."""
        out: list[list[Push]] = [[] for _ in self._clients]
        for push in pushes:
            epochs = self._epochs.get(push.epoch)
            if epochs is None:  # no longer remembered: refused, so pushed or learned again
                epochs = (0,) * len(self._clients)
            bases = self._bases(push.base, epochs)
            for shard, part in enumerate(self._cut.push(push)):
                part = msgspec.structs.replace(part, epoch=epochs[shard], base=bases[shard])
                out[shard].append(part)
        return out

    def _bases(self, base: Version, epochs: tuple[int, ...]) -> Sequence[Version]:
        """Return each shard's part of a base; of one that is not remembered, one no newer.

        Since a base each shard has counted at most what all of them have.
        """
        if (known := self._versions.get(base)) is not None:
            return known
        oldest = next((one for one in self._versions.items() if one[0][0] == base[0]), None)
        if oldest is None:
            return [(epoch, 0) for epoch in epochs]
        (_, count), parts = oldest
        return [(epoch, max(n - max(count - base[1], 0), 0)) for epoch, n in parts]

    def _reply(
        self,
        request: SyncRequest,
        came: _Came | None,
        since: Sequence[Version | None],
        replies: Sequence[SyncReply],
    ) -> SyncReply:
        for shard, one in enumerate(replies):
            if one.epoch < self._newest[shard]:
                raise ServerUnavailable(self._name, f"shard {shard}: an older server has answered")
            self._newest[shard] = one.epoch
        if len({one.rewrite for one in replies}) > 1:
            raise ServerUnavailable(self._name, "not all shards have taken in the newest decision")
        versions = tuple((one.epoch, one.count) for one in replies)
        version = sum(v[0] for v in versions), sum(v[1] for v in versions)
        _note(self._epochs, version[0], tuple(v[0] for v in versions), _EPOCHS_MAX)
        _note(self._versions, version, versions, _VERSIONS_MAX)
        fields: dict[str, Any]
        if came is not None and came.shard < len(replies):
            fields = self._next_part(request, came, version, replies)
        elif request.since is not None and _all_changes(replies, since):
            fields = {
                "kind": "changes",
                "since": request.since,
                "blocks": joined([r.blocks for r in replies]),
            }
        elif came is None and all(one.kind == "all" for one in replies):
            fields = {"kind": "all", "blocks": joined([r.blocks for r in replies])}
        elif not request.values and all(one.kind == "none" for one in replies):
            fields = {"kind": "none", "blocks": {}}
        else:
            fields = self._first_part(version, versions)
        named = {request.partition, *request.adopting, *request.waits}
        named.update(push.partition for push in request.pushes)
        return _together(named, replies, version, fields)

    def _first_part(self, version: Version, versions: tuple[Version, ...]) -> dict[str, Any]:
        """Return the start of a pull in parts, an empty part."""
        return self._part(_Came(versions, 0, None), version, None)

    def _next_part(
        self, request: SyncRequest, came: _Came, version: Version, replies: Sequence[SyncReply]
    ) -> dict[str, Any]:
        """Return the next part, of one shard; the pull starts over if that shard's has."""
        key, one = request.since, replies[came.shard]
        versions = tuple((r.epoch, r.count) for r in replies)
        begun = came.since[came.shard] if came.after is not None else one.since
        if key is None or key[0] != version[0] or one.start != came.after:
            return self._first_part(version, versions)
        if one.kind == "all" and came.after is None:
            begun, after = (one.epoch, one.count), None
            pieces, blocks, reached = [wire.encode_piece(one.blocks)], {}, None
        elif one.kind == "part" and one.since == begun and begun is not None:
            pieces, blocks, reached, after = one.pieces, one.blocks, one.reached, one.after
            begun = begun if reached is None else reached
        else:
            return self._first_part(version, versions)
        known = list(came.since)
        known[came.shard] = begun
        shard = came.shard + (after is None)
        fields = self._part(_Came(tuple(known), shard, after), key, request.after)
        fields |= {"pieces": pieces, "blocks": blocks}
        return fields | ({} if reached is None else {"reached": key})

    def _part(self, came: _Came, key: Version, start: Place | None) -> dict[str, Any]:
        after = None
        if came.shard < len(self._clients):
            name, place = ("", -1) if came.after is None else came.after
            after = (f"{came.shard} {name}", place)
        _note(self._came, (key, after), came, _CAME_MAX)
        return {"kind": "part", "blocks": {}, "since": key, "start": start, "after": after}


def sharded(name: str, clients: Sequence[Client]) -> Client:
    """Return a client of one server, or of several as if they were one."""
    return clients[0] if len(clients) == 1 else ShardedClient(name, clients)


def _note(known: dict[Any, Any], key: object, value: object, most: int) -> None:
    """Store one more entry, and remove the oldest one if there are too many."""
    if key not in known and len(known) >= most:
        del known[next(iter(known))]
    known[key] = value


def _all_changes(replies: Sequence[SyncReply], since: Sequence[Version | None]) -> bool:
    pairs = zip(replies, since, strict=True)
    return all(r.kind == "changes" and s is not None and r.since == s for r, s in pairs)


def _together(
    named: set[int], replies: Sequence[SyncReply], version: Version, fields: Mapping[str, Any]
) -> ShardedReply:
    """Join the replies: lowest clocks, oldest control row, longest time since confirmation."""
    first = replies[0]
    clocks, durable = tuple(one.clock for one in replies), [one.durable for one in replies]
    decided = min(replies, key=lambda one: one.control)
    return ShardedReply(
        format=first.format,
        spec=first.spec,
        epoch=version[0],
        count=version[1],
        acks=first.acks,
        clock=_lowest(clocks, named),
        closed=[],
        durable=_lowest(durable, named),
        orphans=sorted({p for one in replies for p in one.orphans}),
        confirmed_ms=max(one.confirmed_ms for one in replies),
        rewrite=first.rewrite,
        control=decided.control,
        frozen=decided.frozen,
        learned=first.learned,
        keeper=first.keeper,
        marks=first.marks,
        clocks=clocks,
        first=(first.epoch, first.count),
        **fields,
    )


def _lowest(clocks: Sequence[Mapping[int, int]], named: set[int]) -> dict[int, int]:
    """Return the lowest clock of each partition that all shards report or that was named.

    An offset that a shard does not report counts as 0.
    """
    known = {p for clock in clocks for p in clock}
    return {
        p: min(clock.get(p, 0) for clock in clocks)
        for p in known
        if p in named or all(p in clock for clock in clocks)
    }


def _with_shards(answer: dict[str, Any], others: Sequence[Any]) -> dict[str, Any]:
    """Return shard 0's status with the other shards' statuses, or their errors."""
    fields, refused, incidents = [_of_shard(answer)], dict(answer["refused"]), [answer["incident"]]
    vanished = answer["vanished"]
    for shard, other in enumerate(others, 1):
        if isinstance(other, BaseException):
            fields.append({"state": "away", "reason": str(other)})
            continue
        fields.append({**_of_shard(other), "lacks_rows": _lacks(other, answer)})
        refused |= {f"+{shard}/{name}": why for name, why in other["refused"].items()}
        vanished += other["vanished"]
        if other["incident"]:
            incidents.append(f"shard {shard}: {other['incident']}")
    return {
        **answer, "shards": fields, "refused": refused, "vanished": vanished,
        "incident": "; ".join(filter(None, incidents)) or None,
    }  # fmt: skip


def _of_shard(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a shard's status that are shown."""
    return {name: status[name] for name in ("state", "reason", "epoch", "count", "snapshot", "pid")}


def _lacks(status: Mapping[str, Any], first: Mapping[str, Any]) -> int:
    """Return how many rows this shard's clock is behind shard 0's."""
    has, closed = status["clock"], status.get("closed", ())
    return sum(max(n - has.get(p, 0), 0) for p, n in first["clock"].items() if p not in closed)
