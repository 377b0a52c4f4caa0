"""A model to ask and to teach in the name of several senders: in this process, or over HTTP.

In this process there are the real replicas, journal and parameter server, and neither Ray nor HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from benchmarks.service import Running
from benchmarks.within import Direct
from online.client.connection import Connection
from online.errors import RequestError
from online.learning.merged import Learner
from online.messages.sender import sender
from online.messages.structs import Event, FeedbackRequest, PredictRequest
from online.models.from_settings import load_model
from online.replica import surroundings
from online.replica.replica import ModelReplica
from online.replica.surroundings import Who
from online.rows.door import Door
from online.rows.prediction_ids import Keys, Nonces, Tokens
from online.serving.serving import Serving
from online.settings.config import Limits, Settings
from online.settings.model import ModelSettings
from online.settings.tokens import Grant
from online.trust.filtering import filtering_for
from paramserver.process.actor import ParameterServer, ServerSettings
from paramserver.process.lineage import Lineage
from replay.example import Features
from replay.journal.sqlite import SqliteJournal

_SPEC: Final = "f" * 64
_PAGE: Final = 200


class Desk(Protocol):
    """One model; ``at`` chooses the replica."""

    async def predict(self, who: str, features: Features, own: str | None, at: int) -> Any:
        """The label that is answered; ``own`` is an id of the caller's own."""

    async def label(self, who: str, event: Mapping[str, Any], at: int) -> str:
        """Send an event with a label; return its status, or the code of its refusal."""

    async def outcomes(self, who: str, events: Sequence[Mapping[str, Any]]) -> list[str]:
        """Send events again, and return what has become of their first sending."""


class Inside:
    """Replicas in this process.

    Parameters:
        senders: What the token of each stands for.

    Attributes:
        servings: One a replica.
    """

    def __init__(self, servings: Sequence[Serving], senders: Mapping[str, Grant]) -> None:
        self.servings, self._senders = servings, senders

    async def predict(self, who: str, features: Features, own: str | None, at: int) -> Any:
        sender.set(self._senders[who])
        serving = self.servings[at % len(self.servings)]
        answer = serving.predict(PredictRequest(features=features, id=own))
        await asyncio.sleep(0)
        return msgspec.to_builtins(answer)["prediction"]

    async def label(self, who: str, event: Mapping[str, Any], at: int) -> str:
        sender.set(self._senders[who])
        try:
            request = FeedbackRequest(**event)
            answer = await self.servings[at % len(self.servings)].feedback(request)
        except RequestError as error:
            return error.code
        return str(msgspec.to_builtins(answer[1])["status"])

    async def outcomes(self, who: str, events: Sequence[Mapping[str, Any]]) -> list[str]:
        sender.set(self._senders[who])
        out: list[str] = []
        for start in range(0, len(events), _PAGE):
            some = [Event(**event) for event in events[start : start + _PAGE]]
            answer = await self.servings[0].feedback(FeedbackRequest(events=some))
            out += map(_outcome, msgspec.to_builtins(answer[1])["events"])
        return out


@contextlib.asynccontextmanager
async def inside(
    folder: Path, settings: ModelSettings, senders: Mapping[str, Grant], replicas: int
) -> AsyncIterator[Inside]:
    """So many replicas of a model on one journal in ``folder``."""

    def journal() -> SqliteJournal:
        path = folder / "journal.db"
        return SqliteJournal(path, disk_low_mb=0, synchronous="OFF")

    server = ParameterServer(
        Lineage(settings.name, _SPEC, "{}", "compensated"), journal, str(folder / "snapshots"),
        ServerSettings(), background=False,
    )  # fmt: skip
    server.restore()
    made = [await _replica(f"r{i}", settings, journal(), server) for i in range(replicas)]
    askers = [grant.source for grant in senders.values() if grant.source is not None]
    servings = []
    for replica in made:
        door = Door(settings, replica.limits, numeric_only=replica.learner.serving.numeric_only)
        tokens = Tokens(Keys([bytes(32)]), settings.name, Nonces(replica.replica.encode().ljust(6)))
        servings.append(Serving(replica, door, tokens, replica.limits, _SPEC, askers))
    try:
        yield Inside(servings, senders)
    finally:
        sender.set(Grant())
        for replica in made:
            await replica.stop(5.0)


async def _replica(
    name: str, settings: ModelSettings, journal: SqliteJournal, server: ParameterServer
) -> ModelReplica:
    loaded = load_model(settings, Settings(models=(settings,)), bytes(32))
    learner = Learner(
        loaded.build, task=settings.task, spec=_SPEC, retain_bytes=1 << 24, rows_max=1024,
        compensates=True,
    )  # fmt: skip
    filters = filtering_for(settings, learner, None, sources_max=1_000, vouched=True)
    learner.bounds.on = settings.filters != "none"
    replica = ModelReplica(
        settings, Limits(), learner, Who(name, _SPEC),
        surroundings.Outside(journal, Direct(server)),
        filters=filters,
    )  # fmt: skip
    await replica.start()
    return replica


class Outside:
    """One model of a running service, each replica at its own port.

    ``tokens``: the access token of each sender.
    """

    def __init__(self, running: Running, model: str, tokens: Mapping[str, str]) -> None:
        self._path = f"/v1/models/{model}"
        self._tokens, self._urls = tokens, sorted(running.replica_urls().values())
        self._open: dict[tuple[str, int], Connection] = {}

    def _at(self, who: str, at: int) -> Connection:
        place = (who, at % len(self._urls))
        if place not in self._open:
            self._open[place] = Connection(self._urls[place[1]], token=self._tokens[who])
        return self._open[place]

    def close(self) -> None:
        """Close all connections to the replicas."""
        for connection in self._open.values():
            connection.close()

    def asked(self, who: str, features: Features, own: str | None, at: int) -> Any:
        """Ask like :meth:`predict`, for who awaits nothing."""
        body = {"features": features} if own is None else {"features": features, "id": own}
        code, answer = self._at(who, at).post(f"{self._path}/predict", body)
        assert code == 200, answer
        return answer["prediction"]

    def told(self, who: str, event: Mapping[str, Any], at: int) -> str:
        """Tell like :meth:`label`; several threads may send, each for other senders."""
        _, answer = self._at(who, at).post(f"{self._path}/feedback", dict(event))
        return str(answer["error"]["code"] if "error" in answer else answer["status"])

    def told_together(self, who: str, events: Sequence[Mapping[str, Any]], at: int) -> list[str]:
        """Tell several events in one body; what has become of each."""
        if len(events) == 1:
            return [self.told(who, events[0], at)]
        body = {"events": [dict(event) for event in events]}
        code, answer = self._at(who, at).post(f"{self._path}/feedback", body)
        assert code == 200, answer
        return [str(one["status"]) for one in answer["events"]]

    def probabilities(self, who: str, rows: Sequence[Features]) -> list[dict[str, float]]:
        """Ask for the probability of each label, for each of some rows."""
        body = {"instances": list(rows)}
        code, answer = self._at(who, 0).post(f"{self._path}/predict", body)
        assert code == 200, answer
        return [row["probabilities"] for row in answer["predictions"]]

    async def predict(self, who: str, features: Features, own: str | None, at: int) -> Any:
        return self.asked(who, features, own, at)

    async def label(self, who: str, event: Mapping[str, Any], at: int) -> str:
        return self.told(who, event, at)

    async def outcomes(self, who: str, events: Sequence[Mapping[str, Any]]) -> list[str]:
        out: list[str] = []
        for start in range(0, len(events), _PAGE):
            body = {"events": [dict(event) for event in events[start : start + _PAGE]]}
            code, answer = self._at(who, 0).post(f"{self._path}/feedback", body)
            assert code == 200, answer
            out += map(_outcome, answer["events"])
        return out


def _outcome(receipt: Mapping[str, Any]) -> str:
    """Return what the first sending of an event has come to, by the receipt of its repeat."""
    said = receipt.get("first_outcome", receipt["status"])
    return "conflict" if receipt["status"] == "conflict" else str(said)
