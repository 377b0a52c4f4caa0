"""Makes the header that carries an access token."""

from __future__ import annotations


def bearer(token: str | None) -> dict[str, str]:
    """Return the header that carries a token; empty without one."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}
