"""Long uploads of feedback: one event a line in, one receipt a line out, without a length limit.

Each upload holds a slot.  A client that sends nothing, or reads no receipts, loses it, and one
token cannot hold all slots.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from online.errors import RequestError, failed
from online.messages.bodies import NDJSON, Receive, Send, decode_events, error_body, read_lines
from online.serving.serving import Serving
from online.settings.limits import Limits

log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode_lines
_PATIENCE_S: Final = 5.0  # an upload that is idle for longer may lose its slot to others

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Slot:
    """The slot of one upload; ``within`` awaits its client with a timeout."""

    within: Callable[[Awaitable[T]], Awaitable[T]]

    async def timely(self, lines: AsyncIterator[list[bytes]]) -> AsyncIterator[list[bytes]]:
        """Yield the lines as they arrive.  Raises RequestError 408 if none comes for too long."""
        while True:
            try:
                got = await self.within(anext(lines))
            except StopAsyncIteration:
                return
            yield got


class Uploads:
    """The slots for uploads: how many there are, who holds them, and who has been idle how long.

    Parameters:
        most: Number of slots.
        share: Share of them that one token may hold, above 0 and at most 1.
        idle_s: How long to wait for the client's next line, or for it to read a receipt, in
            seconds.
    """

    def __init__(self, most: int, share: float, idle_s: float) -> None:
        self._most, self._share, self._idle_s = most, max(1, int(most * share)), idle_s
        self._held: Counter[bytes | None] = Counter()
        self._silent: dict[asyncio.Timeout, bytes | None] = {}  # longest idle first

    @contextlib.contextmanager
    def slot(self, token: bytes | None) -> Iterator[Slot]:
        """Hold a slot for a token digest (None: no tokens).  Raises RequestError 429 if full."""
        if token is not None and self._held[token] >= self._share:
            if not self._push_out(of=token):
                raise _busy(f"this token has {self._held[token]} uploads under way here")
        elif self._held.total() >= self._most and not self._push_out():
            raise _busy(f"{self._most} uploads are under way here")
        self._held[token] += 1
        try:
            yield Slot(lambda work: self._within(token, work))
        finally:
            self._held[token] -= 1
            self._held += Counter()  # drops zero counts

    async def _within(self, token: bytes | None, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._idle_s) as clock:
                self._silent[clock] = token
                try:
                    return await work
                finally:
                    self._silent.pop(clock, None)
        except TimeoutError:
            message = "no line was received, or no receipt was read, for too long"
            hint = (
                f"Send a line within {self._idle_s:g} s (limits.upload_idle_s), sooner when all "
                "slots are used, or start another upload; events with a receipt are recorded"
            )
            raise RequestError(408, "upload_idle", message, None, hint) from None

    def _push_out(self, of: bytes | None = None) -> bool:
        """End the upload that is idle longest; return False if none has exceeded its patience."""
        now = asyncio.get_running_loop().time()
        for clock, token in self._silent.items():
            if of is None or token == of:
                if now < (clock.when() or now) - self._idle_s + _PATIENCE_S:
                    return False
                del self._silent[clock]
                if not clock.expired():  # one whose time is over ends in the loop's next turn
                    clock.reschedule(now)
                return True
        return False


def _busy(message: str) -> RequestError:
    hint = "Send it again after Retry-After; nothing was recorded"
    return RequestError(429, "busy", message, None, hint, 1)


async def upload(
    serving: Serving,
    receive: Receive,
    send: Send,
    limits: Limits,
    slot: Slot,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Record events as their lines arrive; the receipts are sent in the same order.

    Rows that arrive together are one commit of at most ``limits.rows_max`` events.  The next ones
    are read after these are answered, so flow control slows down a sender that is too fast.  A line
    that can't be taken gets a receipt that says so, and the upload goes on.  An error that ends the
    upload (the journal is full, a line exceeds ``limits.body_bytes_max``, a timeout) is sent as an
    error body in the last line.
    """
    head = [(b"content-type", NDJSON), *headers]
    await slot.within(send({"type": "http.response.start", "status": 200, "headers": head}))
    last = b""
    try:
        async for lines in slot.timely(read_lines(receive, limits.body_bytes_max)):
            for i in range(0, len(lines), limits.rows_max):
                some = [line.strip() for line in lines[i : i + limits.rows_max]]
                receipts = await serving.record(await decode_events(some))
                body = _encode(receipts)
                part = {"type": "http.response.body", "body": body, "more_body": True}
                await slot.within(send(part))
    except RequestError as error:
        serving.replica.counts[f"feedback_refused_{error.code}"] += 1
        last = _encode([error_body(error)])
    except Exception:  # the status is sent already: only the last line can report it
        log.exception("an upload of feedback, %s", serving.name)
        last = _encode([error_body(failed())])
    with contextlib.suppress(RequestError):  # the client reads nothing any more
        await slot.within(send({"type": "http.response.body", "body": last}))
