"""Who sends the request at hand: what its access token stands for."""

from __future__ import annotations

from contextvars import ContextVar

from online.settings.tokens import Grant

sender: ContextVar[Grant] = ContextVar("sender", default=Grant())  # noqa: B039
"""What the token of the request at hand stands for; without access tokens nobody's does."""
