"""The challengers of a running service: their processes, who was promoted, what begins or ends."""

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
    """The challengers of the models that have one, a process each; this process owns them."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[ModelSettings, Any]] = {}
        self._seen: dict[str, int] = {}  # newest control row, by model
        self._promoted: dict[str, str] = {}  # what the newest promotion lets serve
        self._upgraded = False
        self._wished: dict[str, bool] = {}  # whether a model is to have other servers
        self._again = False

    def start(self, settings: Settings) -> None:
        """Bring the processes to these settings; returns before they have begun."""
        from online.service.on_ray.challenger_process import start_shadow

        data = settings.model_dump(mode="json", context=WITH_SECRETS)
        wanted = {m.name: m for m in settings.models if m.challenger is not None}
        old = [name for name, (was, _) in self._running.items() if wanted.get(name) != was]
        self.make_way(old)
        for name in wanted.keys() - self._running.keys():
            self._running[name] = wanted[name], start_shadow(data, name)

    def make_way(self, models: Iterable[str]) -> None:
        """End the challengers of these models; they publish what they have learned."""
        from online.service.on_ray.challenger_process import end_shadow

        for name in list(models):
            if self._running.pop(name, None) is not None:
                end_shadow(name)

    def promoted(self, journal: Journal, serving: Mapping[str, str]) -> bool:
        """Whether another lineage than the one that serves, by model, is to do so."""
        for name in serving:
            for control in journal.controls(name, self._seen.get(name, 0)):
                self._seen[name] = control.seq
                self._upgraded |= control.kind == UPGRADE
                if (wished := resharding.wished(control)) is not None:
                    self._wished[name] = wished
                if (found := rewrites.promoted([control])) is not None:
                    self._promoted[name] = (
                        found[1].after if found[1].before == serving[name] else ""
                    )
        return any(
            self._promoted.get(name) not in (None, "", spec) for name, spec in serving.items()
        )

    def upgraded(self) -> bool:
        """Whether one of today's defaults was to begin or to end, since the last time."""
        found, self._upgraded = self._upgraded, False
        return found

    def resharded(self) -> bool:
        """Whether a model is to have another number of servers, since the last time."""
        found, self._wished, self._again = self._again or any(self._wished.values()), {}, False
        return found

    def until_read(self, step: Callable[[], list[str]]) -> list[str]:
        """Lines of what is done about a wish; it is told again if the journal gave no answer."""
        try:
            return step()
        except ReplayError:
            self._again = True
            raise
