"""Composes one model in one process from its settings: learner, filters, bounds and replica.

The caller provides the client of the parameter server and the way to start relearning.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from online.learning.base import BaseLearner
from online.learning.cached_rows import cache_for
from online.learning.merged import Learner
from online.learning.ordered import OrderedLearner
from online.learning.overlay import OverlayLearner
from online.models.loaded import Loaded
from online.models.loading.from_settings import built_for_pushes, merge_rule
from online.replica.host_tables import HostTables
from online.replica.memory_settings import memory_for
from online.replica.replica import ModelReplica
from online.replica.surroundings import Clocks, Identity, ParameterServerClient, Services
from online.service import processes
from online.settings.config import EMBEDDED, Settings
from online.settings.model import ModelSettings
from online.sure.views import calibration_in, views_of
from online.telemetry.trace import Crossing
from online.trust.filtering import filtering_for
from online.trust.root_set import RootSet, root_rows
from online.trust.trigger_watch import SearchResult
from online.watch.canary import Canary
from online.watch.on_rise import Relearn
from paramserver.clients.client import Client
from paramserver.core.server import MergeRule
from paramserver.snapshots.views import Views, lineage_folder
from replay.journal.base import Journal

_DECIDE_S: Final = 30.0  # for a decision that the server writes to the journal


def model_replica(
    model: ModelSettings,
    settings: Settings,
    loaded: Loaded,
    journal: Journal,
    replica: str,
    client: Client,
    *,
    for_others: bool = False,
    peers: ParameterServerClient | None = None,
    relearn: Relearn | None = None,
    search: Callable[[], Awaitable[SearchResult]] | None = None,
    crossing: Crossing | None = None,
) -> ModelReplica:
    """Build one model of the settings in this process; the merge rule determines its learner.

    Parameters:
        client: Client of the model's parameter server.
        for_others: It learns rows that other processes write.
        peers: Replicas from which a new one takes parameters while the server can't be reached.
        relearn, search, crossing: As in :class:`online.replica.surroundings.Services`.
    """
    limits = settings.limits
    rule = merge_rule(model, loaded.model)
    learns = for_others or learns_here(model, rule)
    learner = _learner(model, settings, loaded, for_others=for_others)
    learner.cache = cache_for(model.cache.rows, lambda: learner.serving)
    learner.tally.views = views_of(model)
    if (calibration := calibration_in(learner.tally.views)) is not None:
        learner.corrected = calibration.answered
    rows, root = root_rows(model, settings, numeric_only=loaded.model.numeric_only), None
    if rows and model.root_set is not None:
        root = RootSet(model.root_set, rows, lambda: learner.serving)
    filters = filtering_for(
        model, learner, root, sources_max=limits.sources_max, vouched=settings.tokens.vouched
    )
    learner.evidence.sources_max = limits.sources_max
    learner.bounds.on = model.filters != "none"
    learner.vocabulary.most = limits.names_max
    learner.vocabulary.share = limits.names_share
    learner.vocabulary.a_second = limits.names_s

    async def ask(question: str, *args: object) -> Any:
        return await client.call(question, _DECIDE_S, *args)

    outside = Services(
        journal, client,
        peers=peers,
        ask=ask if learns else None,
        relearn=relearn,
        search=search if learns else None,
        crossing=crossing,
        tables=_host_tables(model, settings, loaded, learner),
    )  # fmt: skip
    alone = settings.cluster == EMBEDDED
    return ModelReplica(
        model, limits, learner, Identity(replica, loaded.spec_hash, learns, alone), outside,
        clocks=Clocks(cpu_s=time.thread_time),
        filters=filters,
        canary=Canary(rows, lambda: learner.serving) if rows else None,
    )  # fmt: skip


def _host_tables(
    model: ModelSettings, settings: Settings, loaded: Loaded, learner: BaseLearner
) -> HostTables | None:
    """The tables that the model's server publishes on this host; None: it publishes none."""
    if not (model.sync.share_tables and isinstance(learner, Learner)):
        return None
    shared, spec = str(processes.shared_dir(settings.state_dir)), loaded.spec_hash
    views = Views(lineage_folder(shared, model.name, spec), spec)
    return HostTables(learner, views, time.monotonic)


def _learner(
    model: ModelSettings, settings: Settings, loaded: Loaded, *, for_others: bool
) -> BaseLearner:
    """Build the learner for the model's merge rule."""
    rows_max = max(model.sync.updates * 16, 1024)
    rule = merge_rule(model, loaded.model)
    whole: dict[str, Any] = {"task": model.task, "spec": loaded.spec_hash, "rows_max": rows_max}
    if rule == "ordered" or (rule in ("overlay", "lagging") and for_others):
        return OrderedLearner(loaded.build, **whole)
    if rule in ("overlay", "lagging"):
        return OverlayLearner(loaded.build, own_rows=rule == "overlay", **whole)
    learns = for_others or learns_here(model, rule)
    return Learner(
        built_for_pushes(model, loaded.build),
        retain_bytes=settings.limits.retain_mb << 20,
        compensates=settings.replicas_max > 1 and rule == "compensated",
        memory=memory_for(model, loaded.model, rule) if learns else None,
        **whole,
    )


def learns_here(model: ModelSettings, rule: MergeRule) -> bool:
    """Whether a replica itself learns the rows that it writes."""
    if rule in ("overlay", "lagging"):
        return rule == "overlay"
    return model.learn == "inline"


def swappable(model: ModelSettings, rule: MergeRule) -> bool:
    """Whether a replica can swap from or to this model without a restart of its process.

    It can't if the model is learned in order or by another process.
    """
    return rule not in ("ordered", "overlay", "lagging") and learns_here(model, rule)


def watches_decisions(model: ModelSettings) -> bool:
    """Whether the model's replicas watch the journal for a promotion or a resharding."""
    return model.challenger is not None or model.shards > 1
