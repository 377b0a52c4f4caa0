"""Modules are imported as if one rule were changed in their source: mutants of whole packages."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any


class _Changed(SourceFileLoader):
    """Loads a module from its source with one rule replaced, and leaves no compiled file."""

    def __init__(self, name: str, path: str, rule: str, without: str) -> None:
        super().__init__(name, path)
        self.rule, self.without = rule, without

    def get_code(self, fullname: str) -> CodeType:
        whole = Path(self.path).read_text()
        assert whole.count(self.rule) == 1, f"{self.rule!r} stands {whole.count(self.rule)} times"
        return compile(whole.replace(self.rule, self.without), self.path, "exec")


class _Finder:
    """Finds the changed module before anybody else finds the one that it is made of."""

    def __init__(self, name: str, rule: str, without: str) -> None:
        spec = find_spec(name)
        assert spec is not None, f"{name} is gone: the rule stands elsewhere"
        assert spec.origin is not None
        self.loader = _Changed(name, spec.origin, rule, without)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(name, self.loader) if name == self.loader.name else None


@contextmanager
def changed(
    module: str, rule: str, without: str, packages: tuple[str, ...]
) -> Iterator[Callable[[str], Any]]:
    """A function that imports modules of the packages as if the rule were changed in its source."""
    finder: Any = _Finder(module, rule, without)
    kept = {name: m for name, m in sys.modules.items() if name.startswith(packages)}
    for name in kept:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield importlib.import_module
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if n.startswith(packages)]:
            del sys.modules[name]
        sys.modules.update(kept)
        for name, one in kept.items():
            parent, _, last = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], last, one)
