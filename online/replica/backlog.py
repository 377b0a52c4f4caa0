"""This module tells what a process has left to do: committed rows not learned, or not pushed."""

from __future__ import annotations

from online.learning.base import BaseLearner
from online.learning.deltas import ends
from online.replica.writer import Writer


class Backlog:
    """Rows that the partitions of one model's process are behind.

    Parameters:
        learns: False: another process learns what is written here, and the server's clock tells how
            far.
    """

    def __init__(self, learner: BaseLearner, writer: Writer, *, learns: bool) -> None:
        self._learner, self._writer, self._learns = learner, writer, learns

    @property
    def rows(self) -> int:
        """Committed rows, of adopted partitions too, that are to be learned."""
        writer = self._writer
        tracks = ends(self._learner.tracks, writer.partition, writer.known)
        return writer.queued + sum(max(end - track.next + 1, 0) for track, end in tracks)

    @property
    def learning(self) -> bool:
        """Whether there are rows that are not frozen, or adopted, and not learned yet."""
        own, last = self._writer.partition, self._writer.to_learn
        if not self._learns:
            return self._learner.clock.get(own, 0) < last
        return self._learner.lags(own, last)

    def left(self, acted_on: int) -> bool:
        """Whether rows of the own partition would be left to an adopter now.

        ``acted_on``: the control row that this process acts on; a frozen model's rows are nobody's.
        """
        if self._learner.frozen:
            return acted_on != self._learner.control
        return self._learner.leaves(self._writer.partition, self._writer.known)
