"""This module answers, in a live replica, a new one that can't reach the parameter server.

The new one sends what it would send to the server, and is answered in the same words: values that
were pulled, and their clock.  Never the local model, which has rows on top that no clock tells of
yet: whoever took them for the server's would count them again when their partition is adopted.
Nothing is pushed here, and nothing is durable by it.

Many values are cut into pieces, and all of them are one answer.  Whoever asks gets each answer of
another replica, as Serve has it, and replicas hold the same keys in orders of their own: where one
has stopped says nothing to the next one.
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
    """Answers of one model in one replica.

    Parameters:
        replica, spec: Name of this process, and hash of its model's spec.
        age_ms: Since the server confirmed the values that are here; None: never.
    """

    def __init__(
        self,
        learner: BaseLearner,
        replica: str,
        spec: str,
        age_ms: Callable[[], float | None],
    ) -> None:
        self._learner, self._replica, self._spec, self._age_ms = learner, replica, spec, age_ms
        self._one = asyncio.Lock()  # a copy of the values at a time, however many ask

    async def sync(self, data: bytes) -> bytes | None:
        """A :class:`wire.SyncReply` to a request; None: there is nothing to tell here.

        A model that is learned in order is not told: its values are written down too rarely.
        """
        request = wire.decode_request(data)
        if not request.values:  # whether somebody is here, who has some
            return await self._answer(request)
        async with self._one:
            return await self._answer(request)

    async def _answer(self, request: wire.SyncRequest) -> bytes | None:
        learner, age_ms = self._learner, self._age_ms()
        values = learner.pulled
        if values is None or not learner.ready or age_ms is None:
            return None
        if request.format != wire.FORMAT:
            return None
        told, pieces = self._told(request, values, learner.version)
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
            **told,
        )
        cut: list[bytes] = []
        for piece in pieces:
            cut.append(piece)
            await asyncio.sleep(0)  # predictions go on beside it, and so do exchanges
        return wire.encode(replace(reply, pieces=cut))

    def _told(
        self, request: wire.SyncRequest, values: Blocks, version: wire.Version
    ) -> tuple[dict[str, Any], Iterable[bytes]]:
        """The fields of a reply that hold values, and pieces of those that are many.

        The pieces are cut from a copy: the values themselves go on.
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
