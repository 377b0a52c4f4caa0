"""Attacks on a running service, and then `online forget` of who made them: is the model as without?

One replica over HTTP.  Twelve honest sources send the rows of a stream one by one, and two liars
from the middle on; beside each model its twin, to whom the liars have sent nothing.  *Apart* is the
largest difference of a probability in answers to the last rows.  *finals*: the truth as a
provisional label, and then the lie; *twice*: the truth in the same body, under the lie's id.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.attacks.doors import Row, rows_of, settings_of
from benchmarks.fixtures.senders import Outside
from benchmarks.fixtures.service import Running, form, own_environment, service, status
from online.settings.limits import Limits
from online.settings.tokens import WEIGHT_MAX

ATTACKS: Final = ("weight", "far off", "flood", "joins", "finals", "twice")
FILTERS: Final = ("none", "default")
ROWS: Final = 400
APART_MAX: Final = 1e-9

_HONEST: Final = tuple(f"user-{i:02}" for i in range(12))
_LIARS: Final = ("liar-0", "liar-1")
_ASKED: Final = 100
_ADMIN: Final = "admin-".ljust(32, "a")


@dataclass(frozen=True, slots=True)
class Forgotten:
    """One attack.  ``harm``: as ``apart``, before anybody was forgotten.

    ``lies``: that were learned.  ``others``: rows of honest sources that were judged otherwise
    than in the twin, by their verdicts: clipped to another weight is not seen.
    ``learned``: rows in the model that the twin has not.
    """

    what: str
    filters: str
    seed: int
    lies: int
    harm: float
    apart: float
    others: int
    learned: int
    good: bool


def run(
    streams: Sequence[str], seeds: Sequence[int], folder: Path | None, most: int | None = None
) -> Iterator[Forgotten]:
    """Each attack on each stream, without filters and with them."""
    cases = [(kind, filters) for kind in ("", *ATTACKS) for filters in FILTERS]
    senders = {name: f"{name}-".ljust(32, "t") for name in (*_HONEST, *_LIARS)}
    access = {
        "predict": [_ADMIN, *({"source": x, "token": senders[x]} for x in _LIARS)],
        "feedback": [{"source": k, "token": v} for k, v in senders.items()],
        "admin": _ADMIN,
    }
    for stream in streams:
        for seed in seeds:
            rows = rows_of(stream, folder, seed, most or ROWS)
            models = [settings_of(stream, f, _name(kind, f)) for kind, f in cases]
            with service({**form(1), "models": models, "tokens": access}) as running:
                running.token = _ADMIN
                twins = dict[str, _Model]()
                for kind, filters in cases:
                    tokens = {**senders, "": _ADMIN}
                    one = _Model(running, _name(kind, filters), tokens, rows)
                    one.teach(kind, filters, seed)
                    if not kind:
                        twins[filters] = one
                    else:
                        yield one.forgotten(twins[filters], f"{stream}, {kind}", filters, seed)


def _name(kind: str, filters: str) -> str:
    return f"{(kind or 'twin').replace(' ', '-')}-{filters}"


class _Model:
    """One model of the service, the events sent to it, and their receipts."""

    def __init__(
        self, running: Running, name: str, tokens: Mapping[str, str], rows: Sequence[Row]
    ) -> None:
        self._running, self._name, self._tokens, self._rows = running, name, tokens, rows
        self._fates: list[str] = []
        self._lies = 0

    def teach(self, kind: str, filters: str, seed: int) -> None:
        draw, lying = random.Random(seed), random.Random(seed + 1)
        with contextlib.closing(Outside(self._running, self._name, self._tokens)) as desk:
            for n, (features, label) in enumerate(self._rows):
                event = {"features": features, "label": label, "event_id": str(n)}
                self._fates.append(desk.told(draw.choice(_HONEST), event, 0))
                late = 2 * n - len(self._rows)
                for i in range(_lies(kind) if late >= 0 and (kind == "flood" or not late) else 0):
                    lie = _lie(self._rows, kind, filters, n, lying)
                    self._lie(desk, lying.choice(_LIARS), kind, f"{n}-{i}", lie)

    def _lie(self, desk: Outside, who: str, kind: str, own: str, lie: dict[str, Any]) -> None:
        true = lie.pop("true")
        if kind == "joins":
            desk.asked(who, lie.pop("features"), own, 0)
            lie["id"] = own
        else:
            lie["event_id"] = own
        if kind == "finals":
            desk.told(who, {**lie, "label": true, "provisional": True}, 0)
        several = [lie, {**lie, "label": true}] if kind == "twice" else [lie]
        self._lies += desk.told_together(who, several, 0)[0] in ("learned", "clipped")

    def forgotten(self, twin: _Model, what: str, filters: str, seed: int) -> Forgotten:
        """Forget the liars; how far the model is from its twin."""
        harm = self._apart(twin)
        for liar in _LIARS:
            self._forget(liar)
        others = sum(a != b for a, b in zip(self._fates, twin._fates, strict=True))
        learned, apart = self._learned() - twin._learned(), self._apart(twin)
        good = learned == 0 and (apart <= APART_MAX or others > 0)
        return Forgotten(what, filters, seed, self._lies, harm, apart, others, learned, good)

    def _forget(self, source: str) -> None:
        words = ("forget", "--source", source, "--yes", "--model", self._name, "--json")
        command = [sys.executable, "-m", "online", *words, "--config"]
        done = subprocess.run(
            [*command, str(self._running.folder / "online.yaml")],
            capture_output=True, text=True, check=False, timeout=600, env=own_environment(),
        )  # fmt: skip
        assert done.returncode == 0 or "no event of" in done.stderr, done.stderr

    def _learned(self) -> int:
        return int(status(self._running, self._name)["learned"])

    def _apart(self, twin: _Model) -> float:
        pairs = zip(self._answers(), twin._answers(), strict=True)
        return max(abs(a.get(label, 0.0) - b.get(label, 0.0)) for a, b in pairs for label in a | b)

    def _answers(self) -> list[dict[str, float]]:
        asked = [features for features, _ in self._rows[-_ASKED:]]
        with contextlib.closing(Outside(self._running, self._name, self._tokens)) as desk:
            return desk.probabilities("", asked)


def _lies(kind: str) -> int:
    return {"weight": 3, "far off": 1, "flood": 2, "joins": 40, "finals": 40, "twice": 40}.get(
        kind, 0
    )


def _lie(
    rows: Sequence[Row], kind: str, filters: str, n: int, draw: random.Random
) -> dict[str, Any]:
    features, label = rows[draw.randrange(n + 1)]
    if kind == "far off":
        return {"features": dict.fromkeys(features, 1e100), "label": label, "true": label}
    others = sorted({str(y): y for _, y in rows}.values(), key=str)
    lie: dict[str, Any] = {"features": features, "true": label}
    lie["label"] = draw.choice([other for other in others if other != label])
    if kind == "weight":
        lie["weight"] = WEIGHT_MAX if filters == "none" else Limits().weight_max
    return lie
