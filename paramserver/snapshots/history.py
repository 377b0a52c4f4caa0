"""The snapshots of one lineage over time: names, ancestors, restoring, retention.

A name is ``EPOCH-COUNT`` or ``EPOCH-COUNT-from-EPOCH-COUNT``: the version, and the version that
the epoch's server started from.  The head's name is in the store.  So its ancestors are known even
if its file cannot be read, and the snapshots of a superseded server (a higher count under an older
epoch) are not among them.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from paramserver.core.blocks import Blocks
from paramserver.core.state import Base, Contained, SnapshotState
from paramserver.core.wire import Version
from paramserver.errors import (
    PublishFailed,
    SnapshotCorrupt,
    SnapshotFormat,
    SnapshotMissing,
    StartRefused,
)
from paramserver.snapshots import format as snapshot_format
from paramserver.snapshots.chain import Reader
from paramserver.snapshots.places import Snapshots
from paramserver.snapshots.store import PlaceUnreachable, Retention, retained

_log: Final = logging.getLogger(__name__)

_SHOWN: Final = 3
_PREFIX_BYTES: Final = 64 * 1024  # contains most manifests, so that one read suffices
ASIDE: Final = "aside-"
"""Prefix of the names of separately built states; only control rows refer to them."""
Foreign = Callable[[Blocks], str | None]
_NAME: Final = re.compile(r"(\d+)-(\d+)(?:-from-(\d+)-(\d+))?")


def snapshot_name(version: Version, base: Version | None) -> str:
    """Return the name for a snapshot of ``version`` by a server that started from ``base``."""
    name = f"{version[0]}-{version[1]}"
    return name if base is None else f"{name}-from-{base[0]}-{base[1]}"


def parse_name(name: str) -> tuple[Version, Version | None] | None:
    """Return version and base from a name, or None if it is not such a name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    epoch, count, base_epoch, base_count = match.groups()
    base = None if base_epoch is None else (int(base_epoch), int(base_count))
    return (int(epoch), int(count)), base


def ancestors(head: str, names: Iterable[str]) -> list[str]:
    """Return ``head`` and the snapshots that it descends from, newest first."""
    parsed = parse_name(head)
    if parsed is None:
        return [head]
    (epoch, count), base = parsed
    line = [head]
    known = [(p, name) for name in names if (p := parse_name(name)) is not None and name != head]
    known.sort(reverse=True, key=lambda item: item[0][0])  # by version
    for ((of_epoch, of_count), of_base), name in known:
        if of_epoch < epoch:
            if base is None:  # the lineage began with this epoch
                break
            if of_epoch > base[0]:  # an epoch in between without descendants
                continue
            if of_count > base[1]:
                continue
            epoch, count, base = of_epoch, base[1], of_base
        elif of_epoch > epoch or of_count > count:
            continue
        line.append(name)
    return line


def _base(manifest: snapshot_format.Manifest, name: str) -> str:
    """Return the name of an incremental snapshot's base; of a whole snapshot, its own name."""
    return name if manifest.base is None else manifest.base.name


class Listed(msgspec.Struct, frozen=True):
    """A snapshot as operators see it; ``created_at`` in POSIX seconds, ``size`` in bytes."""

    name: str
    version: Version
    created_at: float
    size: int
    pinned: bool
    metrics: dict[str, float]
    parent: str | None


@dataclass(frozen=True, slots=True)
class Vanished:
    """Valid snapshots whose files were removed from outside: their number, and a message."""

    files: int = 0
    incident: str | None = None

    def with_more(self, names: Sequence[str], head: str | None) -> Vanished:
        """Return the record extended by these names; ``head``: name of the newest snapshot."""
        message = f"snapshots whose files are gone: {', '.join(names[-_SHOWN:])}"
        if len(names) > _SHOWN:
            message += f" and {len(names) - _SHOWN} more"
        if head in names:
            message += f"; {head}, the newest, is written anew"
        hint = "look who removes them; a rollback reaches no further than what is left"
        return Vanished(self.files + len(names), f"{message}: {hint}")


class SnapshotHistory:
    """The snapshots of a lineage, with their manifests in memory.

    Parameters:
        foreign: Returns why values cannot be this shard's, or None if they can.
        in_arrays: As in :func:`paramserver.snapshots.format.decode`.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        retention: Retention,
        foreign: Foreign = lambda values: None,
        *,
        in_arrays: bool = False,
    ) -> None:
        self._snapshots, self._retention, self._foreign = snapshots, retention, foreign
        self._in_arrays = in_arrays
        self._manifests: dict[str, snapshot_format.Manifest] = {}
        self._sizes: dict[str, int] = {}
        self._head: str | None = None
        self._whole: tuple[Version, Base] | None = None  # newest whole one published here
        self._leaning = 0  # incremental snapshots published on it
        self.refused: dict[str, str] = {}
        self.vanished = Vanished()

    def newest_epoch(self) -> int:
        """Return the newest epoch of any snapshot; 0 if there is none."""
        parsed = map(parse_name, self._snapshots.names())
        return max((name[0][0] for name in parsed if name is not None), default=0)

    def remove_leftovers(self) -> None:
        """Remove unfinished files of earlier servers.

        Call it after taking the epoch, when those files cannot become the head any more.
        """
        with contextlib.suppress(OSError):  # they do no harm; the next start tries again
            self._snapshots.remove_leftovers()

    def restore(self, head: str | None, model: str, spec: str) -> tuple[str, SnapshotState] | None:
        """Return name and state of the head or its nearest valid ancestor; None without a head.

        Raises:
            StartRefused: There is a head, but neither it nor an ancestor can be used.
            PlaceUnreachable, OSError: One may be valid, but cannot be read now.
        """
        self._head = head
        if head is None:
            return None
        unread: OSError | None = None
        reader = Reader(self._snapshots, in_arrays=self._in_arrays)
        for name in ancestors(head, self._snapshots.names()):
            try:
                state, data = self._read(reader, name)
            except (PlaceUnreachable, TimeoutError):  # no reason to use an older one: try again
                raise
            except (SnapshotCorrupt, SnapshotFormat, SnapshotMissing, OSError) as error:
                self.refused[name] = str(error)
                unread = error if isinstance(error, OSError) else unread
                continue
            if (state.model, state.spec) == (model, spec):
                self._note(name, data, len(data))  # known to be valid, even if a later read fails
                return name, state
            self.refused[name] = f"it is of model {state.model!r}, spec {state.spec[:12]}"
        if unread is not None:  # a disk error may be temporary
            raise unread
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.refused.items())
        raise StartRefused(
            f"no snapshot of {model!r} can be used ({reasons})",
            "put a good copy of one of these files back, "
            "or learn the journal again from the start with: online serve --relearn",
        )

    def load(self, name: str) -> SnapshotState:
        """Return the state of a snapshot.

        Raises SnapshotMissing, SnapshotCorrupt, SnapshotFormat, or OSError.
        """
        return self._read(Reader(self._snapshots, in_arrays=self._in_arrays), name)[0]

    def _read(self, reader: Reader, name: str) -> tuple[SnapshotState, memoryview]:
        state, data = reader.read(name)
        if (why := self._foreign(state.values)) is not None:
            raise SnapshotCorrupt(why)
        return state, data

    def index(self) -> None:
        """Read the manifests of all snapshots, without their payloads.

        Raises PlaceUnreachable.
        """
        for name in self._snapshots.names():
            if name in self._manifests or name in self.refused or name.startswith(ASIDE):
                continue
            try:
                self._index_one(name)
            except PlaceUnreachable:
                raise
            except (SnapshotCorrupt, SnapshotFormat, SnapshotMissing, OSError) as error:
                self.refused[name] = str(error)

    def _index_one(self, name: str) -> None:
        prefix = self._prefix(name)
        self._manifests[name] = snapshot_format.read_manifest(prefix)
        self._sizes[name] = snapshot_format.whole_size(prefix)

    def _prefix(self, name: str) -> bytes:
        """Return the file's bytes up to the end of its manifest, at least."""
        prefix = self._snapshots.load(name, _PREFIX_BYTES)
        end = snapshot_format.manifest_end(prefix)
        return prefix if end <= len(prefix) else self._snapshots.load(name, end)

    def manifests(self) -> dict[str, snapshot_format.Manifest]:
        """Return the manifests of all snapshots by name, including separately built states.

        Those that cannot be read are in ``refused`` afterwards.  Raises PlaceUnreachable.
        """
        self.index()
        manifests = dict(self._manifests)
        for name in self._snapshots.names():
            if name.startswith(ASIDE):
                try:
                    manifests[name] = snapshot_format.read_manifest(self._prefix(name))
                except SnapshotMissing:
                    continue
                except (SnapshotCorrupt, SnapshotFormat) as error:
                    self.refused[name] = str(error)
        return manifests

    def knows(self, name: str) -> bool:
        """Return whether a valid snapshot of that name is in the index."""
        return name in self._manifests

    def drop_vanished(self, head: str | None) -> list[str]:
        """Drop snapshots whose files, or whose bases' files, were removed; return their names.

        The names are in order of version.  The header and manifest of ``head`` are read and
        verified, too.  Raises PublishFailed if the place cannot be listed or read.
        """
        try:
            names = set(self._snapshots.names())
            if head in names:
                try:
                    snapshot_format.read_manifest(self._prefix(head))
                except (SnapshotCorrupt, SnapshotFormat, SnapshotMissing):
                    names.remove(head)
        except OSError as error:
            raise PublishFailed(str(head), str(error)) from error
        gone = [n for n, m in self._manifests.items() if n not in names or _base(m, n) not in names]
        if self._whole is not None and self._whole[1].name not in names:
            self._whole = None
        gone.sort(key=lambda name: self._manifests[name].version)
        for name in gone:
            del self._manifests[name]
            self._sizes.pop(name, None)
        if gone:
            self.vanished = self.vanished.with_more(gone, head)
            _log.error("%s", self.vanished.incident)
        return gone

    def publish(self, name: str, state: SnapshotState) -> None:
        """Write a state durably to a file.  The head does not point to it yet."""
        data = snapshot_format.encoded(state)
        self._snapshots.publish(name, data)
        self._note(name, data.begin, len(data))
        if self._manifests[name].base is not None:
            self._leaning += 1
        elif not name.startswith(ASIDE):
            self._whole, self._leaning = (state.version, Base(name, data.digest.hex())), 0

    def base_for_next(self) -> tuple[Version, Base] | None:
        """Return version and identity of the base for the next snapshot; None: write it whole."""
        return self._whole if self._leaning + 1 < self._retention.full_every else None

    def needed_for(self, names: Iterable[str]) -> set[str]:
        """Return these names and those of their bases."""
        named = set(names)
        return named | {_base(m, n) for n in named if (m := self._manifests.get(n)) is not None}

    def _note(self, name: str, begin: bytes | memoryview, size: int) -> None:
        self._manifests[name] = snapshot_format.read_manifest(begin)
        self._sizes[name] = size
        self.refused.pop(name, None)

    def drop_asides(self, held: Collection[str]) -> set[str]:
        """Remove separately built states that are not in ``held``; return those that remain.

        Errors of removal are ignored, because the files do no harm.
        """
        asides = {name for name in self._snapshots.names() if name.startswith(ASIDE)}
        for name in asides.difference(held):
            with contextlib.suppress(OSError):
                self.withdraw(name)
        return asides.intersection(held)

    def line(self, head: str) -> list[tuple[str, Version, Contained]]:
        """Return name, version and content of the head and its valid ancestors, newest first."""
        names, known = ancestors(head, self._manifests), self.contained()
        return [(n, self._manifests[n].version, known[n]) for n in names if n in known]

    def contained(self) -> dict[str, Contained]:
        """Return clock, closed partitions and control position of each valid snapshot by name."""
        known = dict(self._manifests).items()
        return {n: Contained(m.clock, m.closed_partitions(), m.control) for n, m in known}

    def withdraw(self, name: str) -> None:
        """Remove the file of a snapshot that the head will never point to."""
        with contextlib.suppress(SnapshotMissing):
            self._snapshots.delete(name)
        self._manifests.pop(name, None)
        self._sizes.pop(name, None)
        if self._whole is not None and self._whole[1].name == name:
            self._whole = None

    def withdraw_for_good(self, name: str) -> None:
        """Remove the file of a snapshot even if it is pinned or was refused."""
        if name in self._snapshots.pins():
            with contextlib.suppress(SnapshotMissing):
                self._snapshots.pin(name, False)
        self.withdraw(name)
        self.refused.pop(name, None)

    def retain(self, head: str, held: Collection[str] = ()) -> list[Contained]:
        """Remove snapshots that retention does not keep; return what recovery may start from.

        The first snapshot of all, pinned ones and those in ``held`` are kept as files, but rows of
        the journal are not kept for them, so they are not in the result.  Bases are kept with the
        snapshots that need them; if all recent ones have the same base, which may be damaged, one
        snapshot with another base is kept, too.  Incremental snapshots are removed before whole
        ones.  Refused files are removed once there are as many newer valid snapshots as retention
        keeps.  After an OSError the next call continues.

        Parameters:
            head: Name of the snapshot that the store's head points to.
            held: Names that are still needed otherwise, for example by a rollback's control row.
        """
        self._head = head
        created = self._created()
        pins = self._snapshots.pins()
        recent = retained(created, self._retention, birth=False) | {head}
        recent |= self._on_another(recent)
        files = retained(created, self._retention, pinned=pins) | recent | set(held)
        files = self.needed_for(files)
        leaves = [name for name in created if name not in files]
        for name in sorted(leaves, key=lambda name: self._manifests[name].base is None):
            self.withdraw(name)
        good = [m.version for m in self._manifests.values()]
        for name in self.refused.keys() - files - pins:
            parsed = parse_name(name)
            if parsed and sum(v > parsed[0] for v in good) >= self._retention.keep:
                self.withdraw(name)
                del self.refused[name]
        return [
            Contained(m.clock, m.closed_partitions(), m.control)
            for name, m in self._manifests.items()
            if name in recent
        ]

    def _on_another(self, names: Collection[str]) -> set[str]:
        """If all of these have one base, return the newest snapshot with another base."""
        manifests = self._manifests
        bases = {_base(manifests[n], n) for n in names if n in manifests}
        if len(bases) > 1 or self._retention.keep < 2:
            return set()
        others = [n for n, m in manifests.items() if _base(m, n) not in bases]
        return set(sorted(others, key=lambda n: manifests[n].version)[-1:])

    def _created(self) -> dict[str, float]:
        """Return creation times by name, oldest version first, made non-decreasing."""
        created: dict[str, float] = {}
        latest = 0.0
        for name, manifest in sorted(self._manifests.items(), key=lambda item: item[1].version):
            created[name] = latest = max(latest, manifest.created_at)
        return created

    def pin(self, name: str, on: bool) -> None:
        """Exempt a snapshot from retention, or no longer."""
        self._snapshots.pin(name, on)

    def reach(self) -> float | None:
        """Return the time (POSIX s) of the head's oldest valid ancestor, the limit of rollbacks."""
        if self._head is None:
            return None
        manifests = dict(self._manifests)
        chain = [name for name in ancestors(self._head, manifests) if name in manifests]
        return min((manifests[name].created_at for name in chain), default=None)

    def listed(self) -> list[Listed]:
        """Return all valid snapshots, newest first."""
        pins = self._snapshots.pins()
        manifests = dict(self._manifests)
        rows = [
            Listed(name, m.version, m.created_at, self._sizes.get(name, 0), name in pins,
                   m.metrics, m.parent)
            for name, m in manifests.items()
        ]  # fmt: skip
        return sorted(rows, key=lambda row: row.version, reverse=True)
