"""Rules of replicas that hold a table in part, or read that of their host, taken out one by one.

Not here: *rows with own changes are not evicted*, because a row that comes again has the own deltas
on top of it, too; *no view is taken that is older than a dropped row*, because sums seldom return
to what they were; *none that is newer than the replica*, because it must come while a reply is
under way; *what a late request reports as dropped stays*, because that row must be requested again
and change meanwhile; *rows are passed only to replicas whose version the pieces reach*, because
replicas are seldom so far behind.  They are in ``tests/properties`` and ``tests/unit/replica``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim_mutant import STEADY, SYNC_OFTEN, Mutant, only

_CACHED = "online.learning.cached_rows"
_HOLDINGS = "paramserver.core.holdings"
_SHARED = "paramserver.process.shared_tables"
_HOST = "online.replica.host_tables"

CACHED: Mapping[str, Any] = only(
    "kill server", "kill replica", "stall", "bad weather", "rollback",
    **SYNC_OFTEN, **STEADY, cached=True, snapshot_s=0.1, history=3,
)  # fmt: skip
SHARED: Mapping[str, Any] = only(
    "kill server", "kill replica", "pause server", "bad weather", "rollback",
    **SYNC_OFTEN, **STEADY, shared=True, snapshot_s=0.5, history=40,
)  # fmt: skip

TABLE_MUTANTS: dict[str, Mutant] = {
    "rows that a replica has requested are not sent when they change": Mutant(
        (
            (
                _HOLDINGS,
                "            table.put(asked, np.zeros(",
                "            np.asarray(np.zeros(",
            ),
        ),
        climate=CACHED,
    ),
    "values are complete after the first rows that are held": Mutant(
        ((_CACHED, "return self._lacking - len(self._again)", "return 0"),), climate=CACHED
    ),
    "pages that replicas read are written to": Mutant(
        ((_SHARED, "{name: table.copy() for", "{name: table for"),), climate=SHARED
    ),
    "pages are used again while a replica reads them": Mutant(
        ((_SHARED, "if not one[0].remove_unread()]", "if one[0].remove_unread() and False]"),),
        climate=SHARED,
        begin=3,
    ),
    "rows that were overwritten count as unchanged": Mutant(
        (
            (
                _HOST,
                '            self.host = ""\n            return None\n',
                "            rows = {}\n",
            ),
        ),
        climate=SHARED,
    ),
}
