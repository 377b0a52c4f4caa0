"""The Ray Serve deployment: each replica builds everything from the settings in its own process.

The process that deploys replicas imports this module as well, so the parts of a replica are
imported only inside its methods.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ray import serve

from online.telemetry.logs import log_to_stderr

if TYPE_CHECKING:
    from online.service.on_ray.origin import Origin

log = logging.getLogger(__name__)


@serve.ingress()
class Replica:
    """One replica of the service: serves every model on one HTTP port."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, data: dict[str, Any], origin: Origin
    ) -> None:
        from online.service.on_ray.replica_parts import assemble
        from online.service.on_ray.scaling import Busy
        from online.service.parts.garbage import collect_seldom
        from online.settings.config import Settings

        log_to_stderr(logging.INFO)
        given = Settings.model_validate(data)
        os.umask(given.umask)  # a process of a joined cluster has inherited another one
        self._assembly = await assemble(data, given, origin)
        await self._assembly.start()
        self._busy = Busy(time.process_time, time.monotonic)
        collect_seldom()

    def __serve_build_asgi_app__(self) -> Callable[..., Awaitable[None]]:
        from online.service.on_ray.replica_parts import application

        app = application(self._assembly)

        async def with_lifespan(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                await app(scope, receive, send)
                return
            while True:
                message = await receive()
                if message["type"] == "lifespan.shutdown":
                    await self._assembly.stop()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return

        return with_lifespan

    async def tell_peer(self, model: str, request: bytes) -> bytes | None:
        """Parameters for a starting replica that can't reach the parameter server."""
        return await self._assembly.replicas[model].answer_peer(request)

    async def renew(self, tokens: dict[str, Any]) -> None:
        """Take new access tokens."""
        from online.settings.access_tokens import AccessTokens

        self._assembly.renew(AccessTokens.model_validate(tokens))

    def record_autoscaling_stats(self) -> dict[str, float]:
        """CPU share of this replica; Serve calls it if the number of replicas is a range."""
        return self._busy()
