"""The floods of :mod:`benchmarks.attacks.floods` sent over HTTP, a token each where tokens vouch.

A service has models for few runs, as idle models exchange, too, and the next runs get another.  The
rows before the lies come in bodies of several sources; those among them are asked, and then sent,
one by one, and the lies between two of them at the same moment.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Self

from benchmarks.attacks.floods import Played, Sent, settings_of
from benchmarks.fixtures.senders import Outside
from benchmarks.fixtures.service import Running, form, service, status

_MODELS: Final = ({"none": 2, "default": 1}, {"none": 4, "default": 2})
"""Those of a service of one replica, and of several, which takes longer to start."""

_ANYBODY: Final = "anybody"
_ADMIN: Final = "admin-".ljust(32, "a")
_AT_ONCE: Final = 4
_TOGETHER: Final = 20
"""Rows before the lies that are sent at once, those of a replica in a body."""
_FATES: Final = frozenset(("learned", "clipped", "quarantined"))

_Placed = tuple[str, int, dict[str, Any]]
"""Whose token it is, which replica, and the event."""


class OverHttp:
    """Starts services as they are needed: ``with OverHttp() as play`` for `floods.run`."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._running: Running | None = None
        self._kind: tuple[Any, ...] = ()
        self._free: dict[str, list[str]] = {}
        self._tokens: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __call__(
        self, name: str, groups: Sequence[list[Sent]], before: int, filters: str, replicas: int = 1,
        *, quiet: bool = False, vouched: bool = True, learner: str | None = None,
        lying: bool = True,
    ) -> Played:  # fmt: skip
        """Send it all to a model that has learned nothing yet."""
        names = {event[0] for group in groups for event in group} if vouched else set[str]()
        kind = (replicas, name, learner, vouched)
        if kind != self._kind or not names <= self._tokens.keys() or not self._free[filters]:
            self._start(settings_of(name, filters, learner), replicas, names)
            self._kind = kind
        assert self._running is not None
        model = self._free[filters].pop()
        with contextlib.closing(Outside(self._running, model, self._tokens)) as desk:
            sending = _Sending(desk, replicas, quiet=quiet, vouched=vouched)
            right = sending.all(groups, before, lying=lying)
        condemned = frozenset(
            source["source"]
            for url in self._running.replica_urls().values()
            for source in (status(self._running, model, url)["filters"] or {}).get(
                "quarantined", ()
            )
        )
        accuracy = 100.0 * right / (len(groups) - before)
        return Played(accuracy, condemned, sending.set_aside, sending.taken)

    def _start(self, settings: Mapping[str, Any], replicas: int, names: set[str]) -> None:
        """End the service before, and start another with models of both kinds."""
        self._stack.close()
        self._tokens = {name: f"{name}-".ljust(32, "t") for name in names}
        feedback = [{"source": k, "token": v} for k, v in self._tokens.items()] or _ADMIN
        self._tokens[_ANYBODY] = _ADMIN
        self._free = {x: [f"{x}-{i}" for i in range(n)] for x, n in _MODELS[replicas > 1].items()}
        models = [
            {**settings, "name": model, "filters": x}
            for x, own in self._free.items()
            for model in own
        ]
        access = {"predict": _ADMIN, "admin": _ADMIN, "feedback": feedback}
        told = {**form(replicas), "models": models, "tokens": access}
        self._running = self._stack.enter_context(service(told))
        self._running.token = _ADMIN


class _Sending:
    """Everything sent to one model, and the answers.

    Attributes:
        set_aside: Honest rows that came among the lies, by source.
        taken: Lies that were learned, in part or whole.
    """

    def __init__(self, desk: Outside, replicas: int, *, quiet: bool, vouched: bool) -> None:
        self._desk, self._replicas, self._vouched = desk, replicas, vouched
        self._quiet, self._n = quiet, 0
        self.set_aside, self.taken = Counter[str](), 0

    def all(self, groups: Sequence[list[Sent]], before: int, *, lying: bool = True) -> int:
        """Send it; how many of the honest rows behind ``before`` were answered right."""
        right = 0
        for at in range(0, before, _TOGETHER):
            self._begin(groups[at : min(at + _TOGETHER, before)])
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for group in groups[before:]:
                for event in (one for one in group if not one[3]):
                    source, features, label, _ = event
                    right += self._desk.asked(_ANYBODY, features, None, 0) == label
                    aside = self._told([self._placed(event)]) == ["quarantined"]
                    self.set_aside[source] += aside
                by = dict[tuple[str, int], list[_Placed]]()
                for lie in [self._placed(event) for event in group if event[3]]:
                    if lying:
                        by.setdefault(lie[:2], []).append(lie)
                for fates in pool.map(self._told, by.values()):
                    self.taken += len(fates) - fates.count("quarantined")
        self.set_aside = +self.set_aside
        return right

    def _begin(self, groups: Sequence[list[Sent]]) -> None:
        """Send rows before the lies; the operator's token may name any source."""
        by = dict[int, list[_Placed]]()
        for event in (one for group in groups for one in group):
            _, at, told = self._placed(event)
            by.setdefault(at, []).append((_ANYBODY, at, told | {"source": event[0]}))
        for some in by.values():
            self._told(some)

    def _placed(self, event: Sent) -> _Placed:
        """Who sends it, to which replica, and what."""
        source, features, label, lie = event
        self._n += 1
        told: dict[str, Any] = {"features": features, "label": label, "event_id": str(self._n)}
        at = (self._replicas - 1 if lie else 0) if self._quiet else self._n % self._replicas
        return (source, at, told) if self._vouched else (_ANYBODY, at, told | {"source": source})

    def _told(self, some: Sequence[_Placed]) -> list[str]:
        """Send events of one sender to one replica in a body, and tell what became of each."""
        who, at, _ = some[0]
        fates = self._desk.told_together(who, [told for _, _, told in some], at)
        assert set(fates) <= _FATES, fates
        return fates
