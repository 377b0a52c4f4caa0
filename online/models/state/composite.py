"""Composite state: the blocks of several parts are cut, rebased and reset together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from paramserver.core.blocks import Blocks


class Part(Protocol):
    """A part of a model, with blocks of its own."""

    def cut(self) -> Any:
        """Return the open delta and empty it."""

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top."""

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``, with an empty open delta."""


class Composite:
    """Base class of models and parts whose whole state is in ``_parts``."""

    _parts: Iterable[Part] = ()

    def cut(self) -> Blocks:
        """Return the open delta and empty it."""
        return {name: block for part in self._parts for name, block in part.cut().items()}

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top."""
        for part in self._parts:
            part.rebase(values)

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``, with an empty open delta."""
        for part in self._parts:
            part.reset(values)
