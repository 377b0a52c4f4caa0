"""The service: models, replicas, HTTP, commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from online.service.embedded import serve

__all__ = ["__version__", "serve"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`online.serve`, imported when it is asked for: commands need not wait for river."""
    if name == "serve":
        from online.service.embedded import serve

        return serve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
