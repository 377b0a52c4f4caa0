"""Tunes Python's cyclic garbage collector for a process that serves for months.

Objects that exist when a process begins to answer (modules, settings, the model's structure) live
until it ends, so the collector need not scan them.  Rows and answers contain no reference cycles
and are freed by reference counting; the default thresholds would still scan new objects after every
700 allocations, and sometimes all objects.
"""

from __future__ import annotations

import gc
from typing import Final

_YOUNG: Final = 20_000
_RARE: Final = 20


def scan_seldom() -> None:
    """Raise the collector's thresholds; call as soon as a process begins.

    Imports make a hundred thousand objects and next to no garbage; with the default thresholds the
    collector takes an eighth of their time.
    """
    gc.set_threshold(_YOUNG, _RARE, _RARE)


def collect_seldom() -> None:
    """Freeze existing objects and raise the collector's thresholds; call when all is built.

    For the service's own processes only: an embedding program keeps its collector's settings.
    What is garbage by then, some hundred objects, is kept: looking for it takes a tenth of a
    second, in which a new replica would not answer.
    """
    gc.freeze()
    scan_seldom()
