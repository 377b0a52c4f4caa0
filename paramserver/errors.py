"""This module defines the errors that say what can go wrong in this package.

Every error says whether it is ``definite``: True means that the request had no effect and the
same request will fail again or may be sent again freely; False means that it may have had its
effect.  All arguments go to the base constructor, so that errors survive pickling.
"""

from __future__ import annotations

from typing import Final

_SHOWN: Final = 10  # names in a message


class ParamServerError(Exception):
    """Base of the package's errors."""

    definite: bool = True


class BlockError(ParamServerError):
    """A block that can't be taken: wrong kind, shape, value or size.  Nothing was changed."""

    def __init__(self, block: str, key: str | None, problem: str) -> None:
        super().__init__(block, key, problem)
        self.block = block
        self.key = key
        self.problem = problem

    def __str__(self) -> str:
        where = f"block {self.block!r}" + ("" if self.key is None else f", key {self.key!r}")
        return f"{where}: {self.problem}"


class FormatRefused(ParamServerError):
    """A message of another wire format: replica and server run different releases."""

    def __init__(self, got: int, known: int) -> None:
        super().__init__(got, known)
        self.got = got
        self.known = known

    def __str__(self) -> str:
        return (
            f"wire format {self.got} is not the server's format {self.known}; "
            "restart the service so that replicas and server run the same release"
        )


class NotReady(ParamServerError):
    """The server does not serve: it is restoring (ask again) or has refused to start."""

    def __init__(self, state: str, reason: str) -> None:
        super().__init__(state, reason)
        self.state = state
        self.reason = reason

    def __str__(self) -> str:
        return f"the parameter server is {self.state}" + (f": {self.reason}" if self.reason else "")


class StartRefused(ParamServerError):
    """State on disk that must not be served; the message holds the remedy."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


class Superseded(ParamServerError):
    """Another server has taken a newer epoch in the store; this one must end."""

    def __init__(self, epoch: int, newest: int) -> None:
        super().__init__(epoch, newest)
        self.epoch = epoch
        self.newest = newest

    def __str__(self) -> str:
        return f"epoch {self.epoch} was superseded by epoch {self.newest}; this server ends"


class PublishFailed(ParamServerError):
    """A snapshot could not be published; the one before stays in force."""

    definite = False

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"snapshot {self.name} was not published ({self.reason}); it is tried again"


class RollbackRefused(ParamServerError):
    """The snapshot can't be gone back to.  Nothing was changed; ``usable`` are those that can."""

    def __init__(self, name: str, reason: str, usable: tuple[str, ...]) -> None:
        super().__init__(name, reason, usable)
        self.name = name
        self.reason = reason
        self.usable = usable

    def __str__(self) -> str:
        shown = ", ".join(self.usable[:_SHOWN]) or "none"
        more = f" and {len(self.usable) - _SHOWN} more" if self.usable[_SHOWN:] else ""
        return (
            f"no rollback to {self.name!r} ({self.reason}), nothing was changed; "
            f"these can be used: {shown}{more}"
        )


class PromoteRefused(ParamServerError):
    """The lineage asked to make way is not the one that serves, or is the same.  Nothing changed.

    ``serving``: the spec that serves.
    """

    def __init__(self, before: str, after: str, serving: str) -> None:
        super().__init__(before, after, serving)
        self.before = before
        self.after = after
        self.serving = serving

    def __str__(self) -> str:
        return (
            f"no promotion of the spec {self.after[:12]} in the place of {self.before[:12]}: "
            f"{self.serving[:12]} serves; ask for the model's status and decide again"
        )


class ForgetRefused(ParamServerError):
    """A state without a source that can't take the model's place.  Nothing was changed."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.source!r} is not forgotten ({self.reason}), nothing was changed; "
            "build the state again: online forget"
        )


class RelearnRefused(ParamServerError):
    """A state taught by recent rows that can't take the model's place.  Nothing was changed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the model goes on as it is ({self.reason}); the next alarm tries again"


class BackfillRefused(ParamServerError):
    """A state that tables have taught can't take the model's place.  Nothing was changed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"what the tables have taught is not taken ({self.reason}), nothing was changed; "
            "teach them again: online backfill"
        )


class BanRefused(ParamServerError):
    """So many sources are banned already.  Nothing was changed."""

    def __init__(self, source: str, most: int) -> None:
        super().__init__(source, most)
        self.source = source
        self.most = most

    def __str__(self) -> str:
        return (
            f"{self.source!r} can't be banned: {self.most} sources are, as many as "
            "limits.banned_max allows; unban one, take its token away, or raise the limit"
        )


class DecisionUncertain(ParamServerError):
    """A control row may stand or not.  If it does, it is acted on: at once, or after a restart."""

    definite = False

    def __init__(self, kind: str, key: str, reason: str) -> None:
        super().__init__(kind, key, reason)
        self.kind = kind
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"it is not certain that the {self.kind} is written ({self.reason}); "
            "the server's status tells once it serves again: control, rewrite, frozen"
        )


class ServerUnavailable(ParamServerError):
    """No answer from the server.  Pushes may have been applied: send the same ones again."""

    definite = False

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"no answer from the parameter server {self.name!r}: {self.reason}"


class SnapshotCorrupt(ParamServerError):
    """Bytes that are not a whole, untouched snapshot."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"corrupt snapshot: {self.reason}; use the one before it"


class SnapshotFormat(ParamServerError):
    """A whole snapshot of a schema version that this release does not know."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(found, known)
        self.found = found
        self.known = known

    def __str__(self) -> str:
        return (
            f"snapshot schema {self.found} is unknown (this release reads {self.known}); "
            "use the release that wrote it"
        )


class SnapshotMissing(ParamServerError):
    """No snapshot has the name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"there is no snapshot {self.name!r}; list them with: online snapshot list"


class SnapshotName(ParamServerError):
    """A name that no snapshot can have (it would leave the directory, or is reserved)."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name!r} is not a snapshot's name: letters, digits, '-' and '.', up to 128"


class PushRefused(ParamServerError):
    """A push whose bounds make no sense.  Nothing was changed."""

    def __init__(self, partition: int, problem: str) -> None:
        super().__init__(partition, problem)
        self.partition = partition
        self.problem = problem

    def __str__(self) -> str:
        return f"push of partition {self.partition}: {self.problem}"


class RequestRefused(ParamServerError):
    """A message that is none: the field and what is wrong with it."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"not a sync request: {self.problem}"


class StoreUnavailable(ParamServerError):
    """The store did not answer the server.  Pushes may have been applied: send them again."""

    definite = False

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the store did not answer the parameter server: {self.reason}"


class RuleRefused(ParamServerError):
    """Vectors or a setting that a rule for untrusted pushes can't work with."""

    def __init__(self, what: str, problem: str, remedy: str) -> None:
        super().__init__(what, problem, remedy)
        self.what = what
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}: {self.problem}; {self.remedy}"
