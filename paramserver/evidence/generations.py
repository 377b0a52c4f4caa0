"""Generations of counted losses: in which one a key counts, and which ones are too old."""

from __future__ import annotations

from itertools import islice
from typing import Final

GENERATIONS: Final = 5
"""Greatest number of generations that count."""


class Newest:
    """Finds generations that are too old in counts that only grow, by looking at new keys alone.

    A dictionary has new keys at its end.  One that is not the block's last one, or that has become
    smaller, is looked at whole.
    """

    def __init__(self) -> None:
        self._of: dict[str, tuple[dict[str, float], int, dict[int, list[str]]]] = {}

    def keep(self, data: dict[str, float], block: str = "") -> dict[str, float] | None:
        """Return the counts without the generations that are too old; None: there are none."""
        seen, many, of_each = self._of.get(block, ({}, 0, {}))
        if data is seen and len(data) >= many:
            new = list(islice(reversed(data), len(data) - many))
        else:
            new, of_each = list(data), {}
        for key in new:
            of_each.setdefault(generation_of(key), []).append(key)
        kept, oldest = data, max(of_each, default=0) - GENERATIONS
        for generation in [g for g in of_each if g <= oldest]:
            kept = dict(data) if kept is data else kept
            for key in of_each.pop(generation):
                kept.pop(key, None)
        self._of[block] = kept, len(kept), of_each
        return None if kept is data else kept


def generation_of(key: str) -> int:
    """Return the generation in which a key counts, which is its first line."""
    return int(key[: key.index("\n")])
