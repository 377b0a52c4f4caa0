"""The errors for feedback that is refused, or not answered in time."""

from __future__ import annotations

from typing import Final

from online.errors import OnlineError, RequestError, journal_held
from replay.errors import JournalFull, JournalHeld, ReplayError

_AGAIN: Final = "Send it again after Retry-After; nothing was recorded"


class Unjudged(OnlineError, ReplayError):
    """Rows cannot be written because judging them failed.  Definite: nothing was written."""

    reason: str
    text = "what judges feedback has failed at it: {reason}"


def stopping() -> RequestError:
    """Return the error of a replica that is stopping."""
    return RequestError(503, "stopping", "this replica is stopping", None, "Send it again", 1)


def busy() -> RequestError:
    """Return the error for too many waiting requests."""
    message = "too much feedback waits for the journal"
    return RequestError(429, "busy", message, None, _AGAIN, 1)


def queue_full(queued: int, most: int) -> RequestError:
    """Return the error for a background learner that is too far behind."""
    message = f"the model is {queued} rows behind here, and {most} may wait for it"
    return RequestError(429, "queue_full", message, None, _AGAIN, 1)


def unanswered_in_time() -> RequestError:
    """Return the indefinite error: whether the rows were written is unknown."""
    hint = "It may have been recorded: repeat it with the same id"
    message = "the journal did not answer in time"
    return RequestError(503, "journal_unavailable", message, None, hint, 1)


def refusal_of(error: ReplayError, *, in_part: bool) -> RequestError:
    """Convert the error of rows that were not written; ``in_part``: others may have been."""
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
