"""The errors of the journal and the buffers, each with value, bound and remedy.

Every error has a flag ``definite``.  True: nothing of the call was written.  False: it may have
been written; repeat the same call to find out.
"""

from __future__ import annotations

from refusals import Refusal


class ReplayError(Refusal):
    """Base of all errors of this package."""


class PartitionUnknown(ReplayError):
    """The store has never assigned this partition number."""

    partition: int
    text = "partition {partition} is not in the journal; register a new one"


class PartitionSealed(ReplayError):
    """The partition was sealed at offset ``end``; another replica adopts its remaining rows."""

    partition: int
    end: int
    text = (
        "partition {partition} is sealed at offset {end}; register a new one and append the batch "
        "there"
    )


class JournalBehind(ReplayError):
    """The partition ends below an acknowledged offset: the store has lost rows."""

    partition: int
    end: int
    known: int
    text = (
        "partition {partition} ends at offset {end} but offset {known} was answered: the journal "
        "is older than its writer (restored from a backup?); put the newer file back, or start the "
        "service with --accept-loss, which counts what is lost"
    )


class EpochBehind(ReplayError):
    """The store's newest epoch is below that of the writer's values: the store has lost rows."""

    model: str
    found: int
    seen: int
    text = (
        "the journal knows {model} up to epoch {found} and its values here are of epoch {seen}: "
        "the journal is older than its model (emptied, or restored from a backup?); put the newer "
        "one back, or begin again with --fresh"
    )


class JournalFull(ReplayError):
    """Free disk space is under the low-water mark (both in MB of 2^20 bytes)."""

    free_mb: float
    low_mb: float
    text = (
        "{free_mb:.0f} MB are free on the journal's disk, under the low-water mark of {low_mb:.0f} "
        "MB; free some space, nothing was written"
    )


class SizeFull(JournalFull):
    """The journal's files have reached their size limit (both in MB of 2^20 bytes)."""

    text = (
        "the journal uses {size_mb:.1f} MB, its bound is {bound_mb:.0f} MB (size_mb_max); "
        "keep events for a shorter time or raise the bound, nothing was written"
    )

    def __init__(self, size_mb: float, bound_mb: float) -> None:
        super().__init__(0.0, 0.0)
        self.size_mb, self.bound_mb = self.args = size_mb, bound_mb


class ServerFull(JournalFull):
    """The journal's server has no space for new rows, in memory or on its disk."""

    text = (
        "the journal's server takes no new rows ({reason}); "
        "give it more memory or disk space, nothing was written"
    )

    def __init__(self, reason: str) -> None:
        super().__init__(0.0, 0.0)
        (self.reason,) = self.args = (reason,)


class JournalNotDurable(ReplayError):
    """The journal's server is configured so that it could lose acknowledged rows."""

    setting: str
    found: str
    needed: str
    remedy: str
    text = (
        "the journal's server has {setting} = {found}, {needed} is needed so that nothing "
        "acknowledged is lost: {remedy}"
    )


class JournalUnavailable(ReplayError):
    """The outcome of a call to the store is unknown.  Indefinite: send the same batch again."""

    definite = False
    reason: str
    text = "the journal gave no certain answer ({reason}); send the same batch again"


class JournalDamaged(ReplayError):
    """Stored data was changed by a disk or memory fault.

    ``what`` names the data, ``why`` how the damage was noticed.
    """

    what: str
    why: str = "it does not match its checksum"
    text = (
        "the journal is damaged: {what}: {why}. Nothing is learned from it; `online fsck` says "
        "what else is, and docs/runbook.md (A damaged journal) what to do: put a copy from "
        "before the damage in its place"
    )


class JournalMoved(JournalUnavailable):
    """A file of the journal was moved or removed while open, so new data would be lost with it.

    The error is definite for this call.  A caller that repeats an earlier, indefinite call must go
    on repeating.
    """

    definite = True
    text = (
        "{path} was moved, removed or replaced while it was in use: keep the service running and "
        "put it back, as docs/runbook.md says (The journal's file is gone); nothing was written"
    )

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class JournalHeld(JournalUnavailable):
    """Another process held the write lock for too long.  Definite: nothing was written.

    ``pid`` is that process's id on this machine, or None if unknown.
    """

    definite = True
    text = (
        "the journal is held by {holder}, for longer than {waited_s:g} s; "
        "send the same batch again, nothing was written"
    )

    def __init__(self, holder: str, waited_s: float, pid: int | None = None) -> None:
        super().__init__(holder)
        self.holder, self.waited_s, self.pid = self.args = holder, waited_s, pid


class JournalFormat(ReplayError):
    """The file has a format that this version cannot read (``found`` None: not a journal)."""

    found: int | None
    known: int

    def __str__(self) -> str:
        if self.found is None:
            return "the file is a database of another program; choose another path"
        return (
            f"the journal has format {self.found}, this version reads up to {self.known}; "
            "start the newer version of the service"
        )


class EpochLost(ReplayError):
    """Another server holds a newer epoch of the model's lineage."""

    model: str
    expected: int
    found: int
    text = (
        "epoch {expected} of {model!r} was expected, the store has {found}: another server is "
        "newer, stop this one"
    )


class LineTaken(ReplayError):
    """A line of the log of decisions has another number than the next free one."""

    number: int
    newest: int
    text = "line {number} of the log was to be written, and {newest} is its newest; read it again"


class BatchSize(ReplayError):
    """A batch is empty or has more than ``bound`` rows."""

    n: int
    bound: int
    text = "a batch of {n} rows; give 1 to {bound} rows (batch_rows_max)"


class RowInvalid(ReplayError):
    """A field of a row is invalid; nothing of the batch was written."""

    field: str
    value: str
    remedy: str
    text = "row has {field} = {value}; {remedy}"


class PayloadFormat(ReplayError):
    """A payload starts with a format byte unknown to this version."""

    found: int | None
    known: int

    def __str__(self) -> str:
        stored = "no format byte" if self.found is None else f"format {self.found}"
        return (
            f"a payload with {stored}, this version reads up to format {self.known}; "
            "start the version of the service that wrote it"
        )


class PayloadInvalid(ReplayError):
    """An example cannot be encoded, or bytes cannot be decoded as an example."""

    reason: str
    text = (
        "payload refused: {reason}; features and label are finite numbers of 64 bits, booleans, "
        "text or null"
    )


class SettingInvalid(ReplayError):
    """A setting of a buffer, of retrieval or of rehearsal is out of bounds."""

    setting: str
    value: str
    remedy: str
    text = "{setting} = {value}; {remedy}"
