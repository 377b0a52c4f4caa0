"""Text from outside as a terminal, a log or a page shows it, and does not obey it.

Names, ids and sources are what callers choose.  A terminal takes some characters for orders (it
clears lines, sets its title, writes the clipboard), a log takes a newline for another entry, and
some turn the order in which the rest is read.
"""

from __future__ import annotations

import re
from typing import Final, TextIO

_ORDERS: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
"""Control characters (C0, DEL, C1), line separators, and what turns the direction of text."""


def is_plain(text: str) -> bool:
    """Whether the text holds nothing that a terminal would obey."""
    return text.isprintable() or _ORDERS.search(text) is None


def plain(text: str, keep: str = "") -> str:
    r"""The text with what a terminal would obey written out, as ``\x1b``; not those in ``keep``."""
    if text.isprintable():
        return text
    return _ORDERS.sub(
        lambda found: (
            found[0] if found[0] in keep else found[0].encode("unicode_escape").decode("ascii")
        ),
        text,
    )


class PlainStream:
    """A text stream of a command: what is written to it is shown, line by line, and not obeyed.

    ``beneath`` is the stream itself, for what draws on a terminal.
    """

    def __init__(self, beneath: TextIO) -> None:
        self.beneath = beneath

    def write(self, text: str) -> int:
        """Write the text; alone, a carriage return goes back to the line's begin."""
        return self.beneath.write(text if text == "\r" else plain(text, keep="\n\t"))

    def __getattr__(self, name: str) -> object:
        return getattr(self.beneath, name)
