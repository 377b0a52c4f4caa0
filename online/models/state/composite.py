"""The blocks of several parts as those of one: cut, rebased and reset together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from paramserver.core.blocks import Blocks


class Part(Protocol):
    """A part of a model has blocks of its own, which no other part has."""

    def cut(self) -> Any:
        """The open delta, and reset it."""

    def rebase(self, values: Blocks) -> None:
        """Take new values with the open delta on top."""

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""


class OfParts:
    """Whoever keeps all that is learned in ``_parts``, set by the constructor."""

    _parts: Iterable[Part] = ()

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
        return {name: block for part in self._parts for name, block in part.cut().items()}

    def rebase(self, values: Blocks) -> None:
        """Take new values with the open delta on top."""
        for part in self._parts:
            part.rebase(values)

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""
        for part in self._parts:
            part.reset(values)
