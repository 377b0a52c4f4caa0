"""Refusals of a table: its input is wrong, or a folder fails."""

from __future__ import annotations

from online.errors import OnlineError


class InputRefused(OnlineError):
    """A table that can't be scored.  ``place`` names the file, and column or row group in it."""

    place: str
    problem: str
    remedy: str
    text = "{place}: {problem}. {remedy}"


class PlaceFailed(OnlineError):
    """A file or folder could not be read or written, a full disk among the reasons.

    What was finished before stays: the same command goes on from there.
    """

    definite = False
    place: str
    reason: str
    text = (
        "{place}: {reason}. Nothing was published; once it is mended the same command, with the "
        "same --run-id, goes on where it ended"
    )
