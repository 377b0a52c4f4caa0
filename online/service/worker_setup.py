"""A process of a Ray of the service's own begins here, so nothing heavy is imported."""

from __future__ import annotations

from typing import Any, Final

from evaluation.put_off import SERVE, PutOff, install

FLAG: Final = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""The variable in which Ray finds what its processes do first."""

HOOK: Final = f"{__name__}.without_tables"


def without_tables() -> None:
    """Import Ray and Serve without pandas and pyarrow, which they have for tables to send.

    No message of ours carries one.  Whoever else imports them has them.
    """
    install(PutOff(SERVE, absent=True))
    from ray._private import arrow_serialization

    arrow_serialization._register_custom_datasets_serializers = _nothing


def _nothing(context: Any) -> None:
    """Have Ray's pickles know no tables of pyarrow."""
