"""This module tells what a process has left to do: committed rows not learned, or not pushed."""

from __future__ import annotations

from online.learning.deltas import Track
from online.learning.merged import Learner
from online.learning.ordered import OrderedLearner
from online.replica.writer import Writer


class Backlog:
    """Rows that the partitions of one model's process are behind.

    Parameters
    ----------
    learns
        False: another process learns what is written here, and the server's clock tells how far.
    """

    def __init__(self, learner: Learner | OrderedLearner, writer: Writer, *, learns: bool) -> None:
        self._learner, self._writer, self._learns = learner, writer, learns

    @property
    def rows(self) -> int:
        """Committed rows, of adopted partitions too, that are to be learned."""
        ends = self._ends(self._writer.known)
        return self._writer.queued + sum(max(end - t.next + 1, 0) for t, end in ends)

    @property
    def learning(self) -> bool:
        """Whether there are rows that are not frozen, or adopted, and not learned yet."""
        if not self._learns or isinstance(self._learner, OrderedLearner):
            return self._pushed < self._writer.to_learn
        held = any(track.held for track in self._learner.tracks.values())
        return held or any(t.next <= end for t, end in self._ends(self._writer.to_learn))

    def left(self, acted_on: int) -> bool:
        """Whether rows of the own partition would be left to an adopter now.

        ``acted_on``: the control row that this process acts on; a frozen model's rows are nobody's.
        """
        if self._learner.frozen:
            return acted_on != self._learner.control
        if isinstance(self._learner, OrderedLearner):  # the others have learned them, too
            return self._learner.keeper and self._learner.unsent
        return self._pushed < self._writer.known

    @property
    def _pushed(self) -> int:
        return self._learner.clock.get(self._writer.partition, 0)

    def _ends(self, own: int) -> list[tuple[Track, int]]:
        """Tracks with their last offsets; whoever writes one that is followed knows its end."""
        tracks = self._learner.tracks.items()
        ends = [(t, own if p == self._writer.partition else t.end) for p, t in tracks]
        return [(t, end) for t, end in ends if end is not None]
