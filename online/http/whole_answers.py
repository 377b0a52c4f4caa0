"""An answer leaves in one piece: its head waits for its body.

uvicorn writes the two one after the other, and uvloop sends each at once.  That is two calls of the
system, two packets and two awakenings of whoever reads them, for an answer of some hundred bytes.
"""

from __future__ import annotations

from typing import Any, Final

from online.messages.bodies import Send

_JOINED_BYTES: Final = 65_536  # of a body that is copied behind its head


class _Whole:
    """A transport whose first piece is written together with the second."""

    __slots__ = ("_head", "behind")

    def __init__(self, behind: Any) -> None:
        self.behind = behind
        self._head: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)

    def write(self, data: bytes) -> None:
        """Keep the first piece; write it in front of the second, and others as they come."""
        if self._head is None:
            self._head = data
            return
        head, self._head = self._head, b""
        if not head:
            self.behind.write(data)
        elif len(data) <= _JOINED_BYTES:
            self.behind.write(head + data)
        else:
            # Not writelines: asyncio's own transport does not hold back who sends too fast there,
            # up to Python 3.12.8.
            self.behind.write(head)
            self.behind.write(data)

    def flush(self) -> None:
        """Write what is kept, where no body comes: the answer to HEAD."""
        if self._head:
            head, self._head = self._head, b""
            self.behind.write(head)

    def close(self) -> None:
        """Close it once what was kept is written, too."""
        self.flush()
        self.behind.close()


def transport_of(cycle: Any) -> Any:
    """Return what uvicorn's request or answer is sent through; None: another server has it."""
    transport = getattr(cycle, "transport", None)
    return transport.behind if isinstance(transport, _Whole) else transport


async def in_one_piece(send: Send, head: dict[str, Any], body: dict[str, Any]) -> None:
    """Send the two messages of an answer, by one write where it is uvicorn that sends.

    Whoever else sends is given them one after the other.
    """
    cycle: Any = getattr(send, "__self__", None)
    transport = getattr(cycle, "transport", None)
    if transport is None or not hasattr(transport, "write"):
        await send(head)
        await send(body)
        return
    cycle.transport = whole = _Whole(transport)
    await send(head)
    await send(body)
    whole.flush()
