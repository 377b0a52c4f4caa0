"""Logs the error of a periodically retried step once, not at every attempt.

Otherwise a full disk would be filled further by a traceback four times a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from paramserver.errors import PublishFailed

_log: Final = logging.getLogger(__name__)


class Attempts:
    """Runs one step repeatedly; ``name`` is the step's name in the log."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._logged: str | None = None

    def __call__(
        self, step: Callable[[], None], worth_saying: Callable[[], bool] = lambda: True
    ) -> None:
        """Run the step; log its exception unless the previous attempt raised the same.

        Parameters:
            worth_saying: Called after an exception; False if it was to be expected.
        """
        try:
            step()
        except Exception as error:  # store or disk is unavailable: keep serving, try again
            # compare reasons, because the snapshot's name is new at each attempt
            text = error.reason if isinstance(error, PublishFailed) else repr(error)
            if self._logged == text or not worth_saying():
                return
            self._logged = text
            if isinstance(error, PublishFailed):
                _log.warning("%s", error)
            else:
                _log.exception("%s failed; it is tried again", self._name)
        else:
            self._logged = None
