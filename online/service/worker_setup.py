"""A process of a Ray of the service's own begins here, so nothing heavy is imported."""

from __future__ import annotations

from typing import Final

from evaluation.put_off import SERVE, PutOff, install

FLAG: Final = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""The variable in which Ray finds what its processes do first."""

HOOK: Final = f"{__name__}.without_tables"


def without_tables() -> None:
    """Import Ray Serve without pandas, which it has for tables that no request of ours carries."""
    install(PutOff(SERVE, absent=True))
