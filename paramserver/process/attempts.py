"""A step that is tried again and again says what is wrong once, not each time.

A full disk would else be filled by the log of it, with a traceback four times a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from paramserver.errors import PublishFailed

_log: Final = logging.getLogger(__name__)


class Attempts:
    """The attempts at one step; ``name``: of the step, for the log."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._said: str | None = None

    def __call__(
        self, step: Callable[[], None], worth_saying: Callable[[], bool] = lambda: True
    ) -> None:
        """Do the step.  What it raises is logged, unless the attempt before has raised the same.

        ``worth_saying``: asked after an error; False: the error was to be expected.
        """
        try:
            step()
        except Exception as error:  # the store or the disk is away: serve on, and try again
            # A snapshot has another name each time.
            text = error.reason if isinstance(error, PublishFailed) else repr(error)
            if self._said == text or not worth_saying():
                return
            self._said = text
            if isinstance(error, PublishFailed):
                _log.warning("%s", error)
            else:
                _log.exception("%s failed; it is tried again", self._name)
        else:
            self._said = None
