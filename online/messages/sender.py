"""The sender of the current request: the rights and limits of its access token."""

from __future__ import annotations

from contextvars import ContextVar

from online.settings.tokens import Grant

sender: ContextVar[Grant] = ContextVar("sender", default=Grant())  # noqa: B039
"""The grant of the current request's token; the default without access tokens."""
