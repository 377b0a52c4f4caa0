"""Errors of tables: invalid input, or a failing folder."""

from __future__ import annotations

from online.errors import OnlineError


class InputRefused(OnlineError):
    """A table can't be used.  ``place`` names the file, and column or row group in it."""

    place: str
    problem: str
    remedy: str
    text = "{place}: {problem}. {remedy}"


class LocationFailed(OnlineError):
    """A file or folder could not be read or written, for instance because a disk is full.

    Completed work is kept: the same command continues from there.
    """

    definite = False
    place: str
    reason: str
    text = (
        "{place}: {reason}. Nothing was published; remove the cause and run the same command, with "
        "the same --run-id, to continue where it stopped"
    )
