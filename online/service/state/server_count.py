"""Changes the number of a model's parameter servers, at a start or while the service answers.

In the second case the request is a control row of the journal.  The running servers publish
snapshots of the same rows; the lineage with the new number of servers begins from these
(:mod:`online.rebuild.reshard`), and the service switches to it as to a promoted model.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Final

from online.challenger import promotion
from online.errors import OnlineError, StartRefused
from online.models.loaded import Loaded
from online.models.loading.from_settings import load_model
from online.rebuild import reshard
from online.rows.prediction_ids import Keys
from online.service.state import parameter_servers
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import open_journal
from online.settings.whole import is_cut
from paramserver.core import resharding
from paramserver.core.resharding import Reshard
from paramserver.errors import ParamServerError
from paramserver.process.lineage import Lineage, begin_epoch
from replay.errors import ReplayError
from replay.journal.base import Journal

_SNAPSHOTS: Final = 2  # attempts; if they differ in rows, the newest aligned set is used
_SNAPSHOT_S: Final = 60.0  # per snapshot; one of a large table may take longer
_DECIDED_S: Final = 60.0  # for decisions that began before the request
_LOOKS: Final = 20  # polls whether the other servers have published
_PAUSE_S: Final = 0.1
_NOTES: Final = 20  # attempts to write a control row while others write
_TRIES: Final = 5  # while the journal does not answer
_TRY_S: Final = 1.0


def at_start(
    journal: Journal,
    settings: Settings,
    model: ModelSettings,
    loaded: Loaded,
    progress: Callable[[str], None],
    again: bool,
) -> None:
    """Convert a model's learned state if it was served by another number of servers before.

    Parameters:
        again: The model begins anew or relearns the journal: only record the new number.

    Raises:
        StartRefused: The state can't be converted.
    """
    requested = any(map(resharding.is_request, journal.controls(model.name, 0)))
    if not requested and not set(journal.lineages(model.name)) - {loaded.spec_hash}:
        return
    specs = reshard.specs_of(model, settings)
    before, after = reshard.served(journal, model.name, specs), model.shards
    if before is None:
        return
    if before == after:
        _withdraw_interrupted(journal, model.name, next(iter(specs)))
        return
    said = reshard.saying(specs, after, before, after, done=True, why="settings")
    if again:
        reshard.note(journal, model.name, said)
        return
    seq = reshard.claim(journal, model.name, said)
    try:
        done = reshard.reshard(journal, settings, model, loaded, before, said, seq)
    except (OnlineError, ParamServerError, OSError):
        _withdraw_interrupted(journal, model.name, said.spec)
        _continue(journal, model.name, said.was)
        raise
    progress(str(done))


def _withdraw_interrupted(journal: Journal, model: str, spec: str) -> None:
    """Withdraw the request of a start that did not come to its end.

    Parameters:
        spec: Hash of the spec with one server.
    """
    pending = resharding.newest(journal.controls(model, 0), spec, done=False)
    if pending is not None and pending[1].why == "settings":
        with contextlib.suppress(StartRefused):  # somebody else has replaced it
            reshard.withdraw(journal, model, spec, pending[0])


def _continue(journal: Journal, model: str, spec: str) -> None:
    """Make the lineage that serves the newest one again: only that one's rows are ever trimmed."""
    if journal.lineages(model)[-1] != spec:
        begin_epoch(journal, Lineage(model, spec, "", "sum"))


def record_given(given: Settings, settings: Settings, journal: Journal) -> None:
    """Record in the journal that the settings file now names the number that a model already has.

    Only from then on does another number in the file count as a change.

    Parameters:
        given, settings: As in the file; as they are served.
    """
    for said, model in zip(given.models, settings.models, strict=True):
        controls = journal.controls(model.name, 0)
        if all(control.kind != resharding.RESHARD for control in controls):
            continue
        specs = reshard.specs_of(model, settings)
        one = next(iter(specs))
        recorded = resharding.newest(controls, one, done=True)
        newest, n = resharding.newest(controls, one, done=False), said.shards
        if recorded is None or newest is None or n != recorded[1].shards:
            continue
        if n not in (recorded[1].given, newest[1].given):  # a pending request may say it already
            now = reshard.saying(specs, n, n, n, done=True, why="settings")
            reshard.note(journal, model.name, now)


def reject_requests(settings: Settings, journal: Journal) -> None:
    """Reject pending requests that a service without its own owner process can't fulfil.

    Parameters:
        settings: As they are served.
    """
    for model in settings.models:
        controls = journal.controls(model.name, 0)
        if any(map(resharding.is_request, controls)):
            one = next(iter(reshard.specs_of(model, settings)))
            pending = resharding.newest(controls, one, done=False)
            if pending is not None and not pending[1].done:
                _fail(journal, model, pending[1], pending[1].before)


def reshard_pending(
    settings: Settings, specs: Mapping[str, str], progress: Callable[[str], None]
) -> None:
    """Begin the lineages with the requested numbers of servers.

    Parameters:
        settings, specs: The settings and specs that are served now.

    Raises:
        StartRefused: A request can't be fulfilled; it is answered, and the service goes on.
        ReplayError: The journal does not answer; the request is still pending.
    """
    with contextlib.closing(open_journal(settings)) as journal:
        for model in settings.models:
            controls = journal.controls(model.name, 0)
            if not any(map(resharding.is_request, controls)):
                continue
            one = next(iter(reshard.specs_of(model, settings)))
            pending = resharding.newest(controls, one, done=False)
            if pending is None or pending[1].done or pending[1].shards == model.shards:
                continue
            seq, request = pending
            try:
                done = _resharded(journal, settings, model, specs[model.name], seq, request)
            except (OnlineError, ParamServerError, OSError) as error:
                with contextlib.suppress(StartRefused):  # withdrawn, or replaced by another request
                    reshard.note(journal, model.name, reshard.failed(request, model.shards), seq)
                _continue(journal, model.name, specs[model.name])
                if isinstance(error, OnlineError):
                    raise
                raise StartRefused(f"model {model.name}: {error}", "Try again") from error
            progress(str(done))


def _resharded(
    journal: Journal,
    settings: Settings,
    before: ModelSettings,
    spec: str,
    seq: int,
    request: Reshard,
) -> reshard.Resharded:
    model = before.made_as({"shards": request.shards})
    keys = Keys.from_file(settings.key_path)
    loaded = load_model(model, settings, keys.secret, keys.old_secrets)
    _publish_aligned(journal, settings, before, spec)
    specs = reshard.specs_of(before, settings)
    if resharding.newest(journal.controls(model.name, seq), request.spec, done=False) is not None:
        problem = f"model {model.name}: the request for other parameter servers was withdrawn"
        raise StartRefused(problem, "The present ones go on")
    now = reshard.saying(
        specs, request.given, before.shards, request.shards, done=True, why=request.why
    )
    return reshard.reshard(journal, settings, model, loaded, before.shards, now, seq)


def _publish_aligned(journal: Journal, settings: Settings, model: ModelSettings, spec: str) -> None:
    """Have the servers publish snapshots of the same rows, if they can.

    A server that confirms has completed all decisions from before the request and begins no new
    ones.  One that does not confirm is superseded by a new epoch.  A server that takes long to
    write a large table is not superseded: a further snapshot would be requested beside that one.
    """
    if not parameter_servers.has_decided(model.name, spec, _DECIDED_S):
        begin_epoch(journal, Lineage(model.name, spec, "", "sum"))
    for _ in range(_SNAPSHOTS):
        parameter_servers.publishes(model.name, spec, _SNAPSHOT_S)
        for _ in range(_LOOKS):
            if is_cut(settings, model, spec):
                return
            time.sleep(_PAUSE_S)


def _fail(journal: Journal, model: ModelSettings, request: Reshard, back: int) -> None:
    for left in reversed(range(_NOTES)):
        try:
            reshard.note(journal, model.name, reshard.failed(request, back))
            return
        except StartRefused:
            if not left:
                raise


def revert_all(journal: Journal, specs: Mapping[str, str], was: Settings) -> None:
    """Make what was served before valid again: models and numbers of servers.

    Parameters:
        specs: The specs that were served.

    Raises:
        ReplayError: The journal has not answered for some seconds.
    """
    for left in reversed(range(_TRIES)):
        try:
            promotion.take_back_all(journal, specs)
            revert(journal, was)
            return
        except ReplayError:
            if not left:
                raise
            time.sleep(_TRY_S)


def revert(journal: Journal, was: Settings) -> None:
    """Revert to the numbers of servers from before: the new lineages can't be served."""
    for model in was.models:
        controls = journal.controls(model.name, 0)
        if all(control.kind != resharding.RESHARD for control in controls):
            continue
        one = next(iter(reshard.specs_of(model, was)))
        done = resharding.newest(controls, one, done=True)
        if done is not None and done[1].shards != model.shards:
            _fail(journal, model, done[1], model.shards)
