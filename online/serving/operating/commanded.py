"""Converts errors of the parameter server's commands into errors for the caller."""

from __future__ import annotations

from typing import Final

from online.errors import RequestError
from paramserver.errors import (
    BackfillRefused,
    BanRefused,
    ForgetRefused,
    HandedOn,
    NothingDecided,
    NotReady,
    ParamServerError,
    PromoteRefused,
    RollbackRefused,
    SnapshotMissing,
    SnapshotName,
)

_LIST: Final = "`online snapshot list` names the kept snapshots"
_HANDED_ON_S: Final = 30  # starting a server with large tables takes minutes


def refused(error: ParamServerError) -> RequestError:
    """Return the error for a command that the server refused, or did not answer."""
    text, hint = str(error), "See `online status`"
    if isinstance(error, SnapshotMissing | SnapshotName):
        return RequestError(404, "unknown_snapshot", text, "name", _LIST)
    if isinstance(error, RollbackRefused):
        return RequestError(422, "rollback_refused", text, "to", _LIST)
    if isinstance(error, PromoteRefused):
        return RequestError(409, "promote_refused", text, None, "Try again")
    if isinstance(error, ForgetRefused):
        again = "Build the state again: online forget"
        return RequestError(422, "forget_refused", text, "snapshot", again)
    if isinstance(error, BackfillRefused):
        again = "Teach the tables again: online backfill"
        return RequestError(422, "backfill_refused", text, "snapshot", again)
    if isinstance(error, BanRefused):
        other = "Unban one, take its token away, or raise limits.banned_max"
        return RequestError(422, "ban_refused", text, "source", other)
    if isinstance(error, NotReady | NothingDecided | HandedOn):
        same, after_s = "Nothing was changed; ask again", 1
        if isinstance(error, HandedOn):
            after_s = _HANDED_ON_S
        return RequestError(503, "server_unavailable", text, None, same, after_s)
    if error.definite:
        return RequestError(422, "refused", text, None, hint)
    return RequestError(503, "server_unavailable", text, None, hint)
