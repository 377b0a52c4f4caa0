"""Runs the challengers of a service, and reads pending promotions and reshardings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from online.settings.access_tokens import WITH_SECRETS
from online.settings.config import Settings
from online.settings.model import ModelSettings
from paramserver.core import resharding, rewrites
from paramserver.core.standing_decisions import UPGRADE
from replay.errors import ReplayError
from replay.journal.base import Journal


class Challengers:
    """The challengers of a service's models, one process each, owned by this process."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[ModelSettings, Any]] = {}
        self._seen: dict[str, int] = {}  # newest control row that was read, by model
        self._promoted: dict[str, str] = {}  # spec of the newest promotion, by model
        self._upgraded = False
        self._requested: dict[str, bool] = {}  # whether a resharding was requested, by model
        self._again = False

    def start(self, settings: Settings) -> None:
        """Start and stop processes to match these settings; does not wait until they run."""
        from online.service.on_ray.challenger_process import start_shadow

        data = settings.model_dump(mode="json", context=WITH_SECRETS)
        wanted = {m.name: m for m in settings.models if m.challenger is not None}
        old = [name for name, (was, _) in self._running.items() if wanted.get(name) != was]
        self.end_challengers(old)
        for name in wanted.keys() - self._running.keys():
            self._running[name] = wanted[name], start_shadow(data, name)

    def end_challengers(self, models: Iterable[str]) -> None:
        """End the challengers of these models after they have published their state."""
        from online.service.on_ray.challenger_process import end_shadow

        for name in list(models):
            if self._running.pop(name, None) is not None:
                end_shadow(name)

    def promoted(self, journal: Journal, serving: Mapping[str, str]) -> bool:
        """Whether the newest promotion names another spec than the one in ``serving``, by model."""
        for name in serving:
            for control in journal.controls(name, self._seen.get(name, 0)):
                self._seen[name] = control.seq
                self._upgraded |= control.kind == UPGRADE
                if (requested := resharding.is_request(control)) is not None:
                    self._requested[name] = requested
                if (result := rewrites.promoted([control])) is not None:
                    self._promoted[name] = (
                        result[1].after if result[1].before == serving[name] else ""
                    )
        return any(
            self._promoted.get(name) not in (None, "", spec) for name, spec in serving.items()
        )

    def upgraded(self) -> bool:
        """Whether an upgrade of the defaults was begun or ended since the last call."""
        result, self._upgraded = self._upgraded, False
        return result

    def resharded(self) -> bool:
        """Whether another number of servers was requested since the last call."""
        result, self._requested, self._again = (
            self._again or any(self._requested.values()),
            {},
            False,
        )
        return result

    def until_read(self, step: Callable[[], list[str]]) -> list[str]:
        """Run a step that fulfils a request; the request is kept if the journal does not answer."""
        try:
            return step()
        except ReplayError:
            self._again = True
            raise
