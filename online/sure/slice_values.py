"""The values of named features, for slices: their number is bounded, later ones are "others"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from replay.example import Features, Value, label_of, label_text

OTHERS: Final = "others"
"""The value that stands for all values beyond the bound."""

MISSING: Final = "missing"
"""The value of rows without the feature."""

_CHARS: Final = 64  # longer values are truncated


class Values:
    """The known values of features.

    Parameters:
        names: The features.
        most: Most values of each; others are counted together.
    """

    def __init__(self, names: Sequence[str], most: int) -> None:
        self.names, self._most = tuple(names), most
        self._known: dict[str, set[str]] = {name: set() for name in names}

    def keys(self, features: Features, *, learned: bool = False) -> list[str]:
        """Return a key for each feature: its name, a tab, and its value as text.

        Only a row that is ``learned`` adds a new value to the known ones.
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
        """Add the values in keys of other replicas; text after a second tab is ignored."""
        for key in keys:
            name, tab, rest = key.partition("\t")
            value = rest.partition("\t")[0]
            if tab and value not in (MISSING, OTHERS) and name in self._known:
                self._known[name].add(value)

    def forget(self) -> None:
        """Forget all known values."""
        self._known = {name: set() for name in self.names}


def _text(value: Value) -> str:
    """Return a value's JSON text for keys, which can't contain a tab."""
    if value is None:
        return MISSING
    return label_text(value[:_CHARS] if isinstance(value, str) else value)


def plain_value(value: str) -> str:
    """Return a value of a key for display: text without its quotes."""
    if value in (MISSING, OTHERS):
        return value
    meant = label_of(value)
    return meant if isinstance(meant, str) and meant not in (MISSING, OTHERS) else value
