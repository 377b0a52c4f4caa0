"""The remaining work of a model's process: committed rows that are not yet learned or pushed."""

from __future__ import annotations

from online.learning.base import BaseLearner
from online.learning.deltas import ends
from online.replica.writer import Writer


class Backlog:
    """Counts the committed rows that one model's process has still to learn or push.

    Parameters:
        learns: False: another process learns what is written here, and its progress is read from
            the server's clock.
    """

    def __init__(self, learner: BaseLearner, writer: Writer, *, learns: bool) -> None:
        self._learner, self._writer, self._learns = learner, writer, learns

    @property
    def rows(self) -> int:
        """Number of committed rows still to be learned, including adopted partitions."""
        writer = self._writer
        tracks = ends(self._learner.tracks, writer.partition, writer.known)
        return writer.queued + sum(max(end - track.next + 1, 0) for track, end in tracks)

    @property
    def learning(self) -> bool:
        """Whether rows that are not frozen, or adopted rows, remain to be learned."""
        own, last = self._writer.partition, self._writer.to_learn
        if not self._learns:
            return self._learner.clock.get(own, 0) < last
        return self._learner.lags(own, last)

    def left(self, acted_on: int) -> bool:
        """Whether stopping now would leave rows of the own partition to an adopter.

        ``acted_on``: the control row that this process acts on.  A frozen model's rows are not
        learned by anyone.
        """
        if self._learner.frozen:
            return acted_on != self._learner.control
        return self._learner.leaves(self._writer.partition, self._writer.known)
