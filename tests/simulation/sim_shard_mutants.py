"""Rules of several parameter servers of one model, taken out one by one.

Not here, for a ledger's delta is the same on any values, and rows are rarely old: *a push has the
epoch of each shard that its replica knows*, *no reply is made of shards of which some have taken a
decision in*, *rows stay until all shards have them*, *no answer counts twice what one shard has*,
*a delta ends where a shard stands*.  They are in ``tests/unit/paramserver/core/test_shards.py`` and
``tests/unit/learning/test_lagging_shard.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim_mutant import STEADY, SYNC_OFTEN, Mutant, only

_APART = "online.learning.shard_divergence"
_MERGED = "online.learning.merged"
_CLIENT = "paramserver.clients.sharded_client"
_SHARING = "paramserver.process.sharing"
_FOLLOWING = "paramserver.process.following"
_LINEAGE = "paramserver.process.lineage"
_PUBLISHING = "paramserver.process.publishing"

TWO: Mapping[str, Any] = only(
    "kill server", "kill replica", "kill all", "bad weather",
    **SYNC_OFTEN, **STEADY, shards=2, snapshot_s=0.5, rows_max=3, lease_s=0.5,
)  # fmt: skip
DECIDED: Mapping[str, Any] = only(
    "rollback", "kill server", "kill replica", "cut", "bad weather",
    **SYNC_OFTEN, **STEADY, shards=2, snapshot_s=0.1,
)  # fmt: skip

RESHARDED: Mapping[str, Any] = only(
    "kill server", "kill replica", "kill all", "power cut", "bad weather", "cut", "second server",
    "pause server", "kill in a step", "lost answers",
    **SYNC_OFTEN, **STEADY, shards=2, snapshot_s=0.1, reshards=True, forgets=False,
)  # fmt: skip

RESHARDED_AND_DECIDED: Mapping[str, Any] = only(
    "kill server", "kill replica", "bad weather", "rollback", "cut",
    **SYNC_OFTEN, **STEADY, shards=2, snapshot_s=0.1, reshards=True, forgets=False,
)  # fmt: skip

BY_SETTINGS: Mapping[str, Any] = only(
    "kill server", "kill replica", "second server", "bad weather", "rollback", "kill in a step",
    **SYNC_OFTEN, **STEADY, shards=2, snapshot_s=0.1, reshards=True, by_settings=True,
    forgets=False, twice=True, old=0.7,
)  # fmt: skip

TRIMMED: Mapping[str, Any] = {
    **BY_SETTINGS,
    "faults": BY_SETTINGS["faults"] - {"rollback"},
    "old_s": 2.5,
    "feedback_wait_s": 0.5,
    "keep": 1,
}
"""Rows become old, and are removed, while the number of servers changes."""

SHARD_MUTANTS: dict[str, Mutant] = {
    "one shard's clock stands for another's": Mutant(
        ((_APART, "if clock.get(p, 0) < last]", "]"),), climate=TWO
    ),
    "what the best shard has is in all": Mutant(
        (
            (
                _CLIENT,
                "p: min(clock.get(p, 0) for clock in clocks)",
                "p: max(clock.get(p, 0) for clock in clocks)",
            ),
        ),
        climate=TWO,
    ),
    "learning again begins at the highest clock": Mutant(
        (
            (
                _MERGED,
                "            restart = self.clock.get(partition, 0) + 1\n",
                "            restart = max(self.clock.get(partition, 0), self._ahead(partition))"
                " + 1\n",
            ),
        ),
        climate=TWO,
        begin=17,
    ),
    "a shard keeps its clock beyond a decision": Mutant(
        (
            (
                _FOLLOWING,
                "self._running.switch_to(state, server.rule, epoch)",
                "object.__setattr__(state, 'clock', {p: max(server.clock.get(p, 0), "
                "state.clock.get(p, 0)) for p in {*server.clock, *state.clock}})\n"
                "                self._running.switch_to(state, server.rule, epoch)",
            ),
        ),
        climate=DECIDED,
        begin=10,
    ),
    "a rollback takes any snapshot of another shard": Mutant(
        ((_SHARING, "if one.control == control and self._of(one) == dict(rows):", "if True:"),),
        climate=DECIDED,
        begin=3,
    ),
    "another number of servers begins with any snapshots": Mutant(
        (("paramserver.process.aligned", "if (had.control, had.rows(ends)) == wanted)", ")"),),
        climate=RESHARDED, begin=4,
    ),
    "another number of servers begins before what it has": Mutant(
        (
            (
                "online.rebuild.reshard",
                "        replayed(state, after, _none),\n",
                "        replace(replayed(state, after, _none), clock={}),\n",
            ),
        ),
        climate=RESHARDED, begin=4,
    ),
    "who makes way for another number of servers decides": Mutant(
        ((_LINEAGE, "    if handed_on(known, server.spec):\n", "    if False:\n"),),
        climate=RESHARDED_AND_DECIDED,
        within=120,
        begin=27,
    ),
    "a start with another number does not ask": Mutant(
        (
            (
                "online.rebuild.reshard",
                "    seq = record_request(journal, model, msgspec.structs.replace(entry, "
                "given=given, done=False))\n"
                "    begin_epoch(journal, Lineage(model, entry.was, \"\", \"sum\"))\n",
                "    seq = given = None\n",
            ),
        ),
        climate=BY_SETTINGS, begin=11,
    ),
    "a server that is replaced removes rows": Mutant(
        ((_PUBLISHING, "if handed_on(store.controls(model, 0), spec):", "if False:"),),
        climate=TRIMMED,
        within=200,
        begin=67,
    ),
    "what one shard has closed is nothing": Mutant(
        (
            (
                _SHARING,
                "        if self._shard is None or not reply.closed:\n",
                "        if True:\n",
            ),
        ),
        climate=TWO,
    ),
}  # fmt: skip
