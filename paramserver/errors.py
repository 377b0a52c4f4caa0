"""The errors of this package.

Every error has a flag ``definite``.  True: the request had no effect, and may be sent again.
False: the request may have had its effect.
"""

from __future__ import annotations

from typing import Final

from refusals import Refusal

_SHOWN: Final = 10  # names in a message


class ParamServerError(Refusal):
    """Base of the package's errors."""


class BlockError(ParamServerError):
    """A block was refused: wrong kind, shape, value or size.  Nothing was changed."""

    block: str
    key: str | None
    problem: str

    def __str__(self) -> str:
        where = f"block {self.block!r}" + ("" if self.key is None else f", key {self.key!r}")
        return f"{where}: {self.problem}"


class FormatRefused(ParamServerError):
    """A message of another wire format: replica and server run different releases."""

    got: int
    known: int
    text = (
        "wire format {got} is not the server's format {known}; restart the service so that "
        "replicas and server run the same release"
    )


class NotReady(ParamServerError):
    """The server is not serving: it is restoring (try again later) or has refused to start."""

    state: str
    reason: str

    def __str__(self) -> str:
        return f"the parameter server is {self.state}" + (f": {self.reason}" if self.reason else "")


class HandedOn(ParamServerError):
    """The model is being moved to another number of parameter servers.  Nothing was changed."""

    model: str
    text = (
        "nothing is decided about {model} while it gets another number of parameter servers, which "
        "may take minutes, and nothing was changed; ask again then, or withdraw that: online "
        "models reshard, with the number that it has"
    )


class NothingDecided(ParamServerError):
    """The store did not return the earlier decisions.  Nothing was changed."""

    reason: str
    text = "no decision was recorded: the store did not answer the parameter server: {reason}"


class StartRefused(ParamServerError):
    """The state on disk must not be served; the message names the remedy."""

    problem: str
    remedy: str
    text = "{problem}; {remedy}"


class Superseded(ParamServerError):
    """Another server has taken a newer epoch in the store; this one must exit."""

    epoch: int
    newest: int
    text = "epoch {epoch} was superseded by epoch {newest}; this server ends"


class PublishFailed(ParamServerError):
    """A snapshot could not be published; the previous one stays in force."""

    definite = False
    name: str
    reason: str
    text = "snapshot {name} was not published ({reason}); this is tried again"


class PinIncomplete(ParamServerError):
    """A snapshot was pinned or unpinned on shard 0, but not on all other shards."""

    definite = False
    name: str
    on: bool
    reason: str

    def __str__(self) -> str:
        wanted = "is kept" if self.on else "is no longer kept"
        off = "" if self.on else " --off"
        return (
            f"snapshot {self.name} {wanted} by shard 0 and not by all ({self.reason}); "
            f"ask again: online snapshot pin {self.name}{off}"
            + ("; or take another one: online snapshot create --pin" if self.on else "")
        )


class RollbackRefused(ParamServerError):
    """A rollback to this snapshot is impossible; ``usable`` lists others.  Nothing was changed."""

    name: str
    reason: str
    usable: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.usable[:_SHOWN]) or "none"
        more = f" and {len(self.usable) - _SHOWN} more" if self.usable[_SHOWN:] else ""
        return (
            f"no rollback to {self.name!r} ({self.reason}), nothing was changed; "
            f"these can be used: {shown}{more}"
        )


class PromoteRefused(ParamServerError):
    """The lineage to replace is not serving, or is the one to promote.  Nothing was changed.

    ``serving`` is the spec that serves.
    """

    before: str
    after: str
    serving: str
    text = (
        "no promotion of the spec {after:.12} in the place of {before:.12}: {serving:.12} serves; "
        "ask for the model's status and decide again"
    )


class ForgetRefused(ParamServerError):
    """The state rebuilt without a source cannot replace the model's.  Nothing was changed."""

    source: str
    reason: str
    text = (
        "{source!r} is not forgotten ({reason}), nothing was changed; build the state again: "
        "online forget"
    )


class RelearnRefused(ParamServerError):
    """The state relearned from recent rows cannot replace the model's.  Nothing was changed."""

    reason: str
    text = "the model stays as it is ({reason}); the next alarm tries again"


class BackfillRefused(ParamServerError):
    """The state learned from tables cannot replace the model's.  Nothing was changed."""

    reason: str
    text = (
        "the state learned from tables was refused ({reason}), nothing was changed; learn them "
        "again: online backfill"
    )


class BanRefused(ParamServerError):
    """The limit on banned sources is reached.  Nothing was changed."""

    source: str
    most: int
    text = (
        "{source!r} can't be banned: {most} sources are, as many as limits.banned_max allows; "
        "unban one, take its token away, or raise the limit"
    )


class DecisionUncertain(ParamServerError):
    """A control row may have been written.  If so, it takes effect: at once or after a restart."""

    definite = False
    kind: str
    key: str
    reason: str
    text = (
        "whether the {kind} was written is unknown ({reason}); the server's status shows it once "
        "it serves again: control, rewrite, frozen"
    )


class ServerUnavailable(ParamServerError):
    """The server did not answer.  Pushes may have been applied: send the same ones again."""

    definite = False
    name: str
    reason: str
    text = "no answer from the parameter server {name!r}: {reason}"


class ShardAway(ServerUnavailable):
    """A shard other than shard 0 did not answer; shard 0's decisions are included.

    Attributes:
        control, frozen, rewrite: Shard 0's, see :class:`paramserver.core.wire.SyncReply`.
    """

    control: int
    frozen: bool
    rewrite: int


class SnapshotCorrupt(ParamServerError):
    """The bytes are not a complete, undamaged snapshot."""

    reason: str
    text = "corrupt snapshot: {reason}; use the one before it"


class SnapshotFormat(ParamServerError):
    """The snapshot has a schema version that this release does not know."""

    found: int
    known: int
    text = (
        "snapshot schema {found} is unknown (this release reads {known}); use the release that "
        "wrote it"
    )


class SnapshotMissing(ParamServerError):
    """No snapshot has that name."""

    name: str
    text = "there is no snapshot {name!r}; list them with: online snapshot list"


class SnapshotName(ParamServerError):
    """The name is not allowed for a snapshot (it leaves the directory, or is reserved)."""

    name: str
    text = "{name!r} is not a snapshot's name: letters, digits, '-' and '.', up to 128"


class PushRefused(ParamServerError):
    """The bounds of a push are invalid.  Nothing was changed."""

    partition: int
    problem: str
    text = "push of partition {partition}: {problem}"


class RequestRefused(ParamServerError):
    """The message is not a valid request; ``problem`` names the field and what is wrong."""

    problem: str
    text = "not a sync request: {problem}"


class StoreUnavailable(ParamServerError):
    """The store did not answer the server.  Pushes may have been applied: send them again."""

    definite = False
    reason: str
    text = "the store did not answer the parameter server: {reason}"
