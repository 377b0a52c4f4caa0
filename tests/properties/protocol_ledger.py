"""Models that show each event that they hold, and the events, for ``protocol_world.py``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from online.models.base import Prediction
from paramserver.core.blocks import Block, Blocks
from replay import codec
from replay.example import Example, Features, Label
from replay.journal.base import NewRow, Row, Verdict

LEARNED = (Verdict.ACCEPTED, Verdict.CLIPPED)


class Ledger:
    """Counts each event under its name, and damages itself when it can't learn."""

    mergeable, learns, numeric_only, structure = True, True, False, "ledger"
    why_not_mergeable: str | None = None

    def __init__(self) -> None:
        self.counts: dict[str, float] = {}
        self._open: dict[str, float] = {}

    def predict(self, features: Features) -> Prediction:
        return Prediction(None, None)

    def learn(self, features: Features, label: Label, weight: float) -> None:
        event = str(features["event"])
        for counts in (self.counts, self._open):
            counts[event] = counts.get(event, 0) + 1
        if features["poison"]:
            self.counts["damage"] = self._open["damage"] = 7
            raise ValueError("poison")

    def cut(self) -> Blocks:
        opened, self._open = self._open, {}
        return {"w": Block("additive", opened)} if opened else {}

    def rebase(self, values: Blocks) -> None:
        for event, x in values["w"].data.items() if "w" in values else ():
            self.counts[event] = x + self._open.get(event, 0)

    def reset(self, values: Blocks) -> None:
        self.counts, self._open = {}, {}
        self.rebase(values)


class Whole(Ledger):
    """The same as a state that travels whole and does not merge."""

    mergeable = False

    def cut(self) -> Blocks:
        opened, self._open = self._open, {}
        return {"w": Block("opaque", json.dumps(self.counts).encode())} if opened else {}

    def rebase(self, values: Blocks) -> None:
        assert "w" not in values, "only tallies are merged into a model that travels whole"

    def reset(self, values: Blocks) -> None:
        self.counts, self._open = {}, {}
        if "w" in values:
            self.counts = json.loads(values["w"].data)


@dataclass(frozen=True)
class Event:
    name: str
    verdict: Verdict
    poison: bool

    @property
    def key(self) -> bytes:
        return hashlib.blake2b(self.name.encode(), digest_size=16).digest()

    def row(self, *, frozen: bool = False) -> NewRow:
        """As a replica decides it, before it is written."""
        payload = codec.encode(Example({"event": self.name, "poison": self.poison}, True))
        factor = 0.5 if self.verdict is Verdict.CLIPPED else 1.0
        verdict = Verdict.FROZEN if frozen and self.verdict in LEARNED else self.verdict
        return NewRow(self.key, self.name, "s", verdict, payload, 1.0, factor)

    def counts(self, row: Row | None) -> bool:
        """Whether its row is learned, unless it is undone."""
        return row is not None and row.verdict in LEARNED and not self.poison
