"""One request that is traced, and its row on the way to other replicas.  Knows no OpenTelemetry.

A trace is carried by the request's context.  Whoever takes a step of the request, in whatever
task, ends the step on it; the next one begins there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Final, NamedTuple

from paramserver.core.wire import Mark, Push

Emit = Callable[[str, str, int, int, Mapping[str, str | int]], None]
"""Is told of a step: the ``traceparent`` that it belongs to, its name, begin and end in ns since
1970, and more."""

STEPS_MAX: Final = 64
"""Steps of one trace that are told of: an upload may take thousands."""
UNDERWAY_MAX: Final = 64
"""Traced rows of a model that are watched until other replicas may have them."""


class Trace:
    """A request that is traced.

    Parameters:
        context: The ``traceparent`` of the request's own span.
        emit: Is told of each step.
        end: Is told the status that the request was answered with.

    Attributes:
        id: The trace's number, as 32 hexadecimal digits.
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
        """A step has ended that began at the end of the one before; returns the time, in ns."""
        begun_ns, self._at_ns = self._at_ns, self._now_ns()
        if self._left:
            self._left -= 1
            self._emit(self.context, name, begun_ns, self._at_ns, more)
        return self._at_ns


current: ContextVar[Trace | None] = ContextVar("trace", default=None)
"""The trace of the request at hand; None: it is not traced."""


class _Underway(NamedTuple):
    partition: int
    offset: int
    trace: Trace
    learned_ns: int


class Crossing:
    """Rows of traced requests on their way to other replicas, of one model in one process.

    A mark goes with the push that holds the row; the parameter server hands it to the replicas
    that take the values, and they tell when they have them.

    Parameters:
        emit: Is told when a row was pushed, and when another replica's was taken.
    """

    def __init__(self, emit: Emit, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._emit, self._now_ns = emit, now_ns
        self._underway: deque[_Underway] = deque(maxlen=UNDERWAY_MAX)

    def learned(self, partition: int, offset: int, trace: Trace, at_ns: int) -> None:
        """A row of a traced request is in the local model."""
        self._underway.append(_Underway(partition, offset, trace, at_ns))

    def marks(self, pushes: Iterable[Push]) -> list[Mark]:
        """Marks of the rows that these pushes hold."""
        if not self._underway:
            return []
        last = {push.partition: push.last for push in pushes}
        return [
            Mark(one.partition, one.offset, one.trace.context, one.learned_ns)
            for one in self._underway
            if one.offset <= last.get(one.partition, 0)
        ]

    def pushed(self, clock: Mapping[int, int]) -> None:
        """The server's values have rows up to this clock."""
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
        """Answers here have rows of other replicas from now on.

        The clocks of two hosts may differ: a step never ends before it has begun.
        """
        for mark in marks:
            now_ns = self._now_ns()
            self._emit(mark.context, "visible", min(mark.at_ns, now_ns), now_ns, {})
