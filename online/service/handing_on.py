"""A model gets another number of parameter servers: at a start, or while it answers.

In the second case the wish stands in the journal already.  The servers that serve publish snapshots
of the same rows; from these the lineage with the other number begins
(:mod:`online.rebuild.reshard`), and the service goes over to it as to a model that was promoted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Final

from online.errors import OnlineError, StartRefused
from online.models.from_settings import load_model
from online.models.load import Loaded
from online.rebuild import reshard
from online.rows.prediction_ids import Keys
from online.service import parameter_servers
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import open_journal
from online.settings.whole import is_cut
from paramserver import resharding
from paramserver.errors import ParamServerError
from paramserver.lineage import Lineage, begin_epoch
from paramserver.resharding import Reshard
from replay.journal.base import Journal

_SNAPSHOTS: Final = 2  # are asked for; if they are of other rows the newest cut that there is does
_SNAPSHOT_S: Final = 60.0  # for one of them
_LOOKS: Final = 20  # whether the others have published theirs
_PAUSE_S: Final = 0.1
_NOTES: Final = 20  # if others write rows at the same time


def at_start(
    journal: Journal,
    settings: Settings,
    model: ModelSettings,
    loaded: Loaded,
    progress: Callable[[str], None],
    again: bool,
) -> None:
    """Let a model begin with what it had learned with another number of servers, if it had.

    ``again``: it begins anew, or learns the journal again; that is only noted.

    Raises StartRefused: what it had learned can't be handed on.
    """
    if not set(journal.lineages(model.name)) - {loaded.spec_hash}:
        return
    specs = reshard.specs_of(model, settings)
    before, after = reshard.served(journal, model.name, specs), model.shards
    if before is None or before == after:
        return
    said = reshard.saying(specs, after, before, after, done=True, why="settings")
    if again:
        reshard.note(journal, model.name, said)
    else:
        progress(str(reshard.reshard(journal, settings, model, loaded, before, said)))


def note_given(given: Settings, settings: Settings, journal: Journal) -> None:
    """Write down that the file says the number of servers by now that a model has already.

    Only from then on another number in the file is a change.

    Parameters:
        given, settings: As the file says; as they are served.
    """
    for said, model in zip(given.models, settings.models, strict=True):
        controls = journal.controls(model.name, 0)
        if all(control.kind != resharding.RESHARD for control in controls):
            continue
        one = next(iter(reshard.specs_of(model, settings)))
        found = resharding.newest(controls, one, done=True)
        newest, n = resharding.newest(controls, one, done=False), said.shards
        if found is None or newest is None or n != found[1].shards:
            continue
        if n not in (found[1].given, newest[1].given):  # a wish that stands may say it already
            now = Reshard(one, n, n, n, done=True, why="settings")
            reshard.note(journal, model.name, now)


def refuse_wishes(settings: Settings, journal: Journal) -> None:
    """Answer wishes from before that a service without a process of its own can't fulfil.

    ``settings``: as they are served.
    """
    for model in settings.models:
        controls = journal.controls(model.name, 0)
        if any(map(resharding.wished, controls)):
            one = next(iter(reshard.specs_of(model, settings)))
            found = resharding.newest(controls, one, done=False)
            if found is not None and not found[1].done:
                _fail(journal, model, found[1], model.shards)


def hand_on(settings: Settings, specs: Mapping[str, str], progress: Callable[[str], None]) -> None:
    """Let lineages begin that have the numbers of servers that are wished.

    Parameters:
        settings, specs: As they serve.

    Raises:
        StartRefused: One can't; the wish is answered then, and what serves goes on.
        ReplayError: The wish stands, and is to be looked at again.
    """
    with contextlib.closing(open_journal(settings)) as journal:
        for model in settings.models:
            controls = journal.controls(model.name, 0)
            if not any(map(resharding.wished, controls)):
                continue
            one = next(iter(reshard.specs_of(model, settings)))
            found = resharding.newest(controls, one, done=False)
            if found is None or found[1].done or found[1].shards == model.shards:
                continue
            wish = found[1]
            try:
                done = _handed_on(journal, settings, model, specs[model.name], wish)
            except (OnlineError, ParamServerError, OSError) as error:
                _fail(journal, model, wish, model.shards)
                if isinstance(error, OnlineError):
                    raise
                raise StartRefused(f"model {model.name}: {error}", "Ask again") from error
            progress(str(done))


def _handed_on(
    journal: Journal, settings: Settings, before: ModelSettings, spec: str, wish: Reshard
) -> reshard.Resharded:
    model = before.made_as({"shards": wish.shards})
    keys = Keys.from_file(settings.key_path)
    loaded = load_model(model, settings, keys.secret, keys.old_secrets)
    _have_cut(journal, settings, before, spec)
    specs = reshard.specs_of(before, settings)
    said = reshard.saying(specs, wish.given, before.shards, wish.shards, done=True, why=wish.why)
    return reshard.reshard(journal, settings, model, loaded, before.shards, said)


def _have_cut(journal: Journal, settings: Settings, model: ModelSettings, spec: str) -> None:
    """Have the servers publish snapshots of the same rows, if they can.

    A server of a large table takes long for one, so none is asked for beside another.  Who has
    answered decides nothing any more that it had begun before the wish; who has not is superseded.
    """
    for n in range(_SNAPSHOTS):
        if not parameter_servers.publishes(model.name, spec, _SNAPSHOT_S) and not n:
            begin_epoch(journal, Lineage(model.name, spec, "", "sum"))
        for _ in range(_LOOKS):
            if is_cut(settings, model, spec):
                return
            time.sleep(_PAUSE_S)


def _fail(journal: Journal, model: ModelSettings, wish: Reshard, back: int) -> None:
    said = Reshard(wish.spec, wish.given, wish.shards, back, True, "failed", wish.serves, wish.was)
    for left in reversed(range(_NOTES)):
        try:
            return reshard.note(journal, model.name, said)
        except StartRefused:
            if not left:
                raise
    return None


def take_back(journal: Journal, was: Settings) -> None:
    """Let the numbers of servers from before stand: those that have begun can't be served."""
    for model in was.models:
        controls = journal.controls(model.name, 0)
        if all(control.kind != resharding.RESHARD for control in controls):
            continue
        one = next(iter(reshard.specs_of(model, was)))
        found = resharding.newest(controls, one, done=True)
        if found is not None and found[1].shards != model.shards:
            _fail(journal, model, found[1], model.shards)
