"""The header of a request that carries an access token."""

from __future__ import annotations


def bearer(token: str | None) -> dict[str, str]:
    """The header that carries a token; none without one."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}
