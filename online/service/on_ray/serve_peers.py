"""Requests parameters from other replicas through Ray Serve."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from msgspec.structs import replace
from ray import serve

from online.service.on_ray.origin import APP
from paramserver.core import wire
from paramserver.errors import ServerUnavailable

_ANSWER_S: Final = 120.0
"""Timeout for all parameters of a peer, which may extract millions of them between requests."""


class Peers:
    """The other replicas of one model, used in place of its parameter server."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._handle: Any = None

    async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
        """Return the parameters of one replica.

        Parameters:
            timeout_s: Until a replica has answered that it has some.

        Raises:
            ServerUnavailable: No replica has any.
        """
        if self._handle is None:
            self._handle = serve.get_deployment_handle("Replica", APP)
        ask, probe = self._handle.tell_peer.remote, replace(request, values=False)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await ask(self._model, wire.encode(probe))
            if answer is not None and request.values:
                async with asyncio.timeout(_ANSWER_S):
                    answer = await ask(self._model, wire.encode(request))
        except Exception as error:  # whatever Ray raises: there may be no other replica
            raise ServerUnavailable("a peer", f"none: {error!r}") from error
        if answer is None:
            raise ServerUnavailable("a peer", "it has no values that it could give")
        return wire.decode_reply(answer)
