"""This module answers, in a live replica, a new one that can't reach the parameter server.

The new one sends what it would send to the server, and is answered in the same words: values that
were pulled, and their clock.  Never the local model, which has rows on top that no clock tells of
yet: whoever took them for the server's would count them again when their partition is adopted.
Nothing is pushed here, and nothing is durable by it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from online.learning.base import BaseLearner
from paramserver import wire
from paramserver.parts import Parts

_KEYS: Final = 2_048  # of one answer: predictions go on beside it
_BEHIND_MAX: Final = 256  # versions that the first parts may be behind the newest


class Peer:
    """Answers of one model in one replica.

    Parameters
    ----------
    replica, spec
        Name of this process, and hash of its model's spec.
    age_ms
        Since the server confirmed the values that are here; None: never.
    """

    def __init__(
        self,
        learner: BaseLearner,
        replica: str,
        spec: str,
        age_ms: Callable[[], float | None],
    ) -> None:
        self._learner, self._replica, self._spec, self._age_ms = learner, replica, spec, age_ms
        self._parts = Parts(_KEYS, _BEHIND_MAX)

    def sync(self, data: bytes) -> bytes | None:
        """A :class:`wire.SyncReply` to a request; None: there is nothing to tell here.

        A model that is learned in order is not told: its values are written down too rarely.
        """
        learner, age_ms = self._learner, self._age_ms()
        request, values = wire.decode_request(data), learner.pulled
        if values is None or not learner.ready or age_ms is None:
            return None
        if request.format != wire.FORMAT:
            return None
        told = self._parts.told(request, values, learner.version, learner.changes_since)
        reply = wire.SyncReply(
            format=wire.FORMAT,
            spec=self._spec,
            epoch=learner.version[0],
            count=learner.version[1],
            acks=[],
            clock=learner.clock,
            closed=[],
            durable={},
            orphans=[],
            confirmed_ms=age_ms,
            rewrite=learner.rewrite,
            control=learner.control,
            frozen=learner.frozen,
            peer=self._replica,
            **told,
        )
        return wire.encode(reply)
