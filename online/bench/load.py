"""A load generator on one event loop: keep-alive connections, closed loop or a fixed rate.

At a fixed rate latency counts from the instant at which a request was due, so that a stalled
server can't hide behind requests that were never sent (coordinated omission).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Body = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Load:
    """Answers a second and latencies in ms of one run."""

    requests: int
    errors: int
    rate: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class _Client(asyncio.Protocol):
    """One connection with one request under way."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[int] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)

    async def ask(self, request: bytes) -> int:
        """Status of the answer; 0 if the connection broke."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = re.search(rb"content-length: *(\d+)", head.lower())
        whole = len(rest) >= int(length[1]) if length else rest.endswith(b"0\r\n\r\n")  # chunked
        if whole and self._answer is not None and not self._answer.done():
            self._buffer = b""
            self._answer.set_result(int(head[9:12]))


def run(
    host: str, port: int | Sequence[int], path: str, body: Body, *, connections: int,
    seconds: float, rate: float | None = None,
) -> Load:  # fmt: skip
    """Send ``body(i)`` to ``path`` for ``seconds``; ``rate`` requests/s, or as fast as it goes.

    With several ports the connections go to each of them in turn.
    """
    return asyncio.run(_run(host, port, path, body, connections, seconds, rate))


async def _run(
    host: str, port: int | Sequence[int], path: str, body: Body, connections: int, seconds: float,
    rate: float | None,
) -> Load:  # fmt: skip
    loop = asyncio.get_running_loop()
    ports = [port] if isinstance(port, int) else port
    turns = [ports[i % len(ports)] for i in range(connections)]
    clients = [(await loop.create_connection(_Client, host, turn))[1] for turn in turns]
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    latencies: list[float] = []
    errors = 0
    next_i = 0
    begun = time.perf_counter()
    end = begun + seconds

    async def work(client: _Client) -> None:
        nonlocal errors, next_i
        while True:
            i, next_i = next_i, next_i + 1
            due = time.perf_counter() if rate is None else begun + i / rate
            if due >= end:
                return
            if (ahead := due - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            data = body(i)
            status = await client.ask(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
            latencies.append(time.perf_counter() - due)
            errors += status != 200
            if status == 0:
                return

    await asyncio.gather(*(work(client) for client in clients))
    elapsed = time.perf_counter() - begun
    latencies.sort()
    n = len(latencies)
    return Load(
        requests=n,
        errors=errors,
        rate=n / elapsed,
        p50_ms=latencies[n // 2] * 1e3,
        p99_ms=latencies[min(n - 1, int(n * 0.99))] * 1e3,
        p999_ms=latencies[min(n - 1, int(n * 0.999))] * 1e3,
        max_ms=latencies[-1] * 1e3,
    )
