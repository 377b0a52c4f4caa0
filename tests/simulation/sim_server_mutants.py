"""Rules of the server, of snapshots and of what rewrites a model, taken out one by one."""

from __future__ import annotations

from sim_mutant import OLDER, STEADY, SYNC_OFTEN, Mutant, only

_JOURNAL = "replay.journal.sqlite.journal"
_SERVER = "paramserver.core.server"
_PUBLISHING = "paramserver.process.publishing"
_STORE = "paramserver.snapshots.store"
_LINEAGE = "paramserver.process.lineage"
_REWRITES = "paramserver.core.rewrites"
_TRIMMING = "paramserver.process.trimming"
_ASIDE = "paramserver.process.aside"
_HISTORY = "paramserver.snapshots.history"
_REBUILD = "online.rebuild.rebuild"
_PEERS = "online.replica.peers"
_RELEARNING = "online.rebuild.relearn"
_SHORTFALL = "paramserver.process.shortfall"
_ACCEPTANCE = "online.rebuild.acceptance"
_NOTED = "                with running.lock:\n                    server.note_durable(state)\n"
_FSYNC = "            self._disk.fsync(temporary)\n"

SERVER_MUTANTS: dict[str, Mutant] = {
    "a snapshot shares what is pushed later": Mutant(
        ((_SERVER, "        _unshare(self.values, self._shared, delta)\n", ""),),
        climate=only(
            "kill server",
            "kill head",
            "cancel",
            "clock",
            **SYNC_OFTEN,
            **STEADY,
            snapshot_s=0.1,
            busy=1.0,
            busy_s=0.3,
            updates=1,
            rows_max=1,
            ongoing_max=256,
        ),
        within=60,
        begin=4,
    ),
    "the head is moved by whoever wants to": Mutant(
        (
            (
                _JOURNAL,
                "change = _check_epoch(db, model, spec, epoch)[spec][1]",
                "head, change = _heads(db, model)[spec]; epoch = head.epoch",
            ),
        ),
        climate=only("second server", "slow disk", **SYNC_OFTEN, **STEADY, snapshot_s=0.1, keep=4),
        within=60,
        begin=5,
    ),
    "durable is told before the head is moved": Mutant(
        (
            (_PUBLISHING, _NOTED, ""),
            (
                _PUBLISHING,
                "            if state is not None:\n                try:\n",
                "            if state is not None:\n                server.note_durable(state)\n"
                "                try:\n",
            ),
        ),
        climate=only("kill server", "bad disk", "kill in a step", sync_ms=20.0, snapshot_s=0.1),
        within=40,
    ),
    "a snapshot's bytes are not synced": Mutant(((_STORE, _FSYNC, ""),), within=40, begin=5),
    "a snapshot's name is not synced": Mutant(
        (
            (
                _STORE,
                "            raise\n        self._disk.fsync_directory(self._path)\n",
                "            raise\n",
            ),
        ),
        within=40,
        begin=5,
    ),
    "a closed partition begins again": Mutant(
        ((_SERVER, "            if partition in self.closed:\n", "            if False:\n"),),
        within=160,
        begin=137,
    ),
    "control rows are not replayed": Mutant(
        (
            (
                _LINEAGE,
                "after = [control for control in controls if control.seq > base.control]",
                "after: list[ControlInfo] = []",
            ),
        ),
        climate=only("rollback", "freeze", "kill server", snapshot_s=0.5),
        within=50,
        begin=15,
    ),
    "a rollback takes the clock back": Mutant(
        (
            (
                _REWRITES,
                "max(now.clock.get(p, 0), target.clock.get(p, 0))",
                "target.clock.get(p, 0)",
            ),
        ),
        climate=only("rollback", "kill server", snapshot_s=0.1),
        within=10,
    ),
    "what is forgotten is learned all the same": Mutant(
        (
            (
                _REBUILD,
                "if counts and (self._wanted.meant(row) or row.key in self._late):",
                "if False:",
            ),
        ),
        climate=only(forgets=True),
        within=20,
    ),
    "a forget takes the clock of the values": Mutant(
        (
            (
                _ASIDE,
                "sorted(built.clock.items()) if p not in closed",
                "sorted(now.clock.items()) if p not in closed",
            ),
        ),
        climate=only(**STEADY, forgets=True, sync_ms=20.0),
        within=20,
        begin=4,
    ),
    "a peer gives its local model": Mutant(
        (
            (
                _PEERS,
                "values, learner.version",
                "learner._cut() or learner._pulled.with_deltas("
                "learner._deltas.pending(learner.clock)), learner.version",
            ),
        ),
        climate=only(
            "kill replica",
            **STEADY,
            peers=True,
            sync_ms=300.0,
            updates=64,
            fault_s=1.5,
            hasty=0.2,
            lease_s=0.5,
            feedback_wait_s=10.0,
        ),
        within=150,
        begin=44,
    ),
    "a relearn learns what it leaves behind": Mutant(
        (
            (_RELEARNING, "sources, dict(window.clock)", "sources, {}"),
            (_RELEARNING, "window.after, max(window.rows", "0, max(window.rows"),
        ),
        climate=only(forgets=True, relearns=1.0),
        within=20,
    ),
    "rows go by the wall clock alone": Mutant(
        ((_TRIMMING, '"ran": self._ran_ms - 1000 * least_s', '"ran": float("inf")'),),
        climate=only("kill replica", "lost answers", ahead=True, twice=False, snapshot_s=0.1),
        within=60,
    ),
    "a start removes the state that a forget names": Mutant(
        ((_HISTORY, "for name in asides.difference(held):", "for name in asides:"),),
        climate=only("kill server", forgets=True),
        within=60,
        begin=7,
    ),
    "a journal that is older than snapshots starts": Mutant(
        ((_SHORTFALL, "    if missing:\n", "    if False:\n"),), climate=OLDER, within=60
    ),
    "an acceptance that was interrupted starts": Mutant(
        ((_SHORTFALL, "    if unfinished(controls, state.spec):\n", "    if False:\n"),),
        climate=OLDER,
        within=400,
        begin=64,
    ),
    "epochs go on where the older journal's end": Mutant(
        ((_ACCEPTANCE, "<= epochs[1]:", "<= epochs[0]:"),), climate=OLDER, within=60, begin=15
    ),
}
