"""The process of a challenger, without Ray: it follows the journal, learns and publishes.

It has a parameter server for its own lineage in the same process, which no other process uses.
Epoch, snapshots and clock are those of any model.  So the challenger continues after a restart, and
a promotion only means that another process serves its lineage.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from online.challenger.comparison import Challenger, ReadAhead, Standing
from online.models.loaded import Loaded
from online.rows.history import Decisions
from online.settings.config import Settings
from online.settings.model import Challenge, ModelSettings
from online.settings.places import history_of, retention_of, snapshots_path
from paramserver.core import rewrites, wire
from paramserver.core.admission import Keeper, TableBounds
from paramserver.core.state import SnapshotState
from paramserver.core.wire import FORMAT, OrderedState, SyncRequest
from paramserver.process.actor import Host, ParameterServer, ServerSettings
from paramserver.process.lineage import Lineage, begin_epoch, publish
from paramserver.snapshots.store import Disk
from replay.errors import ReplayError
from replay.example import Example
from replay.journal.base import Journal, Row

log = logging.getLogger(__name__)

PAGE_ROWS: Final = 256
_FOR_EVER_S: Final = 1e11  # only the champion's server removes rows
_LOOK_S: Final = 1.0  # seconds between two checks for decisions
_PARTS_MAX: Final = 1_000_000


class Shadow:
    """A challenger and its server on one journal, a step at a time.

    Parameters:
        model: The served model with its challenger.
        loaded: The challenger's model.
        journal: The journal that it follows.
        rival: Hash of the serving model's spec.
        now_s, monotonic_s: Wall clock (POSIX seconds) and monotonic clock.
        propose: Requests the promotion, given the comparison; called if ``promote`` is ``auto``.

    Attributes:
        decisions: Operators' decisions about the model's rows; set by :meth:`begin`.
        learner: The challenger's learner; set by :meth:`begin`.
        ahead: The rows read ahead; set by :meth:`begin`.
        superseded: Whether another process serves the lineage now.
        incident: Why it is not promoted automatically, for an operator; None: no incident.
        behind: Rows of the journal that are not learned yet.
        failed: Rows that could not be learned.
    """

    decisions: Decisions
    learner: Challenger
    ahead: ReadAhead

    def __init__(
        self,
        settings: Settings,
        model: ModelSettings,
        loaded: Loaded,
        journal: Journal,
        *,
        rival: str,
        now_s: Callable[[], float],
        monotonic_s: Callable[[], float],
        propose: Callable[[Standing], None],
    ) -> None:
        assert model.challenger is not None
        self._settings, self._model, self._loaded = settings, model, loaded
        self._given: Challenge = model.challenger
        self._journal, self._rival, self._propose = journal, rival, propose
        self._now_s, self._monotonic_s = now_s, monotonic_s
        self._server: ParameterServer | None = None
        self.superseded = False
        self.incident: str | None = None
        self.behind = 0
        self.failed = 0
        self._look_due_s = self._publish_due_s = 0.0
        self._cursor = 0

    # -- beginning ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Continue from the newest snapshot, or start at the journal's first row.

        Raises the errors of the journal, and RuntimeError if the lineage can't begin.
        """
        server = self._start_server()
        if not server.restore():
            why = server.status()["reason"]
            log.warning("challenger of %s: learns the journal again: %s", self._model.name, why)
            begin_anew(self._journal, self._settings, self._model.name, self._loaded)
            server = self._start_server()
            if not server.restore():
                raise RuntimeError(server.status()["reason"])
        self._server = server
        self.decisions = Decisions(self._loaded.spec_hash)
        self.decisions.read(self._journal, self._model.name)
        promoted = rewrites.promoted(self._journal.controls(self._model.name, 0))
        since = 0 if promoted is None else promoted[0]
        self._epoch = 0 if promoted is None else promoted[1].epoch
        self._taken_back = (
            promoted is not None
            and promoted[1].before == self._loaded.spec_hash
            and promoted[1].why in ("back", "failed")
        )
        self._partitions = {p.id: p for p in self._journal.partitions(self._model.name)}
        self.learner = Challenger(
            self._loaded.build,
            task=self._model.task,
            spec=self._loaded.spec_hash,
            rows_max=max(self._model.sync.updates * 16, 1024),
            rival=f"{self._rival[:16]}@{since}",
        )
        if (most := self._settings.limits.table_rows_max) is not None:
            self.learner.tables_keeper = Keeper(TableBounds(most), {})
        self.learner.undone = self.decisions.undone
        self.learner.untaught = self.decisions.lacks
        for _ in range(_PARTS_MAX):
            self._exchange(None)
            if not self.learner.catching_up:
                break
        self.ahead = ReadAhead(
            self.learner, self._given.delay, self._by_champion, self._sealed, self._alone
        )
        self._cursor = self.learner.position
        self._publish_due_s = self._monotonic_s() + self._model.snapshots.interval_s

    def _by_champion(self, row: Row, example: Example) -> bool:
        """Return whether the present champion answered the row.

        A replica also writes labels of answers that an earlier champion gave; these have an older
        epoch.
        """
        if row.partition not in self._partitions:
            self._partitions = {p.id: p for p in self._journal.partitions(self._model.name)}
        epoch = 0 if example.version is None else example.version[0]
        partition = self._partitions.get(row.partition)
        return partition is not None and partition.spec == self._rival and epoch > self._epoch

    def _sealed(self, partition: int) -> bool:
        """Return whether the partition was sealed when the list of partitions was last read.

        That was after the champion's answer.
        """
        known = self._partitions.get(partition)
        return known is not None and known.sealed

    def _alone(self) -> bool:
        """Return whether the champion has a single open partition, so a single replica."""
        return sum(p.spec == self._rival and not p.sealed for p in self._partitions.values()) < 2

    def _start_server(self) -> ParameterServer:
        loaded = self._loaded
        return ParameterServer(
            Lineage(self._model.name, loaded.spec_hash, loaded.spec_text, "ordered"),
            lambda: self._journal,
            snapshots_path(self._settings),
            ServerSettings(
                interval_s=self._model.snapshots.interval_s,
                retention=retention_of(self._model),
                stall_s=self._settings.start_wait_s,
                keep_rows_s=_FOR_EVER_S,
                halves_keep_s=_FOR_EVER_S,
            ),
            host=Host(self._monotonic_s, self._now_s, self._end, Disk(self._settings.start_wait_s)),
            background=False,
        )

    def _end(self) -> None:
        """Record that another process serves the lineage, so that this one must stop."""
        self.superseded = True

    def _exchange(self, state: OrderedState | None) -> None:
        learner = self.learner
        request = SyncRequest(
            format=FORMAT,
            replica="challenger",
            partition=0,
            pushes=[],
            since=learner.since,
            values=learner.catching_up,
            adopting=[],
            after=learner.server.after,
            adopts=False,
            role=learner.role,
            state=state,
        )
        assert self._server is not None
        reply = wire.decode_reply(self._server.sync(wire.encode(request)))
        if reply.kind == "part":
            for _ in learner.take_part(reply):
                pass
        else:
            learner.on_reply(reply)
        for _ in learner.drop_old():
            pass

    # -- running -----------------------------------------------------------------------------

    def step(self) -> int:
        """Learn the rows that are due; return their number.  Raises the errors of the journal."""
        now_s = self._monotonic_s()
        if now_s >= self._look_due_s:
            self._look_due_s = now_s + _LOOK_S
            if self._look():
                return 0
        self._read()
        learned = 0
        while learned < PAGE_ROWS and self.ahead.due():
            self._learn()
            learned += 1
        if not self.ahead.rows:
            self.learner.pass_to(self._cursor)
        if now_s >= self._publish_due_s:
            self.publish()
        return learned

    def _look(self) -> bool:
        """Act on new decisions; return whether the challenger started over or was superseded."""
        name, server = self._model.name, self._server
        assert server is not None
        server.confirm()
        if self.superseded:
            return True
        self.decisions.read(self._journal, name)
        spec, seen = self._loaded.spec_hash, self.learner.rewrite
        undone = rewrites.undoing(self.decisions.rewrites, spec, seen)
        partitions = self._journal.partitions(name)
        self._partitions = {p.id: p for p in partitions}
        trimmed = self.learner.lacks(partitions)
        if undone or trimmed:
            why = f"control row {undone} undid rows" if undone else "rows are gone that it lacks"
            log.warning("challenger of %s learns the journal again: %s", name, why)
            begin_anew(self._journal, self._settings, name, self._loaded)
            self.begin()
            return True
        self._judge()
        return False

    def _read(self) -> None:
        """Read the next rows of the journal ahead of learning."""
        if self.ahead.room < 1:
            return
        asked_s, wanted = self._now_s(), min(PAGE_ROWS, self.ahead.room)
        page = self._journal.follow(self._model.name, self._cursor, wanted)
        ended = len(page.rows) < wanted
        self.ahead.read(page.rows, asked_s if ended else None)
        self._cursor = max(self._cursor, page.upto)
        if ended:
            self.behind = len(self.ahead.rows)
        else:  # the journal has rows of other models, too
            self.behind = self.learner.rows_ahead(self._journal.partitions(self._model.name))

    def _learn(self) -> None:
        failed = self.ahead.learn(self._given_up)
        self.behind = max(self.behind - 1, 0)
        if failed is None:
            return
        self.failed += 1
        key = failed.row.key.hex()
        if key not in self.decisions.failed:
            self.decisions.failed[key] = failed.reason
            spec = self._loaded.spec_hash[:16]
            self._journal.write_control(
                self._model.name, "failed", f"failed:{spec}:{key}", failed.reason.encode()
            )

    def _given_up(self, row: Row) -> str | None:
        return self.decisions.failed.get(row.key.hex())

    def publish(self) -> None:
        """Push what was learned to the lineage's server, and have it write a snapshot."""
        self._publish_due_s = self._monotonic_s() + self._model.snapshots.interval_s
        if self.superseded or self._server is None:
            return
        if self.learner.unsent:
            self._exchange(self.learner.state())
        self._server.snapshot()

    # -- judging -----------------------------------------------------------------------------

    def standing(self) -> Standing:
        """Return the comparison of the challenger with the champion."""
        return self.learner.standing(rows_min=self._given.rows_min, alpha=self._given.alpha)

    def _judge(self) -> None:
        if self._given.promote != "auto":
            return
        now = self.standing()
        if self.held_back(now) is None:
            self._propose(now)

    def held_back(self, now: Standing) -> str | None:
        """Return why it is not promoted automatically; None if it is."""
        if self.incident is not None:
            return self.incident
        if self._taken_back:  # otherwise it could be promoted and taken back forever
            return "it served before and was replaced, or did not start: promote it by hand"
        if unusable := int(self.learner.tally.counters.get("unusable", 0)):
            return f"{unusable} of its answers were no numbers"
        if self.behind > PAGE_ROWS * 4:
            return f"it is {self.behind} rows behind"
        return now.held_back(self._model.task)

    def status(self) -> dict[str, Any]:
        """Return the challenger's status as plain data."""
        learner = self.learner
        now = self.standing()
        return {
            "state": "superseded" if self.superseded else "learning",
            "spec": self._loaded.spec_hash[:16],
            "spec_hash": self._loaded.spec_hash,
            "version": list(learner.version),
            "learned": learner.tally.digest[0],
            "failed": self.failed,
            "behind_rows": self.behind,
            **now.summary(),
            "held_back": self.held_back(now),
            "incident": self.incident,
        }

    def close(self) -> None:
        """Publish a last snapshot; errors are logged."""
        try:
            self.publish()
        except (ReplayError, OSError) as error:
            log.warning("challenger of %s: no last snapshot: %r", self._model.name, error)


def begin_anew(journal: Journal, settings: Settings, name: str, loaded: Loaded) -> None:
    """Start a lineage with an empty snapshot whose clock is before the journal's first rows.

    The model keeps being served by another lineage.  Undone events stay undone.
    """
    lineage = Lineage(name, loaded.spec_hash, loaded.spec_text, "ordered")
    history = history_of(settings, name, loaded.spec_hash)
    epoch = begin_epoch(journal, lineage)
    clock = {p.id: p.trimmed for p in journal.partitions(name) if p.trimmed}
    controls = journal.controls(name, 0)
    empty = SnapshotState(
        model=name,
        spec=loaded.spec_hash,
        spec_text=loaded.spec_text,
        version=(epoch, 0),
        values={},
        clock=clock,
        control=controls[-1].seq if controls else 0,
        rewrite=rewrites.newest_rewrite(controls),
        frozen=rewrites.frozen_by(controls),
        created_at=time.time(),
    )
    begun = rewrites.Begun(loaded.spec_hash, clock)
    key = f"{rewrites.BEGUN}:{loaded.spec_hash}:{epoch}"
    journal.write_control(name, rewrites.BEGUN, key, msgspec.json.encode(begun))
    publish(journal, history, empty, None)
