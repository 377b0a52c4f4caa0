"""The real source with one rule less, in memory: how a mutant is put in place of it."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from sim_world import Faulty

_PRODUCT = ("online", "paramserver", "replay")
_HEIRS = {  # their classes are made of classes of the first
    "replay.journal.sqlite.file": ("replay.journal.sqlite.journal",),
    "online.learning.base": (
        "online.learning.local_model",
        "online.learning.merged",
        "online.learning.ordered",
    ),
    "online.learning.local_model": ("online.learning.merged",),
}
Change = tuple[str, str, str]
"""Module, a text that stands in it once, and what stands there instead."""


def only(*faults: str, **more: Any) -> Mapping[str, Any]:
    """A climate with these faults alone, at a pace that brings something out."""
    return {"faults": frozenset(faults), "fault_s": 0.1, "deadly": 0.0, **more}


SYNC_OFTEN: Mapping[str, Any] = {"sync_ms": 20.0, "confirm_s": 0.05, "tend_s": 0.4}
OLDER: Mapping[str, Any] = only("kill server", "kill all", older=True, snapshot_s=0.1)
STEADY: Mapping[str, Any] = {"chaos_s": 6.0, "spread_s": 6.0, "events": 100}


@dataclass(frozen=True)
class Mutant:
    """What is changed, and how it is noticed.

    Attributes:
        climate: What is the same in all seeds: the faults that bring it out, at a pace that does.
        within: So many seeds must notice it, at a few times what it took (``run.py --mutants``).
        begin: Of these seeds the one that is tried first, the others after it: one that notices,
            where those before it take long.
    """

    changes: tuple[Change, ...] = ()
    faulty: Faulty = field(default_factory=Faulty)
    climate: Mapping[str, Any] = field(default_factory=dict)
    within: int = 100
    begin: int = 0

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The changed code is what everybody uses, until the end of the block."""
        saved = {m: dict(vars(m)) for m in _product()}
        try:
            names = [name for name, _, _ in self.changes]
            names += [heir for name in names for heir in _HEIRS.get(name, ())]
            for name in dict.fromkeys(names):
                self._change(importlib.import_module(name), saved)
            yield
        finally:
            for module, names in saved.items():
                vars(module).clear()
                vars(module).update(names)

    def _change(self, module: ModuleType, saved: dict[ModuleType, dict[str, object]]) -> None:
        source = inspect.getsource(module)
        for name, old, new in self.changes:
            if name == module.__name__:
                assert source.count(old) == 1, f"{source.count(old)} times in {name}: {old}"
                source = source.replace(old, new)
        before = dict(vars(module))
        exec(compile(source, f"<changed {module.__name__}>", "exec"), vars(module))
        changed = {id(x): vars(module)[name] for name, x in before.items() if name[:2] != "__"}
        for other in saved:
            for name, x in list(vars(other).items()):
                if other is not module and id(x) in changed:
                    setattr(other, name, changed[id(x)])


def _product() -> list[ModuleType]:
    return [m for name, m in sys.modules.items() if name.split(".")[0] in _PRODUCT]
