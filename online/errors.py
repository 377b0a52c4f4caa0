"""The service's errors are types that carry the value, the bound and the remedy.

``definite`` says that nothing was recorded and nothing will be: the caller may change the request
and send it again.  An indefinite error may have been recorded: repeat it with the same id.
"""

from __future__ import annotations

from refusals import Refusal


class OnlineError(Refusal):
    """Base of the service's errors."""


class ConfigError(OnlineError):
    """A setting that can't be used.  ``field`` names it, ``remedy`` says what to write."""

    field: str
    problem: str
    remedy: str
    text = "{field}: {problem}. {remedy}"


class StartRefused(OnlineError):
    """The service does not start, and what the operator can do about it."""

    problem: str
    remedy: str
    text = "{problem}\n{remedy}"


class ClientError(OnlineError):
    """An error that a call can raise.  ``definite``: nothing was recorded and nothing will be."""


class RequestError(OnlineError):
    """A request that is answered with an error body: the one table of statuses.

    ``status`` is the HTTP status and ``code`` its stable name; ``field`` is the path of the wrong
    value in the body; ``retry_after_s`` is sent as ``Retry-After``.
    """

    status: int
    code: str
    message: str
    field: str | None = None
    hint: str | None = None
    retry_after_s: int | None = None
    text = "{message}"

    @property
    def headers(self) -> dict[str, str]:
        """Return what the answer's head says beside the body."""
        out = {}
        if self.retry_after_s is not None:
            out["retry-after"] = str(self.retry_after_s)
        if self.status == 401:
            out["www-authenticate"] = 'Bearer realm="online"'
            if self.code != "no_token":
                out["www-authenticate"] += ', error="invalid_token"'
        elif self.code in ("forbidden", "source_fixed"):  # another token may
            out["www-authenticate"] = 'Bearer realm="online", error="insufficient_scope"'
        elif self.status == 405:  # of our own routes
            out["allow"] = "POST"
        elif self.status == 408:  # the rest of the body may still come
            out["connection"] = "close"
        return out


def invalid(field: str, message: str, hint: str) -> RequestError:
    """422: the body is well formed, a value in it is not."""
    return RequestError(422, "invalid_value", message, field, hint)


def failed() -> RequestError:
    """500: what the log tells of, under the request's id."""
    hint = "It is in the service's log, with the request's id; an event_id makes a repeat safe"
    return RequestError(500, "internal", "the service failed at this request", None, hint)


def damaged(message: str, field: str) -> RequestError:
    """500: what stands in the journal under the event's id can't be read any more."""
    hint = "Nothing was recorded now. Whoever runs the service has to put the journal right"
    return RequestError(500, "journal_damaged", message, field, hint)


def journal_held(message: str) -> RequestError:
    """503: rows that no commit has begun with; they are never written."""
    hint = "Nothing was recorded. Send it again after Retry-After"
    return RequestError(503, "journal_held", message, None, hint, 1)
