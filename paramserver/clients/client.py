"""The base class of clients of a parameter server; every call has a timeout."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any

import msgspec

from paramserver.core import wire
from paramserver.errors import FormatRefused, ServerUnavailable


class Client(ABC):
    """A client of one lineage's server.  Use from one event loop; ``name`` is for messages."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
        """Push and pull in one request.

        Raises:
            ServerUnavailable: Indefinite: no reply within ``timeout_s``.  Send the same pushes
                again.
            NotReady, FormatRefused, RequestRefused, BlockError, PushRefused, StoreUnavailable: As
                the server raised them.
        """
        answer = await self.call("sync", timeout_s, wire.encode(request))
        try:
            reply = wire.decode_reply(answer)
        except msgspec.DecodeError as error:
            raise ServerUnavailable(self._name, f"an answer that is none: {error}") from error
        if reply.format != wire.FORMAT:
            raise FormatRefused(reply.format, wire.FORMAT)
        return reply

    async def call(self, method: str, timeout_s: float, *args: object) -> Any:
        """Call another method of :class:`paramserver.process.actor.ParameterServer`."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._call(method, args)
        except TimeoutError as error:
            raise ServerUnavailable(self._name, f"none within {timeout_s} s") from error

    @abstractmethod
    async def _call(self, method: str, args: tuple[object, ...]) -> Any:
        """Do as :meth:`call` without a timeout; raises ParamServerError."""
