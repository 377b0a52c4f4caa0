"""Which model serves: that of the settings file, or one that was promoted since.

A promotion is a control row of the journal.  So it survives a restart with an unchanged settings
file, until the file names a third model or the journal is relearned (``--relearn``, ``--fresh``).
The model that served before becomes the challenger and may be promoted back.

A model keeps the defaults of the version that created it.  If an operator has decided so
(:mod:`paramserver.core.standing_decisions`), a challenger with the present defaults learns beside
it, and may be promoted as any other.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from online.errors import RequestError, StartRefused
from online.models.loading.from_settings import PLAIN_SCALE, SCALED, TODAYS_SCALE, load_model
from online.rows.prediction_ids import Keys
from online.settings.config import EMBEDDED, Settings
from online.settings.model import Challenge, ModelSettings
from online.settings.places import open_journal
from paramserver.core import resharding, rewrites
from paramserver.core.rewrites import Promote
from paramserver.core.standing_decisions import UPGRADE, Upgrade, newest
from replay.journal.base import Control, Journal


@dataclass(frozen=True, slots=True)
class _Past:
    """A model's history in the journal: it tells whether an unnamed scaler means the old default.

    Attributes:
        lineages: Specs of all lineages that ever had a server, including challengers.
        partitions: Specs of the models that served, one for each partition, in order.
        promotions: All promotions of the model, in order.
    """

    lineages: frozenset[str]
    partitions: Sequence[str]
    promotions: Sequence[Promote]

    @classmethod
    def of(cls, journal: Journal, model: str) -> _Past:
        controls = journal.controls(model, 0)
        return cls(
            frozenset(journal.lineages(model)),
            [partition.spec for partition in journal.partitions(model)],
            [
                msgspec.json.decode(control.payload, type=Promote)
                for control in controls
                if control.kind == rewrites.PROMOTE
            ],
        )

    def means(self, before: str, now: str) -> bool:
        """Return whether the model means ``before``; promotions between both are applied later."""
        pair = {before, now}
        if first := next((p for p in self.promotions if {p.before, p.after} == pair), None):
            return first.before == before
        if served := [spec for spec in self.partitions if spec in pair]:
            return served[-1] == before
        return before in self.lineages and now not in self.lineages


def as_served(
    settings: Settings, journal: Journal, *, running: bool = False
) -> tuple[Settings, list[str]]:
    """Return the settings with the models that serve, and lines of text about the differences.

    ``running`` is true for a service that runs already, not for one that starts with a file.

    Raises StartRefused if a promoted model has changed since.
    """
    models, lines = [], []
    for given in settings.models:
        past, controls = _Past.of(journal, given.name), journal.controls(given.name, 0)
        model = _as_born(settings, given, past)
        promoted = rewrites.promoted(controls)
        if model.params != given.params and promoted is None:
            lines.append(
                f"model {model.name}: goes on with `scale: plain`, as it began; `online models "
                f"upgrade {model.name}` has today's default learn beside it, and compares them"
            )
        beside = newest(controls, UPGRADE, Upgrade)
        if beside is not None and beside[1].on and settings.cluster != EMBEDDED:
            model = _beside(model)
        served = model if promoted is None else _served(settings, model, *promoted, past)
        if promoted is not None and served is not model:
            lines += _promotion_lines(model, served, promoted[0])
        cut = _as_cut(settings, served, controls, running=running)
        if cut.shards != served.shards:
            lines.append(
                f"model {cut.name}: has {cut.shards} parameter servers, as `online models reshard` "
                f"has decided; to make it permanent, write `shards: {cut.shards}`"
            )
        models.append(cut)
    return settings.model_copy(update={"models": tuple(models)}), lines


def as_stored(settings: Settings, *, running: bool = False) -> Settings:
    """Return the settings with the models that serve; unchanged if there is no journal yet."""
    if settings.journal == "sqlite" and not (settings.state_dir / "journal.db").exists():
        return settings  # opening the journal would create it
    with contextlib.closing(open_journal(settings)) as journal:
        return as_served(settings, journal, running=running)[0]


def _as_cut(
    settings: Settings, model: ModelSettings, controls: Sequence[Control], *, running: bool
) -> ModelSettings:
    """Return the model with the number of parameter servers that was decided by a reshard."""
    if all(control.kind != resharding.RESHARD for control in controls):
        return model
    spec = _spec(settings, model.model_copy(update={"shards": 1}))
    shards = resharding.decided(controls, spec, model.shards, running=running)
    return model.model_copy(update={"shards": shards})


def _beside(model: ModelSettings) -> ModelSettings:
    """Add a challenger with the present defaults, unless the file names another one."""
    todays = of_today(model)
    if model.challenger is not None or todays is None:
        return model
    return model.model_copy(update={"challenger": todays})


def of_today(model: ModelSettings) -> Challenge | None:
    """Return the model with the present defaults; None if it has them or chose its own."""
    chosen = model.learner not in SCALED or bool(model.params.get("ids"))  # its default is fixed
    if chosen or model.params.get("scale") != PLAIN_SCALE:
        return None
    made = model.made_of()
    return Challenge.model_validate({**made, "params": {**model.params, "scale": TODAYS_SCALE}})


def _as_born(settings: Settings, model: ModelSettings, past: _Past) -> ModelSettings:
    """Return the model and its challenger with the defaults of when their lineages began.

    A changed default applies to new lineages only, so that existing state stays valid.
    """
    challenger, params = model.challenger, _born(settings, model, past)
    if challenger is not None and (challenging := model.challenging) is not None:
        own = _born(settings, challenging, past)
        if own != challenger.params:
            challenger = challenger.model_copy(update={"params": own})
    if params == model.params and challenger is model.challenger:
        return model
    return model.model_copy(update={"params": params, "challenger": challenger})


def _born(settings: Settings, model: ModelSettings, past: _Past) -> dict[str, Any]:
    """Return the parameters, with the old default scaler if existing state was built with it."""
    if model.learner not in SCALED or "scale" in model.params or not past.lineages:
        return model.params
    plain = {**model.params, "scale": PLAIN_SCALE}
    before = _spec(settings, model.model_copy(update={"params": plain}))
    if before in past.lineages and past.means(before, _spec(settings, model)):
        return plain
    return model.params


def _served(
    settings: Settings, model: ModelSettings, seq: int, note: Promote, past: _Past
) -> ModelSettings:
    spec = _spec(settings, model)
    if spec != note.before:
        return model  # the file names the promoted model, or a third one
    challenger = model.challenger
    if challenger is not None and spec_of_challenger(settings, model) == note.after:
        parts = {**challenger.model_dump(mode="json"), **note.was}
        challenger = Challenge.model_validate(parts)
    served = model.made_as(note.now).model_copy(update={"challenger": None})
    served = _as_born(settings, served, past).model_copy(update={"challenger": challenger})
    if _spec(settings, served) != note.after:
        raise StartRefused(
            f"model {model.name}: {served.learner} was promoted (control row {seq}), and its code, "
            "artifact or libraries have changed since",
            "Put them back, or learn the journal again with the learner of the settings file: "
            "online serve --relearn",
        )
    return served


def spec_of_challenger(settings: Settings, model: ModelSettings) -> str | None:
    """Return the hash of the challenger's spec; None without a challenger."""
    challenging = model.challenging
    return None if challenging is None else _spec(settings, challenging)


def _spec(settings: Settings, model: ModelSettings) -> str:
    """Return the hash of a model's spec."""
    return load_model(model, settings, *Keys.stored(settings.key_path)).spec_hash


def _promotion_lines(model: ModelSettings, served: ModelSettings, seq: int) -> list[str]:
    parts = {"learner": served.learner, "params": json.dumps(served.params)}
    if served.artifact is not None:
        parts["artifact"] = str(served.artifact)
    permanent = ", ".join(f"{key}: {value}" for key, value in parts.items())
    return [
        f"model {model.name}: {served.learner} serves, promoted by control row {seq}; the settings "
        f"file says {model.learner}",
        f"model {model.name}: to make it permanent, write `{permanent}` into the settings file; "
        "`online promote --back` takes it back",
    ]


def follow_file(settings: Settings, journal: Journal) -> list[str]:
    """Take promotions back so that the models of the settings file serve; return lines of text.

    Must not be called while a service runs on the journal.
    """
    lines = []
    for model in settings.models:
        promoted = rewrites.promoted(journal.controls(model.name, 0))
        if promoted is None:
            continue
        spec = _spec(settings, _as_born(settings, model, _Past.of(journal, model.name)))
        if spec == promoted[1].before:
            take_back(journal, model.name, promoted[0], promoted[1], "settings")
            lines.append(f"model {model.name}: {model.learner} serves again, as the settings say")
    return lines


def take_back(journal: Journal, name: str, seq: int, note: Promote, why: str) -> None:
    """Write the control row by which the model before a promotion serves again."""
    epoch = 0  # if the promotion failed, no replica knows it, and the old server still runs
    if why == "settings":
        epoch = journal.head(name, note.after).epoch
        lift_epoch(journal, name, note.after, note.before)
    back = Promote(note.after, note.before, note.now, note.was, why, epoch=epoch)
    journal.write_control(
        name, rewrites.PROMOTE, f"{rewrites.PROMOTE}:{why}:{seq}", msgspec.json.encode(back)
    )


def take_back_all(journal: Journal, changed: Mapping[str, str]) -> None:
    """Take back promotions whose model does not start; ``changed`` has the old spec by model."""
    for name, spec in changed.items():
        promoted = rewrites.promoted(journal.controls(name, 0))
        if promoted is not None and promoted[1].before == spec:
            take_back(journal, name, promoted[0], promoted[1], "failed")


def lift_epoch(journal: Journal, name: str, before: str, after: str) -> None:
    """Raise the epoch of lineage ``after`` so that its versions are newer than ``before``'s."""
    last = journal.head(name, before).epoch
    while (epoch := journal.head(name, after).epoch) < last:
        journal.begin_epoch(name, after, epoch)


def upgrading(
    model: ModelSettings, challenger: Mapping[str, Any] | None, *, can: bool
) -> Challenge:
    """Return the challenger with the present defaults; it may exist already.

    Parameters:
        model: The served model.
        challenger: The model's present challenger, as in the status; None: it has none.
        can: Whether this service has processes for challengers.

    Raises RequestError 409.
    """
    if (todays := of_today(model)) is None:
        message = f"model {model.name} has today's defaults: nothing is to be upgraded"
        hint = "Name another learner in models[].challenger to compare it"
        raise RequestError(409, "nothing_to_upgrade", message, None, hint)
    if challenger is not None and challenger["params"] != todays.params:
        message = f"model {model.name} has a challenger already: {challenger['learner']}"
        raise RequestError(409, "has_challenger", message, None, "Take it out of the settings")
    if not can:
        message = "a challenger learns in a process of its own, and this service has one"
        raise RequestError(409, "one_process", message, None, "Start it with `online serve`")
    return todays


def decision(
    model: ModelSettings, before: str, after: str, why: str, evidence: Mapping[str, Any]
) -> bytes:
    """Encode the promotion of the model's challenger for the parameter server."""
    challenging = model.challenging
    assert challenging is not None
    note = Promote(before, after, model.made_of(), challenging.made_of(), why, dict(evidence))
    return msgspec.json.encode(note)
