"""A replica's way to a model's several parameter servers, which it deals with as if they were one.

A request goes to all of them at once: what is pushed is cut by shard, with the same bounds.  What
they answer becomes one reply, of a version whose numbers are the sums of theirs; a clock is the
lowest of theirs, and each one's is told beside it.  If one does not answer, or has not taken in a
decision that another one has, there is no reply, and whoever has asked goes on as without contact,
but for what shard 0 says is decided: a ban or a freeze needs no values.

Values that are many come in parts, shard after shard.
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

_VERSIONS_MAX: Final = 1024  # of which is known what each shard's was
_EPOCHS_MAX: Final = 64
_CAME_MAX: Final = 64
_BRIEF_S: Final = 1.0
_PATIENT_EVERY: Final = 5  # a busy machine may need longer for each answer
_OF_ONE: Final = frozenset({"backfill", "promote", "relearn", "upgrade", "withdraw"})
"""Methods by which one server does something with all values."""


class ShardedReply(SyncReply, frozen=True, array_like=True):
    """A reply of several shards.

    Attributes:
        clocks: Of each: that of its values.
        first: Version of shard 0.
    """

    clocks: tuple[dict[int, int], ...] = ()
    first: Version = (0, 0)


class _Came(NamedTuple):
    """How far values in parts have come: of each shard which version they are; whose come next."""

    since: tuple[Version, ...]
    shard: int
    after: Place | None


class ShardedClient(Client):
    """Asks all shards of one model.  Use from one event loop; questions are shard 0's to answer."""

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
        """Ask shard 0; a status also tells of the others, each of which has so long to answer."""
        if method != "status":
            return await super().call(method, timeout_s, *args)
        asked = [one.call(method, timeout_s, *args) for one in self._clients]
        answer, *others = await asyncio.gather(*asked, return_exceptions=True)
        if isinstance(answer, BaseException):
            raise answer
        return _with_shards(answer, others)

    async def sync(self, request: SyncRequest, timeout_s: float) -> SyncReply:
        """Push and pull in one step; errors as of :meth:`Client.sync`, of any shard."""
        pushes = self._pushes(request.pushes)
        came = None
        since: Sequence[Version | None] = [None] * len(self._clients)
        if request.since is not None:
            came = self._came.get((request.since, request.after))
            if came is not None:
                since = came.since
            elif request.after is None:
                since = self._versions.get(request.since, since)
        asked = [
            self._asked(shard, request, pushes[shard], since[shard], came)
            for shard in range(len(self._clients))
        ]
        answers = await asyncio.gather(
            *(
                one.sync(asked[shard], self._patience_s(shard, timeout_s))
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
        """A shard that stands still is waited for briefly, and now and then as long as others.

        What shard 0 says is decided waits for its answer, and so does that it is acted on.
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
        """Ask one shard: while values come in parts, one of them for its part."""
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
        """By shard; each of the epoch and base that it has under those of all together."""
        out: list[list[Push]] = [[] for _ in self._clients]
        for push in pushes:
            epochs = self._epochs.get(push.epoch)
            if epochs is None:  # heard of too long ago: it is learned again, or sent anew
                epochs = (0,) * len(self._clients)
            bases = self._bases(push.base, epochs)
            for shard, part in enumerate(self._cut.push(push)):
                part = msgspec.structs.replace(part, epoch=epochs[shard], base=bases[shard])
                out[shard].append(part)
        return out

    def _bases(self, base: Version, epochs: tuple[int, ...]) -> Sequence[Version]:
        known = self._versions.get(base)
        if known is None:  # the oldest that is known of that epoch
            known = next((v for k, v in self._versions.items() if k[0] == base[0]), None)
        return [(epoch, 0) for epoch in epochs] if known is None else known

    # -- what they answer ----------------------------------------------------------------------

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
        """The beginning of values in parts, which has none of them yet."""
        return self._part(_Came(versions, 0, None), version, None)

    def _next_part(
        self,
        request: SyncRequest,
        came: _Came,
        version: Version,
        replies: Sequence[SyncReply],
    ) -> dict[str, Any]:
        """The part of one shard; all begin anew if one of them has."""
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
    """The way to one server, or to several as if they were one."""
    return clients[0] if len(clients) == 1 else ShardedClient(name, clients)


def _note(known: dict[Any, Any], key: object, value: object, most: int) -> None:
    """Know one more, and forget the one that was heard of first if they are too many."""
    if key not in known and len(known) >= most:
        del known[next(iter(known))]
    known[key] = value


def _all_changes(replies: Sequence[SyncReply], since: Sequence[Version | None]) -> bool:
    pairs = zip(replies, since, strict=True)
    return all(r.kind == "changes" and s is not None and r.since == s for r, s in pairs)


def _together(
    named: set[int], replies: Sequence[SyncReply], version: Version, fields: Mapping[str, Any]
) -> ShardedReply:
    """One reply of all; the lowest clock, the oldest control row and the longest silence count."""
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
    """The lowest of each partition that all tell of, or are asked for: what is not told is 0."""
    known = {p for clock in clocks for p in clock}
    return {
        p: min(clock.get(p, 0) for clock in clocks)
        for p in known
        if p in named or all(p in clock for clock in clocks)
    }


def _with_shards(answer: dict[str, Any], others: Sequence[Any]) -> dict[str, Any]:
    """Shard 0's status with what the others tell, or the errors that came instead of it."""
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
    """Return what an operator is told of one shard."""
    return {name: status[name] for name in ("state", "reason", "epoch", "count", "snapshot", "pid")}


def _lacks(status: Mapping[str, Any], first: Mapping[str, Any]) -> int:
    """How many rows that shard 0 has this one has not been told of yet."""
    has, closed = status["clock"], status.get("closed", ())
    return sum(max(n - has.get(p, 0), 0) for p, n in first["clock"].items() if p not in closed)
