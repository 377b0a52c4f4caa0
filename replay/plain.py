"""Escapes control characters in untrusted text before it is shown in a terminal, log or page.

Names, ids and sources are chosen by callers.  A terminal interprets control characters (it clears
lines, sets its title, writes the clipboard), in a log a newline begins another entry, and some
characters reverse the direction of the following text.
"""

from __future__ import annotations

import re
from typing import Final, TextIO

_ORDERS: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
"""Control characters (C0, DEL, C1), line separators, and bidirectional controls."""


def is_plain(text: str) -> bool:
    """Return whether the text contains none of these characters."""
    return text.isprintable() or _ORDERS.search(text) is None


def plain(text: str, keep: str = "") -> str:
    r"""Escape these characters in the text (as in ``\x1b``), except those in ``keep``."""
    if text.isprintable():
        return text
    return _ORDERS.sub(
        lambda match: (
            match[0] if match[0] in keep else match[0].encode("unicode_escape").decode("ascii")
        ),
        text,
    )


class PlainStream:
    """A text stream for a command's output that escapes control characters.

    ``beneath`` is the wrapped stream, for code that controls the terminal on purpose.
    """

    def __init__(self, beneath: TextIO) -> None:
        self.beneath = beneath

    def write(self, text: str) -> int:
        """Write the text escaped; a single carriage return is passed through."""
        return self.beneath.write(text if text == "\r" else plain(text, keep="\n\t"))

    def __getattr__(self, name: str) -> object:
        return getattr(self.beneath, name)
