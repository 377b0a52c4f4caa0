"""A traced request, and its row on the way to other replicas, independent of OpenTelemetry.

A trace is a context variable of its request.  Whatever task completes a step of the request ends
the step on the trace; the next step begins there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Final, NamedTuple

from paramserver.core.wire import Mark, Push

Emit = Callable[[str, str, int, int, Mapping[str, str | int]], None]
"""Receives a step: its parent's ``traceparent``, name, begin and end in ns since 1970, and
attributes."""

STEPS_MAX: Final = 64
"""Largest number of reported steps of a trace: an upload may have thousands."""
UNDERWAY_MAX: Final = 64
"""Traced rows of a model that are watched until other replicas may have them."""


class Trace:
    """The trace of a request.

    Parameters:
        context: The ``traceparent`` of the request's own span.
        emit: Receives each step.
        end: Receives the HTTP status of the answer.

    Attributes:
        id: The trace id, as 32 hexadecimal digits.
    """

    def __init__(
        self,
        context: str,
        emit: Emit,
        end: Callable[[int], None],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.context, self.end = context, end
        self.id = context.split("-")[1]
        self._emit, self._now_ns = emit, now_ns
        self._at_ns, self._left = now_ns(), STEPS_MAX

    def step(self, name: str, **more: str | int) -> int:
        """End a step that began at the end of the previous one; return the time in ns."""
        begun_ns, self._at_ns = self._at_ns, self._now_ns()
        if self._left:
            self._left -= 1
            self._emit(self.context, name, begun_ns, self._at_ns, more)
        return self._at_ns


current: ContextVar[Trace | None] = ContextVar("trace", default=None)
"""The trace of the current request; None: it is not traced."""


class _Underway(NamedTuple):
    partition: int
    offset: int
    trace: Trace
    learned_ns: int


class Crossing:
    """Traced rows of one model on their way from this process to other replicas.

    A mark goes with the push that contains the row.  The parameter server hands it to the replicas
    that pull the values, and they report when they have the row.

    Parameters:
        emit: Receives a step when a row was pushed, and when another replica's row arrived.
    """

    def __init__(self, emit: Emit, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._emit, self._now_ns = emit, now_ns
        self._underway: deque[_Underway] = deque(maxlen=UNDERWAY_MAX)

    def learned(self, partition: int, offset: int, trace: Trace, at_ns: int) -> None:
        """Record that a row of a traced request is in the local model."""
        self._underway.append(_Underway(partition, offset, trace, at_ns))

    def marks(self, pushes: Iterable[Push]) -> list[Mark]:
        """Return the marks of the rows that these pushes contain."""
        if not self._underway:
            return []
        last = {push.partition: push.last for push in pushes}
        return [
            Mark(one.partition, one.offset, one.trace.context, one.learned_ns)
            for one in self._underway
            if one.offset <= last.get(one.partition, 0)
        ]

    def pushed(self, clock: Mapping[int, int]) -> None:
        """Record that the server's values include rows up to this clock."""
        if not self._underway:
            return
        now_ns, left = self._now_ns(), list[_Underway]()
        for one in self._underway:
            if one.offset > clock.get(one.partition, 0):
                left.append(one)
            else:
                self._emit(one.trace.context, "push", one.learned_ns, now_ns, {})
        self._underway = deque(left, maxlen=UNDERWAY_MAX)

    def arrived(self, marks: Iterable[Mark]) -> None:
        """Record that answers here include these rows of other replicas from now on.

        The clocks of two hosts may differ, so a step's begin is limited to its end.
        """
        for mark in marks:
            now_ns = self._now_ns()
            self._emit(mark.context, "visible", min(mark.at_ns, now_ns), now_ns, {})
