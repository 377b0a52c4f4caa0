"""Rules that are taken out one by one, and how many seeds it takes to notice.

A mutant is texts that stand once in a module and what replaces them, or a machine that lies.

Of these rules no mutant is here, as others cover for each in the whole system:

* *A push of another epoch is refused*, *deltas are dropped at a rewrite.*  A ledger's delta is the
  same on any values, and contiguity alone keeps it from counting twice; models whose deltas depend
  on the values are in ``tests/properties``.
* *A gap is refused*, within an epoch: a replica sends an unbroken chain from a clock that the
  server has passed.  Without the rule above it is one of the mutants.
* *The log is synced when it is opened.*  Whoever opens it commits, and so syncs, before it answers.
* *After an I/O error the file is opened again.*  SQLite writes the frames of a failed commit again,
  and what all processes leave when they die then is synced when it is opened.
"""

from __future__ import annotations

from sim_choice_mutants import CHOICE_MUTANTS
from sim_label_mutants import LABEL_MUTANTS
from sim_mutant import STEADY, SYNC_OFTEN, Mutant, only
from sim_server_mutants import SERVER_MUTANTS
from sim_shard_mutants import SHARD_MUTANTS
from sim_table_mutants import TABLE_MUTANTS
from sim_world import Faulty

_APPEND = "replay.journal.sqlite.append"
_SCHEMA = "replay.journal.sqlite.schema"
_WRITER = "online.replica.writer"
_ANSWERS = "online.replica.answers"
_EXCHANGE = "online.replica.exchange"
_FOLLOWER = "online.replica.follower"
_LOCAL = "online.learning.local_model"
_LEARNER = "online.learning.merged"
_DELTAS = "online.learning.deltas"
_SERVER = "paramserver.core.server"
_ACTOR = "paramserver.process.actor"

_OWN = "if stored.partition != self._partition or stored.offset <= self._known:"
_NO_OVERLAP = "if push.first != clock + 1:"
_LOST = ("lost = self._broken()\n", "lost: Collection[int] = []\n")
_PREDICTED = (
    "            self._take([Row(0, self.partition, self.known + 1 + k, r.key, r.event_id,"
    " r.source, r.verdict, r.factor, r.payload, r.at) for k, r in enumerate(rows)])\n"
)
_EARLY = (
    "        if len(rows) == 1 and rows[0].key in getattr(self, 'early', ()):\n"
    "            r = rows[0]\n"
    "            place = (self.partition, self.known + 1 + self.early.index(r.key))\n"
    "            row = Row(0, *place, r.key, r.event_id, r.source, r.verdict, r.factor, r.payload,"
    " r.at)\n"
    "            now = self._learner.stamp\n"
    "            return [Recorded('learned', row, now, now, True)]\n"
)
_DECIDE_LATER = (
    "            plain = [msgspec.structs.replace(row, factor=1.0) for row in rows]\n"
    "            appended = await self._at.append(plain)\n"
    "            await self._store.write(self._decide, rows)\n"
    "            factors = {row.key: row.factor for row in rows}\n"
)
_DECIDE = (
    "    def _decide(self, rows: Sequence[NewRow]) -> None:\n"
    "        with self._store.journal._file.write() as db:\n"
    "            for row in rows:\n"
    "                decided = (row.factor, row.key)\n"
    "                db.execute('UPDATE rows SET factor = ? WHERE key = ?', decided)\n"
    "\n"
)
_FRESH = "fresh = [outcome.row for outcome in appended.outcomes if outcome.new and outcome.row]"
_BATCH = "        self.batch = batch\n        self.writing, self.judged_by ="
_LOSE = (
    "        gone = {r.key for w in self.batch if w.done.cancelled() for r in w.rows}\n"
    "        lost = {(r.partition, r.offset) for r in fresh if r.key in gone}\n"
    "        self.lost = lost.union(getattr(self, 'lost', ()))\n"
    "        self._take([r for r in fresh if r.key not in gone])\n"
)
_PASS_OVER = (
    "                while (partition, offset) in getattr(self._writer, 'lost', ()):\n"
    "                    offset += 1\n"
    "                    self._learner.tracks[partition].next = offset\n"
)
_RECORD = "        waiting = waiting_for(rows, examples, done, decided=decided)\n"


MUTANTS: dict[str, Mutant] = {
    "a commit is answered before it is synced": Mutant(
        faulty=Faulty(synchronous="OFF"), within=20, begin=3
    ),
    "a disk that syncs nothing": Mutant(faulty=Faulty(lying_disk=True), within=20, begin=3),
    "learned before the commit": Mutant(
        (
            (
                _WRITER,
                "            appended = await self._at.append(rows)\n",
                _PREDICTED + "            appended = await self._at.append(rows)\n",
            ),
        ),
        within=10,
    ),
    "a row is decided after it is written": Mutant(
        (
            (_WRITER, "            appended = await self._at.append(rows)\n", _DECIDE_LATER),
            (
                _WRITER,
                _FRESH,
                _FRESH.replace(
                    "[outcome.row",
                    "[msgspec.structs.replace(outcome.row, factor=factors[outcome.row.key])",
                ),
            ),
            (_WRITER, "    def _take(self", _DECIDE + "    def _take(self"),
        ),
        climate=only("kill replica", "slow disk", events=60, spread_s=3.0),
        within=40,
    ),
    "a duplicate is answered before the first is committed": Mutant(
        (
            (_WRITER, _RECORD, _EARLY + _RECORD),
            (
                _WRITER,
                "            appended = await self._at.append(rows)\n",
                "            self.early = [r.key for r in rows]\n"
                "            appended = await self._at.append(rows)\n",
            ),
        ),
        within=10,
    ),
    "a duplicate is answered before the first is learned": Mutant(
        (
            (
                _ANSWERS,
                "if row.partition == self._partition.number and self.add(",
                "if row.partition == -1 and self.add(",
            ),
        ),
        climate=only("bad weather", "lost answers", "clock", events=60, feedback_wait_s=0.5),
        within=80,
        begin=21,
    ),
    "a pass over several rows moves on by one": Mutant(
        (
            (
                _LEARNER,
                "        self.tracks[opened.partition].next += len(rows)\n",
                "        self.tracks[opened.partition].next += 1\n",
            ),
        ),
        climate=only("bad weather", events=80, spread_s=0.5),
        within=20,
    ),
    "only the first row of a pass is answered": Mutant(
        (
            (
                _ANSWERS,
                "        for row in rows:\n            own += 1\n",
                "        for row in rows[:1]:\n            own += 1\n",
            ),
            (_FOLLOWER, "answers.passed(track.next)", "answers.passed(0)"),  # it would answer
        ),
        climate=only("bad weather", events=80, spread_s=0.5),
        within=20,
    ),
    "no duplicates are known": Mutant(
        (
            (
                _SCHEMA,
                'UNIQUE (partition, "offset"), UNIQUE (model, key));',
                'UNIQUE (partition, "offset"));',
            ),
            (
                _APPEND,
                "record = self._db.execute(sql.BY_KEY, (self._model, key)).fetchone()",
                "record = None",
            ),
        ),
        within=10,
    ),
    "a seal does not stop the writer": Mutant(
        ((_APPEND, "        if state.sealed:\n", "        if False:\n"),), within=10, begin=6
    ),
    "a partition is adopted without a seal": Mutant(
        (
            (
                _EXCHANGE,
                "end = await self._store.write(self._store.journal.seal, partition)",
                "end = (await self._store.write(self._store.journal.partition, partition)).end",
            ),
        ),
        within=10,
    ),
    "offsets are given before duplicates are known": Mutant(
        (
            (
                _APPEND,
                "        if stored.partition != self._partition or stored",
                "        self.end += 1\n        if stored.partition != self._partition or stored",
            ),
        ),
        within=10,
    ),
    "an own row is called a duplicate": Mutant(
        ((_APPEND, _OWN, "if True:"),), climate=only("lost answers"), within=10
    ),
    "a cancelled handler's row is not learned": Mutant(
        (
            (_WRITER, "        self.writing, self.judged_by =", _BATCH),
            (_WRITER, "        self._take(fresh)\n", _LOSE),
            (
                _FOLLOWER,
                "                while committed and committed[0].offset < offset:\n",
                _PASS_OVER + "                while committed and committed[0].offset < offset:\n",
            ),
        ),
        climate=only("cancel"),
        within=10,
        begin=5,
    ),
    "who learns nothing adopts": Mutant(
        ((_EXCHANGE, "adopts=self._learns,", "adopts=True,"),),
        climate={"background": True},
        within=20,
    ),
    "a learner process begins at the first row": Mutant(
        (
            (
                _LOCAL,
                "self.tracks[partition] = Track(next=0, end=end, held=True)",
                "self.tracks[partition] = Track(next=1, end=end, held=end is not None)",
            ),
            (_LEARNER, *_LOST),
        ),
        climate={"background": True},
        within=20,
    ),
    "what failed is not taken back": Mutant(
        ((_LEARNER, "self._restore(example, lesson)", "pass"),), within=10
    ),
    "deltas over a broken chain are kept": Mutant(((_LEARNER, *_LOST),), within=15),
    "an acknowledged delta stays on top": Mutant(
        ((_DELTAS, "d.last > clock.get(d.partition, 0)", "True"), (_LEARNER, *_LOST)), within=10
    ),
    "replies of an older epoch are taken": Mutant(
        (
            (
                _LEARNER,
                "if (reply.epoch, reply.count) < max(self.version, (self.server.epoch, 0)):",
                "if reply.epoch == self.version[0] and reply.count < self.version[1]:",
            ),
        ),
        climate=only("second server", **STEADY, sync_ms=20.0, confirm_s=1.0),
        within=10,
    ),
    "the new copy answers at once": Mutant(
        ((_LEARNER, "if all(map(self._caught_up, self._targets)):", "if True:"),),
        within=100,
        begin=91,
    ),
    "counts of two epochs are compared": Mutant(
        (
            (_SERVER, "if since is None or since[0] != self.epoch:", "if since is None:"),
            (_LEARNER, "self.want_all or reply.epoch != self.version[0]", "self.want_all"),
        ),
        climate=only("kill server", "cut", **STEADY, snapshot_s=0.5, history=40),
        within=10,
    ),
    "the server takes an overlap": Mutant(
        ((_SERVER, _NO_OVERLAP, "if push.first > clock + 1:"),),
        climate=only(
            "stall",
            "slow disk",
            "pause replica",
            **{**SYNC_OFTEN, **STEADY, "sync_ms": 40.0, "spread_s": 1.0},
            hasty=0.2,
            rows_max=6,
            updates=3,
        ),
        within=160,
        begin=112,
    ),
    "the server takes a gap from another epoch": Mutant(
        (
            (_SERVER, _NO_OVERLAP, "if push.first < clock + 1:"),
            (_SERVER, "if push.epoch != self.epoch:", "if False:"),
        ),
        climate=only("kill server", "clock", **STEADY, snapshot_s=0.5, sync_ms=20.0),
        within=10,
    ),
    "the server takes a repeat": Mutant(
        (
            (_SERVER, "if push.last <= clock:", "if push.last < clock:"),
            (_SERVER, _NO_OVERLAP, "if push.first > clock + 1:"),
        ),
        within=10,
    ),
    "clock and values are read apart": Mutant(
        (
            (
                _ACTOR,
                "            acks = [server.push(push, self._lookup)",
                "            before = dict(server.clock)\n"
                "            acks = [server.push(push, self._lookup)",
            ),
            (
                _ACTOR,
                "            reply = server.reply(",
                "            server.clock, after = before, server.clock\n"
                "            reply = server.reply(",
            ),
            (
                _ACTOR,
                "            return wire.encode(self._sharing.with_ends(reply))",
                "            apart = wire.encode(self._sharing.with_ends(reply))",
            ),
            (
                _ACTOR,
                "    def _lookup(self",
                "            server.clock = after\n            return apart\n\n"
                "    def _lookup(self",
            ),
        ),
        within=10,
    ),
    **SERVER_MUTANTS,
    **LABEL_MUTANTS,
    **CHOICE_MUTANTS,
    **SHARD_MUTANTS,
    **TABLE_MUTANTS,
}
