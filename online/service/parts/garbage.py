"""A process that serves for months looks for circles of dead objects seldom, and not in all it has.

What is there when a process begins to answer stays until it ends: the modules, the settings, the
model's structure.  Rows and answers are no circles; they are freed as soon as nobody has them.
Python would look through the new ones after each 700, though, and now and then through everything.
"""

from __future__ import annotations

import gc
from typing import Final

_YOUNG: Final = 20_000
_RARE: Final = 20


def collect_seldom() -> None:
    """Call once, when what the process needs has been built.

    Only in processes of the service's own: whoever serves from a program of theirs has a collector
    that is theirs, too.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _RARE, _RARE)
