"""Everything the journal and the buffers refuse, with value, bound and remedy.

``definite`` says what the caller may conclude: True, nothing of the call was written; False, it
may or may not have been, and the same call is sent again to find out.
"""

from __future__ import annotations


class ReplayError(Exception):
    """Base of all errors of this package."""

    definite: bool = True


class PartitionUnknown(ReplayError):
    """The store has never given this partition number."""

    def __init__(self, partition: int) -> None:
        super().__init__(partition)
        self.partition = partition

    def __str__(self) -> str:
        return f"partition {self.partition} is not in the journal; register a new one"


class PartitionSealed(ReplayError):
    """The partition was closed at offset ``end``; its tail belongs to an adopter."""

    def __init__(self, partition: int, end: int) -> None:
        super().__init__(partition, end)
        self.partition = partition
        self.end = end

    def __str__(self) -> str:
        return (
            f"partition {self.partition} is sealed at offset {self.end}; "
            "register a new one and append the batch there"
        )


class JournalBehind(ReplayError):
    """The partition ends below an offset that was answered: the store has lost rows."""

    def __init__(self, partition: int, end: int, known: int) -> None:
        super().__init__(partition, end, known)
        self.partition = partition
        self.end = end
        self.known = known

    def __str__(self) -> str:
        return (
            f"partition {self.partition} ends at offset {self.end} but offset {self.known} was "
            "answered: the journal is older than its writer (restored from a backup?); "
            "put the newer file back, or register a new partition and count the loss"
        )


class EpochBehind(ReplayError):
    """The store's newest epoch is below one that its writer has values of: it has lost rows."""

    def __init__(self, model: str, found: int, seen: int) -> None:
        super().__init__(model, found, seen)
        self.model = model
        self.found = found
        self.seen = seen

    def __str__(self) -> str:
        return (
            f"the journal knows {self.model} up to epoch {self.found} and its values here are of "
            f"epoch {self.seen}: the journal is older than its model (emptied, or restored from a "
            "backup?); put the newer one back, or begin again with --fresh"
        )


class JournalFull(ReplayError):
    """Free disk space is under the low-water mark (both in MB of 2^20 bytes)."""

    def __init__(self, free_mb: float, low_mb: float) -> None:
        super().__init__(free_mb, low_mb)
        self.free_mb = free_mb
        self.low_mb = low_mb

    def __str__(self) -> str:
        return (
            f"{self.free_mb:.0f} MB are free on the journal's disk, under the low-water mark of "
            f"{self.low_mb:.0f} MB; free some space, nothing was written"
        )


class SizeFull(JournalFull):
    """The journal's files have reached their bound (both in MB of 2^20 bytes)."""

    def __init__(self, size_mb: float, bound_mb: float) -> None:
        super().__init__(0.0, 0.0)
        self.args = (size_mb, bound_mb)
        self.size_mb = size_mb
        self.bound_mb = bound_mb

    def __str__(self) -> str:
        return (
            f"the journal uses {self.size_mb:.1f} MB, its bound is {self.bound_mb:.0f} MB "
            "(size_mb_max); keep events for a shorter time or raise the bound, "
            "nothing was written"
        )


class ServerFull(JournalFull):
    """The journal's server has no room for new rows: in memory, or on the disk of its files."""

    def __init__(self, reason: str) -> None:
        super().__init__(0.0, 0.0)
        self.args = (reason,)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"the journal's server takes no new rows ({self.reason}); "
            "give it more memory or disk space, nothing was written"
        )


class JournalNotDurable(ReplayError):
    """The journal's server could lose what it acknowledges."""

    def __init__(self, setting: str, found: str, needed: str, remedy: str) -> None:
        super().__init__(setting, found, needed, remedy)
        self.setting = setting
        self.found = found
        self.needed = needed
        self.remedy = remedy

    def __str__(self) -> str:
        return (
            f"the journal's server has {self.setting} = {self.found}, {self.needed} is needed "
            f"so that nothing acknowledged is lost: {self.remedy}"
        )


class JournalUnavailable(ReplayError):
    """The store did not answer for certain.  Indefinite: send the same batch again."""

    definite = False

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the journal gave no certain answer ({self.reason}); send the same batch again"


class JournalDamaged(ReplayError):
    """Something that the store wrote is no longer what it wrote: a disk or memory has changed it.

    ``what`` names it, ``why`` says how that is known.
    """

    def __init__(self, what: str, why: str = "it does not match its checksum") -> None:
        super().__init__(what, why)
        self.what = what
        self.why = why

    def __str__(self) -> str:
        return (
            f"the journal is damaged: {self.what}: {self.why}. Nothing is learned from it; "
            "`online fsck` says what else is, and docs/operations.md (A damaged journal) what to "
            "do: put a copy from before the damage in its place"
        )


class JournalHeld(JournalUnavailable):
    """Another process's write did not end in time.  Definite: nothing of the call was begun.

    ``pid`` is the process's number on this machine, None if it is not known.
    """

    definite = True

    def __init__(self, holder: str, waited_s: float, pid: int | None = None) -> None:
        super().__init__(holder)
        self.args = (holder, waited_s, pid)
        self.holder, self.waited_s, self.pid = holder, waited_s, pid

    def __str__(self) -> str:
        return (
            f"the journal is held by {self.holder}, for longer than {self.waited_s:g} s; "
            "send the same batch again, nothing was written"
        )


class JournalFormat(ReplayError):
    """The file has a format that this version can't read (``found`` None: not a journal)."""

    def __init__(self, found: int | None, known: int) -> None:
        super().__init__(found, known)
        self.found = found
        self.known = known

    def __str__(self) -> str:
        if self.found is None:
            return "the file is a database of another program; choose another path"
        return (
            f"the journal has format {self.found}, this version reads up to {self.known}; "
            "start the newer version of the service"
        )


class EpochLost(ReplayError):
    """Another server holds a newer epoch of the model's lineage."""

    def __init__(self, model: str, expected: int, found: int) -> None:
        super().__init__(model, expected, found)
        self.model = model
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        return (
            f"epoch {self.expected} of {self.model!r} was expected, the store has {self.found}: "
            "another server is newer, stop this one"
        )


class BatchSize(ReplayError):
    """A batch has 1 … ``bound`` rows."""

    def __init__(self, n: int, bound: int) -> None:
        super().__init__(n, bound)
        self.n = n
        self.bound = bound

    def __str__(self) -> str:
        return f"a batch of {self.n} rows; give 1 to {self.bound} rows (batch_rows_max)"


class RowInvalid(ReplayError):
    """A row's field breaks its bound; nothing of the batch was written."""

    def __init__(self, field: str, value: str, remedy: str) -> None:
        super().__init__(field, value, remedy)
        self.field = field
        self.value = value
        self.remedy = remedy

    def __str__(self) -> str:
        return f"row has {self.field} = {self.value}; {self.remedy}"


class PayloadFormat(ReplayError):
    """A payload starts with a format byte that this version does not know."""

    def __init__(self, found: int | None, known: int) -> None:
        super().__init__(found, known)
        self.found = found
        self.known = known

    def __str__(self) -> str:
        found = "no format byte" if self.found is None else f"format {self.found}"
        return (
            f"a payload with {found}, this version reads up to format {self.known}; "
            "start the version of the service that wrote it"
        )


class PayloadInvalid(ReplayError):
    """An example that can't be encoded, or bytes that are no example."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"payload refused: {self.reason}; "
            "features and label are finite numbers of 64 bits, booleans, text or null"
        )


class SettingInvalid(ReplayError):
    """A setting of a buffer, of a retrieval or of the rehearsal is outside of its bounds."""

    def __init__(self, setting: str, value: str, remedy: str) -> None:
        super().__init__(setting, value, remedy)
        self.setting = setting
        self.value = value
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.setting} = {self.value}; {self.remedy}"


class StateMismatch(ReplayError):
    """A buffer's state is of another policy or of other settings.  The buffer is unchanged."""

    def __init__(self, setting: str, found: str, expected: str) -> None:
        super().__init__(setting, found, expected)
        self.setting = setting
        self.found = found
        self.expected = expected

    def __str__(self) -> str:
        return (
            f"the buffer's state has {self.setting} = {self.found}, this buffer has "
            f"{self.expected}; set it back, or rebuild the buffer from the journal"
        )


class StateInvalid(ReplayError):
    """Bytes that are no buffer's state.  The buffer is unchanged."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"no buffer's state ({self.reason}); rebuild the buffer from the journal"
