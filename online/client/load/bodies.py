"""Request bodies made of real rows; each feedback body is a new event."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice

from evaluation.streams import open_stream
from replay.example import Features, Label


class Bodies:
    """Bodies for the service and for the peer, encoded in advance as far as possible.

    Parameters:
        rows: Features, and the label as the service names it (None: no label), used cyclically;
            default: 500 rows of Phishing.
        source: Source of the feedback; None: not given.
        run: Prefix of the event ids; it must differ between runs, or events are repeats.
    """

    def __init__(
        self,
        rows: Sequence[tuple[Features, Label | None]] | None = None,
        *,
        source: str | None = None,
        run: int | str = 0,
    ) -> None:
        if rows is None:
            stream = open_stream("phishing", None)
            rows = [(x, bool(y)) for x, y in islice(stream.rows, 500)]
        self.run = run
        self._source = b"" if source is None else b',"source":%b' % json.dumps(source).encode()
        self._features = [json.dumps(x).encode() for x, _ in rows]
        self._labelled = [
            b'{"features":%b,"label":%b' % (x, json.dumps(y).encode())
            for x, (_, y) in zip(self._features, rows, strict=True)
        ]

    def predict(self, i: int) -> bytes:
        """Body of the ``i``-th prediction: features of one row."""
        return b'{"features":%b}' % self._features[i % len(self._features)]

    def feedback(self, i: int) -> bytes:
        """Body of the ``i``-th feedback: one event with its id."""
        event_id = b'"%b-%d"' % (str(self.run).encode(), i)
        return b'%b%b,"event_id":%b}' % (self._label(i), self._source, event_id)

    def peer_learn(self, i: int) -> bytes:
        """Body with one row for the peer to learn."""
        return b"%b}" % self._label(i)

    def instances(self, i: int, n: int) -> bytes:
        """The ``i``-th body of ``n`` rows to predict."""
        rows = (self._features[k % len(self._features)] for k in range(i * n, i * n + n))
        return b'{"instances":[%b]}' % b",".join(rows)

    def events(self, i: int, n: int) -> bytes:
        """The ``i``-th body of ``n`` events."""
        return b'{"events":[%b]}' % b",".join(map(self.feedback, range(i * n, i * n + n)))

    def peer_many(self, i: int, n: int) -> bytes:
        """The ``i``-th body of ``n`` rows for the peer, with labels."""
        return b"[%b]" % b",".join(map(self.peer_learn, range(i * n, i * n + n)))

    def _label(self, i: int) -> bytes:
        return self._labelled[i % len(self._labelled)]
