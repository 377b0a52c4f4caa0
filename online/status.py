"""What the whole service knows of a model, asked by any replica: server, all replicas, quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from evaluation.metrics import summarise
from online.errors import RequestError
from online.replica import ModelReplica
from paramserver.errors import ParamServerError, SnapshotMissing

_ASK_TIMEOUT_S = 2.0


class ParameterServerControl(Protocol):
    """Questions and commands to a parameter server; each raises ParamServerError."""

    async def call(self, method: str, timeout_s: float, *args: object) -> Any:
        """Result of the server's method of that name."""


class Cluster:
    """Answers for all replicas: the server knows them, this replica knows itself."""

    def __init__(
        self,
        replicas: Mapping[str, ModelReplica],
        controls: Mapping[str, ParameterServerControl],
        facts: Callable[[str], dict[str, Any]],
    ) -> None:
        self._replicas, self._controls, self._facts = replicas, controls, facts

    async def model(self, name: str) -> dict[str, Any]:
        """Status of one model.  With the server down, what this replica knows, and that it is."""
        replica = self._replicas[name]
        learner = replica.learner
        server: dict[str, Any] | None
        try:
            server = await self._controls[name].call("status", _ASK_TIMEOUT_S)
        except (ParamServerError, TimeoutError):
            server = None
        replicas: dict[str, dict[str, float]] = {}
        for known, seen in ((server or {}).get("replicas") or {}).items():
            replicas[known] = {**(seen.get("report") or {}), "contact_age_s": seen["age_s"]}
        replicas[replica.replica] = {**replica.report(), "contact_age_s": 0.0}
        age = replica.age_ms
        return {
            "model": name,
            "task": replica.settings.task,
            **self._facts(name),
            "version": replica.version,
            "age_ms": None if age is None else round(age, 1),
            "updates_behind": replica.updates_behind,
            "answered_by": replica.replica,
            "learned": learner.tally.digest[0],
            "quality": self._quality(name),
            "replicas": replicas,
            "server": server,
            "incident": replica.incident,
        }

    def _quality(self, name: str) -> dict[str, Any]:
        """Prequential metrics of all learned events beside their baselines."""
        counters = self._replicas[name].learner.tally.counters
        return dict(summarise(self._replicas[name].settings.task, counters))

    async def snapshots(self, model: str) -> Any:
        """Snapshots kept, newest last."""
        return await self._command(model, "snapshots")

    async def snapshot(self, model: str, *, pin: bool) -> dict[str, Any]:
        """Publish one now."""
        return dict(await self._command(model, "snapshot", pin))

    async def pin(self, model: str, snapshot: str, *, on: bool) -> dict[str, Any]:
        """Keep a snapshot beyond the retention, or no longer."""
        await self._command(model, "pin", snapshot, on)
        return {"name": snapshot, "pinned": on}

    async def _command(self, model: str, question: str, *args: Any) -> Any:
        try:
            return await self._controls[model].call(question, 60.0, *args)
        except SnapshotMissing as error:
            raise RequestError(
                404, "unknown_snapshot", str(error), "name", "See the list"
            ) from None
        except ParamServerError as error:
            status = 422 if error.definite else 503
            code = "refused" if error.definite else "server_unavailable"
            raise RequestError(status, code, str(error), None, "See `online status`") from None
