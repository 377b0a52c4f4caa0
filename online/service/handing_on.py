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

from online.challenger import promotion
from online.errors import OnlineError, StartRefused
from online.models.loaded import Loaded
from online.models.loading.from_settings import load_model
from online.rebuild import reshard
from online.rows.prediction_ids import Keys
from online.service import parameter_servers
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

_SNAPSHOTS: Final = 2  # are asked for; if they are of other rows the newest cut that there is does
_SNAPSHOT_S: Final = 60.0  # for one of them; of a large table it may take longer
_DECIDED_S: Final = 60.0  # until what was begun before the wish is decided
_LOOKS: Final = 20  # whether the others have published theirs
_PAUSE_S: Final = 0.1
_NOTES: Final = 20  # if others write rows at the same time
_TRIES: Final = 5  # if the journal does not answer
_TRY_S: Final = 1.0


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
            seq, wish = found
            try:
                done = _handed_on(journal, settings, model, specs[model.name], seq, wish)
            except (OnlineError, ParamServerError, OSError) as error:
                with contextlib.suppress(StartRefused):  # it was withdrawn, or another is wished
                    reshard.note(journal, model.name, reshard.failed(wish, model.shards), seq)
                if journal.lineages(model.name)[-1] != specs[model.name]:
                    # The other one has begun: only the newest lineage's rows are ever trimmed.
                    begin_epoch(journal, Lineage(model.name, specs[model.name], "", "sum"))
                if isinstance(error, OnlineError):
                    raise
                raise StartRefused(f"model {model.name}: {error}", "Ask again") from error
            progress(str(done))


def _handed_on(
    journal: Journal, settings: Settings, before: ModelSettings, spec: str, seq: int, wish: Reshard
) -> reshard.Resharded:
    model = before.made_as({"shards": wish.shards})
    keys = Keys.from_file(settings.key_path)
    loaded = load_model(model, settings, keys.secret, keys.old_secrets)
    _have_cut(journal, settings, before, spec)
    specs = reshard.specs_of(before, settings)
    if resharding.newest(journal.controls(model.name, seq), wish.spec, done=False) is not None:
        problem = f"model {model.name}: other parameter servers were wished, and no longer are"
        raise StartRefused(problem, "What serves goes on")
    said = reshard.saying(specs, wish.given, before.shards, wish.shards, done=True, why=wish.why)
    return reshard.reshard(journal, settings, model, loaded, before.shards, said, seq)


def _have_cut(journal: Journal, settings: Settings, model: ModelSettings, spec: str) -> None:
    """Have the servers publish snapshots of the same rows, if they can.

    Whoever has decided what it had begun before the wish decides nothing more; who does not say so
    is superseded, and not who writes a large table for long: no other is asked for beside that.
    """
    if not parameter_servers.has_decided(model.name, spec, _DECIDED_S):
        begin_epoch(journal, Lineage(model.name, spec, "", "sum"))
    for _ in range(_SNAPSHOTS):
        parameter_servers.publishes(model.name, spec, _SNAPSHOT_S)
        for _ in range(_LOOKS):
            if is_cut(settings, model, spec):
                return
            time.sleep(_PAUSE_S)


def _fail(journal: Journal, model: ModelSettings, wish: Reshard, back: int) -> None:
    for left in reversed(range(_NOTES)):
        try:
            reshard.note(journal, model.name, reshard.failed(wish, back))
            return
        except StartRefused:
            if not left:
                raise


def take_all_back(journal: Journal, specs: Mapping[str, str], was: Settings) -> None:
    """Let what served before stand, promoted models and numbers of servers.

    ``specs``: those that served.  A journal that does not answer is asked again for some seconds.

    Raises ReplayError: it does not answer still.
    """
    for left in reversed(range(_TRIES)):
        try:
            promotion.take_back_all(journal, specs)
            take_back(journal, was)
            return
        except ReplayError:
            if not left:
                raise
            time.sleep(_TRY_S)


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
