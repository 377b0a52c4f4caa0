"""Error types of the service, which carry the value, the bound and the remedy.

``definite`` means that nothing was recorded and nothing will be: the caller may change the request
and send it again.  After an indefinite error it may have been recorded: repeat it with the same id.
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
    """The reason why the service does not start, and what the operator can do."""

    problem: str
    remedy: str
    text = "{problem}\n{remedy}"


class ClientError(OnlineError):
    """An error that a client's call can raise.  ``definite``: nothing was or will be recorded."""


class RequestError(OnlineError):
    """A request that is answered with an error body.

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
        """Return the answer's extra headers."""
        out = {}
        if self.retry_after_s is not None:
            out["retry-after"] = str(self.retry_after_s)
        if self.status == 401:
            out["www-authenticate"] = 'Bearer realm="online"'
            if self.code != "no_token":
                out["www-authenticate"] += ', error="invalid_token"'
        elif self.code in ("forbidden", "source_fixed"):  # another token may be accepted
            out["www-authenticate"] = 'Bearer realm="online", error="insufficient_scope"'
        elif self.status == 405:  # of our own routes
            out["allow"] = "POST"
        elif self.status == 408:  # the rest of the body may still come
            out["connection"] = "close"
        return out


def invalid(field: str, message: str, hint: str) -> RequestError:
    """Return the error 422 of a well-formed body with an invalid value."""
    return RequestError(422, "invalid_value", message, field, hint)


def not_answered(reason: str, field: str) -> RequestError:
    """Return the error 422 of a row for which a model of the user's raises an exception."""
    hint = "Send what the model needs; `features` with `required` refuses such rows by name"
    return RequestError(422, "not_answered", reason, field, hint)


def failed() -> RequestError:
    """Return the error 500 of an unexpected failure, which the log explains by request id."""
    hint = "It is in the service's log, with the request's id; an event_id makes a repeat safe"
    return RequestError(500, "internal", "the service failed at this request", None, hint)


def damaged(message: str, field: str) -> RequestError:
    """Return the error 500 of an event whose journal row can't be read."""
    hint = "Nothing was recorded now. Whoever runs the service has to put the journal right"
    return RequestError(500, "journal_damaged", message, field, hint)


def journal_held(message: str) -> RequestError:
    """Return the error 503 of rows whose commit has not begun; they are never written."""
    hint = "Nothing was recorded. Send it again after Retry-After"
    return RequestError(503, "journal_held", message, None, hint, 1)
