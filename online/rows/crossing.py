"""Bounds the products of context and action features that a choice makes the model compute.

A body's size grows with the sum of both, the model's work with their product: a few kilobytes of
names could block a replica for seconds and fill its memory.  So the products are counted first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from online.errors import RequestError, invalid

ACTION: Final = "@"
"""Prefix of the action's feature names in rows of choices."""

_FORMS: Final = 3  # a number has three terms: itself, and one for each neighbouring knot
_HEADS: Final = 2  # terms by each action's id: absolute, and relative to the other actions

_Row = Mapping[str, Any]


class Crossing:
    """Counts the feature products in rows and choices of one model.

    Parameters:
        text: Features that are bags of words, those of actions with their prefix.
        most: Largest number of products in a request; with several slots, for each slot.
    """

    def __init__(self, text: Collection[str], most: int) -> None:
        self._of_moment = [name for name in text if not name.startswith(ACTION)]
        self._of_action = [name[len(ACTION) :] for name in text if name.startswith(ACTION)]
        self._most = most

    def check(
        self, context: _Row, actions: Sequence[_Row], field: str, *, alike: bool = False
    ) -> None:
        """Raise RequestError if a choice has too many products of context and actions.

        ``alike``: all actions have the same names and only numbers, so they are crossed once.
        """
        moment, ids = 1 + _parts(context, self._of_moment), _HEADS * len(actions)
        wide = actions[:1] if alike else actions
        widest = 1 + max(_parts(row, self._of_action) for row in wide)
        products = moment * (_FORMS * ids + widest * (1 if alike else len(actions)))
        if products > self._most:
            raise self._refusal(products, field)

    def check_rows(self, rows: Sequence[_Row], field: str) -> None:
        """Raise RequestError if rows, with one action each, have too many products together."""
        products = sum(map(self._of_row, rows))
        if products > self._most:
            raise self._refusal(products, field)

    def takes(self, row: _Row) -> bool:
        """Whether a row alone stays within the bound."""
        return self._of_row(row) <= self._most

    def _of_row(self, row: _Row) -> int:
        described = sum(name.startswith(ACTION) for name in row)
        context = 1 + len(row) - described + _words(row, self._of_moment)
        words = _words(row, [ACTION + name for name in self._of_action])
        return context * (_FORMS * _HEADS + 1 + described + words)

    def _refusal(self, products: int, field: str) -> RequestError:
        message = f"{products} products of features of the moment and of actions"
        hint = f"Send fewer features: at most {self._most}, or raise limits.products_max"
        return invalid(field, message, hint)


def _parts(row: _Row, text: Collection[str]) -> int:
    return len(row) + _words(row, text)


def _words(row: _Row, text: Collection[str]) -> int:
    """Return the largest number of words in the row's texts, beyond one for each."""
    texts = (row.get(name) for name in text)
    return sum(len(value) // 2 for value in texts if isinstance(value, str))
