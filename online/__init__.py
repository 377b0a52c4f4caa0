"""Online learning service: models, replicas, the HTTP interface and commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from online.service.embedded import serve
    from online.service.library import Learner

__all__ = ["Learner", "__version__", "serve"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `online.serve` and `online.Learner` on demand, so that commands start fast."""
    if name == "serve":
        from online.service.embedded import serve

        return serve
    if name == "Learner":
        from online.service.library import Learner

        return Learner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
