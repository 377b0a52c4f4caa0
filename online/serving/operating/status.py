"""The status of a model in the whole service, as any replica reports it, and operators' commands.

The answers cover the server, all replicas, and the model's quality.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import msgspec

from evaluation.summary import summary
from online.challenger.promotion import decision, upgrading
from online.errors import RequestError
from online.models.contributions.additive import terms_of
from online.replica.replica import ModelReplica
from online.rows.schema import schema_of
from online.serving import anomalies
from online.serving.apprentice import answering, promotion_decision
from online.serving.operating import journal_room
from online.serving.operating.commanded import refused
from online.serving.operating.converted import conversions
from online.serving.operating.held_events import ASK_TIMEOUT_S, HeldEvents, pushed
from online.sure.calibration import Calibration
from online.sure.conformal import Confidence
from online.sure.slices import Slices
from online.sure.views import calibration_in, choices_in, confidence_in, slices_in
from online.watch.drift import of_all
from paramserver.core.rewrites import Digest, promoted
from paramserver.core.standing_decisions import Upgrade
from paramserver.errors import ParamServerError
from paramserver.process.acting import acting
from replay.errors import ReplayError
from replay.journal.base import Journal

log = logging.getLogger(__name__)

_COMMAND_TIMEOUT_S = 60.0
_ACT_S = 30.0
_ACT_POLL_S = 0.05
BEHIND_MAX = 2_000
"""Rows that a challenger may be behind at its promotion; they are learned afterwards."""
_INFLUENCE_NAMES = 256  # largest number of features in a row whose influence is computed
_INFLUENCE_SHOWN = 20


class ParameterServerControl(Protocol):
    """Queries and commands to a parameter server; each raises ParamServerError."""

    async def call(self, method: str, timeout_s: float, *args: object) -> Any:
        """Call the server's method of that name and return its result."""


class Cluster(HeldEvents):
    """Answers for all replicas: others' state comes from the server, its own from this replica.

    Parameters:
        facts: Returns what does not change of a model, by the model's name.
        disk: Returns ``free`` and ``reserve`` of the journal's room; None: it is on no local disk.
        challengers: The connections to the challengers, by model; None: challengers are not
            available.
        absent: Returns why another replica does not start, or None; called on a thread.
    """

    def __init__(
        self,
        replicas: Mapping[str, ModelReplica],
        controls: Mapping[str, ParameterServerControl],
        journals: Mapping[str, Journal],
        facts: Callable[[str], dict[str, Any]],
        *,
        disk: Callable[[], tuple[int, int]] | None = None,
        challengers: Mapping[str, ParameterServerControl] | None = None,
        absent: Callable[[], str | None] = lambda: None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(replicas, journals, facts)
        self._controls, self._disk, self._monotonic_s = controls, disk, monotonic_s
        self._challengers, self._absent = challengers or {}, absent
        self._shadows = challengers is not None
        self._first_room: dict[str, journal_room.Room] = {}
        self._reason: str | None = None

    async def start(self) -> None:
        """Measure the journal's room for the first time; growth is measured from here."""
        await asyncio.gather(*map(self._room, self._replicas))

    async def model(self, name: str) -> dict[str, Any]:
        """Return the status of one model; without the server, only what this replica knows."""
        replica = self._replicas[name]
        learner, views = replica.learner, replica.learner.tally.views
        server: dict[str, Any] | None
        try:
            server = await self._controls[name].call("status", ASK_TIMEOUT_S)
        except (ParamServerError, TimeoutError):
            server = None
        replicas: dict[str, dict[str, float]] = {}
        for known, seen in ((server or {}).get("replicas") or {}).items():
            replicas[known] = {**(seen.get("report") or {}), "contact_age_s": seen["age_s"]}
            if (unserved_s := seen.get("unserved_s")) is not None:
                replicas[known]["unserved_s"] = round(unserved_s, 3)
        here = {**replica.report(), "contact_age_s": 0.0}
        replicas[replica.replica] = {**replicas.get(replica.replica, {}), **here}
        age = replica.age_ms
        journal = await self._room(name)
        elsewhere = (journal or {}).get("alarm"), (server or {}).get("incident")
        rewrites, learned = await self._rewrites(name), learner.tally.digest[0]
        known = [*replica.incidents, await self._missing(), *elsewhere, _failed(rewrites, learned)]
        incidents: list[str] = list(dict.fromkeys(filter(None, known)))
        return {
            "model": name,
            "task": replica.settings.purpose.name,
            **self._facts(name),
            "version": replica.version,
            "age_ms": None if age is None else round(age, 1),
            "updates_behind": replica.updates_behind,
            "from_peer": replica.exchange.peer,
            "answered_by": replica.replica,
            "learned": learned,
            "quality": _quality(replica),
            "versions": by_epoch(replica.settings.task, (server or {}).get("epochs") or []),
            "confidence": _summary(confidence_in(views)),
            "calibration": _summary(calibration_in(views)),
            "slices": _summary(slices_in(views)),
            "anomaly": anomalies.summary_of(replica),
            "choices": _choices(replica),
            "conversions": await conversions(replica, journal, self._read),
            "drift": _drift(replica, replicas),
            "example": _example(replica),
            "influence": _influence(replica),
            "challenger": await self.challenger(name),
            "replay": _kept(replica),
            "filters": _filters(replica),
            "replicas": replicas,
            "server": server,
            "rewrites": rewrites,
            "journal": journal,
            "incident": "; ".join(incidents) or None,
            "incidents": incidents,
        }

    async def _missing(self) -> str | None:
        """Return why a replica does not start, as far as is known; None if nothing is wrong."""
        try:
            self._reason = await asyncio.wait_for(asyncio.to_thread(self._absent), ASK_TIMEOUT_S)
        except Exception as error:  # Ray may raise anything: the previous reason is kept
            log.warning("Serve does not say how its replicas are: %r", error)
        return None if self._reason is None else f"a replica does not start: {self._reason}"

    async def challenger(self, name: str) -> dict[str, Any] | None:
        """Return the challenger's comparison with the serving model; None: there is none."""
        if (client := self._challengers.get(name)) is None:
            return None
        given = self._replicas[name].settings.challenger
        assert given is not None
        settings = {"learner": given.learner, "params": given.params, "promote": given.promote}
        try:
            return {**settings, **await client.call("status", ASK_TIMEOUT_S)}
        except ParamServerError as error:
            return {**settings, "state": "not there", "incident": str(error)}

    async def promote(self, name: str, *, back: bool, force: bool = False) -> dict[str, Any]:
        """Make the challenger serve; with ``back`` only if it has served before.

        Or make an apprentice answer; with ``force`` also if it is not ready.  The decision is
        durable when this returns.  For a challenger the service then replaces its replicas.
        """
        replica = self._replicas[name]
        if (note := promotion_decision(replica, back=back, force=force)) is not None:
            answer = dict(await self._command(name, "answers", note))
            return {**await self._acted(name, answer["control"], None), **answer}
        challenger = await self.challenger(name)
        if challenger is None:
            message = f"model {name} has no challenger"
            hint = "Name one in the settings: models[].challenger"
            raise RequestError(409, "no_challenger", message, None, hint)
        if challenger["state"] != "learning":
            message = f"the challenger of {name} is {challenger['state']}: {challenger['incident']}"
            raise RequestError(503, "challenger_unavailable", message, None, "Try again", 1)
        if challenger["behind_rows"] > BEHIND_MAX:
            message = f"the challenger of {name} is {challenger['behind_rows']:,} rows behind"
            hint = "Ask again when it has learned them"
            raise RequestError(409, "challenger_behind", message, None, hint, 5)
        if back and not await self._served_before(name, challenger["spec_hash"]):
            message = f"the challenger of {name} has not served before"
            hint = "`online promote` lets it serve"
            raise RequestError(409, "nothing_to_take_back", message, "back", hint)
        why = "back" if back else "operator"
        evidence = {key: challenger[key] for key in ("verdict", "rows", "difference", "interval")}
        note = decision(replica.settings, replica.spec, challenger["spec_hash"], why, evidence)
        done = dict(await self._command(name, "promote", note))
        return {"control": done["control"], "from": done["before"], "to": done["after"], **evidence}

    async def upgrade(self, name: str, *, on: bool) -> dict[str, Any]:
        """Start, or stop, a challenger with today's default settings beside the model."""
        challenger = await self.challenger(name)
        todays = (
            upgrading(self._replicas[name].settings, challenger, can=self._shadows) if on else None
        )
        done = await self._command(name, "upgrade", msgspec.json.encode(Upgrade(on)))
        return {**done, "params": None if todays is None else todays.params}

    async def _served_before(self, name: str, spec: str) -> bool:
        """Whether the newest promotion replaced the model of this spec."""
        try:
            controls = await self._read(name, self._journals[name].controls, name, 0)
        except (ReplayError, TimeoutError) as error:
            hint = "Nothing was changed; ask again"
            raise RequestError(503, "journal_unavailable", str(error), None, hint, 1) from None
        promotion = promoted(controls)
        return promotion is not None and promotion[1].before == spec

    async def _room(self, name: str) -> dict[str, Any] | None:
        """Room of the journal and its growth since the first call; None if it does not answer."""
        try:
            usage = await self._read(name, self._journals[name].usage, name)
        except (ReplayError, TimeoutError):
            return None
        free, reserve = (None, 0) if self._disk is None else self._disk()
        now = journal_room.Room(self._monotonic_s(), usage, free, reserve)
        return journal_room.describe(self._first_room.setdefault(name, now), now)

    async def _rewrites(self, name: str) -> dict[str, Any] | None:
        """Return the decisions about the model's events; None: the journal does not answer."""
        try:
            decisions = await self._decided(name)
        except RequestError:
            return None
        return decisions.summary()

    async def _read(self, name: str, step: Callable[..., Any], *args: Any) -> Any:
        """Run a reading operation of the journal, with a timeout so that status never hangs."""
        return await asyncio.wait_for(self._replicas[name].store.read(step, *args), ASK_TIMEOUT_S)

    async def snapshots(self, model: str) -> Any:
        """Return the kept snapshots, newest first."""
        return await self._command(model, "snapshots")

    async def snapshot(self, model: str, *, pin: bool) -> dict[str, Any]:
        """Publish a snapshot now, with everything that this replica has learned so far.

        If the server does not take the rows within ``PUSH_S``, the snapshot is of what it has.
        """
        await pushed(self._replicas[model])
        return dict(await self._command(model, "snapshot", pin))

    async def pin(self, model: str, snapshot: str, *, on: bool) -> dict[str, Any]:
        """Pin a snapshot beyond the retention, or unpin it."""
        await self.note(model, "pin", {"snapshot": snapshot, "on": on})
        await self._command(model, "pin", snapshot, on)
        return {"name": snapshot, "pinned": on}

    async def withdraw(self, model: str, names: list[str]) -> dict[str, Any]:
        """Remove snapshots for good, including pinned ones."""
        await self.note(model, "withdraw", {"snapshots": len(names)})
        return {"withdrawn": await self._command(model, "withdraw", names)}

    async def rollback(self, model: str, snapshot: str) -> dict[str, Any]:
        """Go back to a snapshot's values.  Rows learned since are marked undone, and kept.

        Returns after the server's confirmation and once the replicas answer with these values.
        Rows that this replica has learned are pushed first; otherwise they would be learned again.
        """
        await pushed(self._replicas[model])
        answer = dict(await self._command(model, "rollback", snapshot))
        return {**await self._acted(model, answer["control"], None), **answer}

    async def forget(
        self,
        model: str,
        snapshot: str,
        source: str,
        since: float | None,
        base: str | None,
        undone: dict[int, list[int]],
        digests: tuple[Digest, Digest] | None = None,
    ) -> dict[str, Any]:
        """Switch to a state that was rebuilt without a source; wait until the replicas do."""
        arguments = snapshot, source, since, base, undone, digests
        answer = dict(await self._command(model, "forget", *arguments))
        return {**await self._acted(model, answer["control"], None), **answer}

    async def backfill(
        self, model: str, snapshot: str, lesson: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Switch to a state that was taught from tables; wait until the replicas do."""
        arguments = snapshot, msgspec.json.encode(lesson)
        answer = dict(await self._command(model, "backfill", *arguments))
        return {**await self._acted(model, answer["control"], None), **answer}

    async def freeze(self, model: str) -> dict[str, Any]:
        """Stop learning; wait until every live replica has acted on it and pushed the rest.

        After ``_ACT_S`` seconds it returns the state by then: ``complete``, and who is missing.
        """
        answer = dict(await self._command(model, "freeze"))
        return {**answer, **await self._acted(model, answer["frozen"], "freeze_complete")}

    async def unfreeze(self, model: str) -> dict[str, Any]:
        """Resume learning; wait until the replicas do, and return as :meth:`freeze` does."""
        answer = dict(await self._command(model, "unfreeze"))
        return {**answer, **await self._acted(model, answer["control"], None)}

    async def ban(self, model: str, source: str, *, banned: bool) -> dict[str, Any]:
        """Quarantine everything a source sends, or no longer; wait until the replicas do.

        Lifting a ban also lifts the filters' own quarantine of the source (``released``).
        """
        answer = dict(await self._command(model, "ban", source, banned))
        filters = self._replicas[model].filters
        if not banned and filters is not None:
            answer["released"] = filters.reputations.release(source)
        return {**await self._acted(model, answer["control"], None), **answer}

    async def _acted(self, model: str, control: int, complete: str | None) -> dict[str, Any]:
        """Wait until the replicas act on the control row, or until the server's ``complete``.

        The decision is durable already, so a server that no longer answers is not an error.
        """
        deadline = self._monotonic_s() + _ACT_S
        out: dict[str, Any] = {"complete": False, "missing": []}
        while True:
            with contextlib.suppress(ParamServerError):
                status = await self._controls[model].call("status", ASK_TIMEOUT_S)
                late = sorted(r for r, c in status["replicas"].items() if c["control"] < control)
                done = not late if complete is None else status[complete]
                out = {"complete": done, "missing": [] if done else late}
                out["version"] = status["version"]
            if out["complete"] or self._monotonic_s() > deadline:
                return out
            await asyncio.sleep(_ACT_POLL_S)

    async def _command(self, model: str, question: str, *args: Any) -> Any:
        if who := acting.get():
            question, args = "asked_by", (who, question, *args)
        try:
            return await self._controls[model].call(question, _COMMAND_TIMEOUT_S, *args)
        except ParamServerError as error:
            raise refused(error) from None


def by_epoch(task: str, ends: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Rows judged and their score in each of the newest epochs, newest first.

    ``ends`` are totals at the ends of epochs.  The oldest one only gives the start of the next.  An
    epoch that a rollback took back has fewer rows than the one before, and is left out.
    """
    good = "abs_error" if task == "regression" else "correct"
    name = "mae" if task == "regression" else "accuracy"
    epochs: list[dict[str, Any]] = []
    before: Mapping[str, float] = {}
    for i, end in enumerate(ends):
        n = end.get("n", 0.0) - before.get("n", 0.0)
        if n > 0 and (i > 0 or end["epoch"] == 1):
            score = (end.get(good, 0.0) - before.get(good, 0.0)) / n
            epochs.append({"epoch": int(end["epoch"]), "n": int(n), name: score})
        before = end
    return epochs[::-1]


def _quality(replica: ModelReplica) -> dict[str, Any]:
    """Prequential metrics of all learned events, with their baselines."""
    tally = replica.learner.tally
    quality: dict[str, Any] = asdict(summary(replica.settings.task, tally.counters))
    if (choices := choices_in(tally.views)) is not None:
        quality |= choices.rules()
    return quality


def _kept(replica: ModelReplica) -> dict[str, Any] | None:
    """Return the state of this replica's rehearsal memory; None if there is none."""
    if (memory := replica.learner.memory) is None:
        return None
    return {
        "policy": replica.settings.replay.policy,
        "capacity": memory.buffer.capacity,
        "kept": len(memory.buffer),
        "seen": memory.seen,
        "replayed": memory.replayed,
        **memory.shares(),
    }


def _summary(view: Calibration | Confidence | Slices | None) -> dict[str, Any] | None:
    """Return a view's summary for display; None: it is not enabled."""
    return None if view is None else view.summary()


def _choices(replica: ModelReplica) -> dict[str, Any] | None:
    """Return the outcomes of choices; None: the model makes none."""
    choices = choices_in(replica.learner.tally.views)
    return None if choices is None else {"answers": answering(replica), **choices.summary()}


def _filters(replica: ModelReplica) -> dict[str, Any] | None:
    """Return the state of this replica's filters; None if nothing is judged."""
    return None if replica.filters is None else replica.filters.summary()


def _example(replica: ModelReplica) -> dict[str, Any] | None:
    """Return an example request from known rows or, before the first row, from the schema."""
    if replica.judge is not None and (known := replica.judge.example) is not None:
        return known
    if (schema := schema_of(replica.settings)) is None:
        return None
    return {"features": schema.example(), "label": None}


def _influence(replica: ModelReplica) -> dict[str, float] | None:
    """Return how much each feature's contribution varies over recent rows, the largest first.

    The measure is the mean distance from the feature's mean contribution, in log odds of the
    positive label or in the target's unit.  None: the model does not add up features, or nothing
    was learned here yet.
    """
    task, rows = replica.settings.task, list(replica.judge.sample) if replica.judge else []
    if not rows or task == "multiclass":
        return None
    model = replica.learner.serving
    label = True if task == "binary" else None
    added: list[dict[str, float]] = []
    for row in rows:
        if len(row) > _INFLUENCE_NAMES or (terms := terms_of(model, row, label)) is None:
            return None
        added.append(terms.added)
    influence: dict[str, float] = {}
    for name in {name for one in added for name in one}:
        values = [one.get(name, 0.0) for one in added]
        mean = sum(values) / len(values)
        influence[name] = sum(abs(value - mean) for value in values) / len(values)
    largest = sorted(influence, key=lambda name: (-influence[name], name))[:_INFLUENCE_SHOWN]
    return {name: influence[name] for name in largest}


def _drift(
    replica: ModelReplica, reports: Mapping[str, Mapping[str, float]]
) -> dict[str, Any] | None:
    """Return the reports of all replicas' drift judges; None if there are none.

    A label may arrive at another replica than its prediction did, so with several replicas the
    number of answers still without a label is unknown.
    """
    if replica.judge is None:
        return None
    drift = replica.judge.summary()
    if len(reports) > 1:
        drift = {**drift, "without_labels": None}
    fresh = {replica.replica: {**reports.get(replica.replica, {}), **replica.judge.report()}}
    return of_all(replica.replica, drift, {**reports, **fresh})


def _failed(rewrites: Mapping[str, Any] | None, learned: int) -> str | None:
    """Return the incident of a model that has raised at every event; otherwise None."""
    if rewrites is None or learned or not (failed := rewrites["failed"]):
        return None
    return (
        f"it has learned nothing: {failed:,} events failed, the newest: {rewrites['failed_reason']}"
    )
