"""Lets a live replica serve its pulled values to a new one that cannot reach the server.

The new replica sends its usual sync request, and the reply has the same format: the values last
pulled, and their clock.  The local model is never sent.  It contains rows beyond that clock, and
the new replica would count them twice when their partition is adopted.  Nothing is pushed to a
peer, and a peer's reply makes nothing durable.

Large values are cut into pieces, all of which are in one reply.  Ray Serve may route each request
to a different replica, and replicas hold the same keys in different orders, so a position in one
replica's values means nothing to the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from msgspec.structs import replace

from online.learning.base import BaseLearner
from paramserver.core import wire
from paramserver.core.blocks import Blocks, copy_block, select, to_wire
from paramserver.core.parts import PART_KEYS, Parts


class Peer:
    """Answers sync requests of new replicas, for one model in one replica.

    Parameters:
        replica, spec: Name of this process, and hash of its model's spec.
        age_ms: Returns milliseconds since the server confirmed the local values; None: never.
    """

    def __init__(
        self, learner: BaseLearner, replica: str, spec: str, age_ms: Callable[[], float | None]
    ) -> None:
        self._learner, self._replica, self._spec, self._age_ms = learner, replica, spec, age_ms
        self._one = asyncio.Lock()  # at most one copy of the values at a time

    async def sync(self, data: bytes) -> bytes | None:
        """Answer an encoded request with a :class:`wire.SyncReply`; None: no values to give.

        None for a model learned in order, too (its values are serialized too rarely), and if not
        all rows of a table are held here.
        """
        request = wire.decode_request(data)
        if not request.values:  # only asks whether a peer with values is here
            return await self._answer(request)
        async with self._one:
            return await self._answer(request)

    async def _answer(self, request: wire.SyncRequest) -> bytes | None:
        learner, age_ms = self._learner, self._age_ms()
        values = learner.pulled
        if values is None or not learner.ready or age_ms is None or learner.cache is not None:
            return None
        if request.format != wire.FORMAT:
            return None
        fields, pieces = self._value_fields(request, values, learner.version)
        reply = wire.SyncReply(
            format=wire.FORMAT,
            spec=self._spec,
            epoch=learner.version[0],
            count=learner.version[1],
            acks=[],
            clock=dict(learner.clock),
            closed=[],
            durable={},
            orphans=[],
            confirmed_ms=age_ms,
            rewrite=learner.rewrite,
            control=learner.control,
            frozen=learner.frozen,
            peer=self._replica,
            **fields,
        )
        cut: list[bytes] = []
        for piece in pieces:
            cut.append(piece)
            await asyncio.sleep(0)  # lets predictions and exchanges run in between
        return wire.encode(replace(reply, pieces=cut))

    def _value_fields(
        self, request: wire.SyncRequest, values: Blocks, version: wire.Version
    ) -> tuple[dict[str, Any], Iterable[bytes]]:
        """Return the reply's fields that hold values, and the pieces of large ones.

        The pieces are cut from a copy, because the values themselves go on changing.
        """
        if not request.values:
            return {"kind": "none", "blocks": {}}, ()
        since, known = request.since, None
        if since is not None and since <= version and request.after is None:
            known = self._learner.changes_since(since)
        if known is not None:
            return {"kind": "changes", "blocks": to_wire(select(values, known)), "since": since}, ()
        parts = Parts(PART_KEYS)
        if parts.fit(values):
            return {"kind": "all", "blocks": to_wire(values)}, ()
        held = {name: copy_block(block) for name, block in values.items()}
        return {"kind": "part", "blocks": {}, "since": version}, parts.pieces(held)
