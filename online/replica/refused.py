"""Feedback that is not taken, or not answered in time, is refused with these errors."""

from __future__ import annotations

from typing import Final

from online.errors import OnlineError, RequestError, journal_held
from replay.errors import JournalFull, JournalHeld, ReplayError

_AGAIN: Final = "Send it again after Retry-After; nothing was recorded"


class Unjudged(OnlineError, ReplayError):
    """The rows can't be written, since judging them has failed.  Definite: nothing was begun."""

    reason: str
    text = "what judges feedback has failed at it: {reason}"


def stopping() -> RequestError:
    """Say that this replica takes no more."""
    return RequestError(503, "stopping", "this replica is stopping", None, "Send it again", 1)


def busy() -> RequestError:
    """Say that too many requests wait already."""
    message = "too much feedback waits for the journal"
    return RequestError(429, "busy", message, None, _AGAIN, 1)


def queue_full(queued: int, most: int) -> RequestError:
    """Say that the process which learns is too far behind."""
    message = f"the model is {queued} rows behind here, and {most} may wait for it"
    return RequestError(429, "queue_full", message, None, _AGAIN, 1)


def unanswered_in_time() -> RequestError:
    """Say that nobody knows whether the rows are written."""
    hint = "It may have been recorded: repeat it with the same id"
    message = "the journal did not answer in time"
    return RequestError(503, "journal_unavailable", message, None, hint, 1)


def refusal_of(error: ReplayError, *, in_part: bool) -> RequestError:
    """Say why rows of a request were not written; ``in_part``: others of it may have been."""
    if in_part:
        hint = "A part of it was recorded: repeat it with the same ids"
        return RequestError(503, "journal_unavailable", str(error), None, hint, 1)
    if isinstance(error, JournalHeld):
        return journal_held(str(error))
    if isinstance(error, Unjudged):
        hint = "Nothing was recorded. It is a bug: the service's log has it"
        return RequestError(503, "unjudged", str(error), None, hint)
    full = isinstance(error, JournalFull)
    hint = "Nothing was recorded. Free disk space" if full else "Nothing was recorded"
    code = "journal_full" if full else "journal_refused"
    return RequestError(503, code, str(error), None, hint, 30)
