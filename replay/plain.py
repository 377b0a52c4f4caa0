"""Escapes control characters in untrusted text before it is shown in a terminal, log or page.

Names, ids and sources are chosen by callers.  A terminal interprets control characters (it clears
lines, sets its title, writes the clipboard), in a log a newline begins another entry, and some
characters reverse the direction of the following text.  Others are not seen at all: a source may
be called like another one.
"""

from __future__ import annotations

import re
from typing import Final, TextIO

_ORDERS: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
"""Control characters (C0, DEL, C1), line separators, and bidirectional controls."""

_UNSEEN: Final = re.compile(
    f"{_ORDERS.pattern}|[\u00ad\u034f\u180e\u200b\u2060-\u2064\ufeff]"
    "|(?<![^\x00-\x7f])[\u200c\u200d\U000e0000-\U000e007f]|[\u200c\u200d](?![^\x00-\x7f])"
)
"""These, and characters without a glyph, by which names differ that look alike.  Joiners between
letters or parts of an emoji are no such characters, nor are tags behind an emoji."""


def is_plain(text: str) -> bool:
    """Return whether the text contains none of these characters."""
    return text.isprintable() or _ORDERS.search(text) is None


def plain(text: str, keep: str = "") -> str:
    r"""Escape control and invisible characters (as in ``\x1b``), except those in ``keep``."""
    if text.isprintable():
        return text
    return _UNSEEN.sub(
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
