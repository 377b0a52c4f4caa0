"""Values of features by which rows are told apart: each has so many, later ones are others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from replay.example import Features, Value, label_of, label_text

OTHERS: Final = "others"
"""The value of rows whose own is one too many."""

MISSING: Final = "missing"
"""The value of rows that do not have the feature."""

_CHARS: Final = 64  # of a value


class Values:
    """The values of features that are known.

    Parameters:
        names: The features.
        most: Values that each has; others are counted together.
    """

    def __init__(self, names: Sequence[str], most: int) -> None:
        self.names, self._most = tuple(names), most
        self._known: dict[str, set[str]] = {name: set() for name in names}

    def keys(self, features: Features, *, learned: bool = False) -> list[str]:
        """A key for each feature: its name, a tab, and its value as text.

        A value that is new gets to be known with a row that is ``learned``; asked about, it is
        that of no row so far.
        """
        return [f"{name}\t{self._value(name, features, learned)}" for name in self.names]

    def _value(self, name: str, features: Features, learned: bool) -> str:
        value = _text(features.get(name))
        known = self._known[name]
        if value not in known and value != MISSING:
            if len(known) >= self._most:
                return OTHERS
            if learned:
                known.add(value)
        return value

    def meet(self, keys: Iterable[str]) -> None:
        """Values of keys that others have made, whatever follows behind a second tab, are known."""
        for key in keys:
            name, tab, rest = key.partition("\t")
            value = rest.partition("\t")[0]
            if tab and value not in (MISSING, OTHERS) and name in self._known:
                self._known[name].add(value)

    def forget(self) -> None:
        """No value is known."""
        self._known = {name: set() for name in self.names}


def _text(value: Value) -> str:
    """A value as it stands in keys: its JSON text, so that a tab ends it."""
    if value is None:
        return MISSING
    return label_text(value[:_CHARS] if isinstance(value, str) else value)


def plain_value(value: str) -> str:
    """A value as people are shown it: a text without its quotes."""
    if value in (MISSING, OTHERS):
        return value
    meant = label_of(value)
    return meant if isinstance(meant, str) and meant not in (MISSING, OTHERS) else value
