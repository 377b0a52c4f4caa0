"""Deferred imports of heavy libraries that other libraries import but rarely use.

River imports scipy's statistics (and with its sample data scikit-learn and pandas) for a few of its
estimators; Ray Serve imports pandas to write tables as JSON.  That costs a second of CPU time and
100 MB in each process of the service, and no prediction needs it.  While one of the modules in the
tables below is being imported, it gets a :class:`ModulePlaceholder` in place of such a library, or
an ImportError; all other modules import the library itself.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from _typeshed.importlib import MetaPathFinderProtocol

RIVER: Final[Mapping[str, Sequence[str]]] = {
    "river.drift": ("river.drift.datasets",),
    "river.drift.kswin": ("scipy.stats",),
    "river.feature_extraction.vectorize": ("scipy.sparse",),
    "river.linear_model.ad_predictor": ("scipy.special",),
    "river.metrics.geometric_mean": ("scipy.stats",),
    "river.metrics.roc_auc": ("scipy.integrate",),
    "river.naive_bayes.base": ("scipy.sparse", "scipy.special"),
    "river.naive_bayes.bernoulli": ("scipy.sparse",),
    "river.naive_bayes.complement": ("scipy.sparse",),
    "river.naive_bayes.multinomial": ("scipy.sparse",),
    "river.optim.losses": ("scipy.special",),
    "river.preprocessing.lda": ("scipy.ndimage", "scipy.special"),
    "river.proba.beta": ("scipy.special",),
    "river.proba.gaussian": ("scipy.stats",),
    "river.tree.stochastic_gradient_tree": ("scipy.stats",),
}
"""Module of river → modules that it imports at its top and uses in some calls only."""

SERVE: Final[Mapping[str, Sequence[str]]] = {"ray.serve._private.utils": ("pandas",)}
"""Module of Ray Serve → modules that it works without."""


class ModulePlaceholder(ModuleType):
    """A placeholder for a module, which is imported at the first use of one of its attributes."""

    def __init__(self, name: str) -> None:
        super().__init__(name, f"`{name}`, imported when it is used.")
        self.__dict__["_importing_thread"] = (
            threading.get_ident()
        )  # the importing thread, while it imports

    def __getattr__(self, name: str) -> Any:
        """Return the module's attribute, or a placeholder while a module imports the name."""
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        if self.__dict__["_importing_thread"] == threading.get_ident():
            return _DeferredName(self, name)
        if sys.modules.get(self.__name__) is self:  # another thread uses it during the import
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)

    def finish(self) -> None:
        """End the import: from now on each use goes to the module itself."""
        self.__dict__["_importing_thread"] = None
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


class _DeferredName:
    """A placeholder for a function or object of a module that is imported at its first use."""

    def __init__(self, module: ModulePlaceholder, name: str) -> None:
        self._module, self._name = module, name

    def __call__(self, *args: Any, **named: Any) -> Any:
        return getattr(self._module, self._name)(*args, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(self._module, self._name), name)


class DeferredImports:
    """An import finder for the modules of a table, which defers the imports that the table names.

    Parameters:
        table: Importing module → names of the modules to defer.
        absent: Whether the deferred imports raise ImportError instead of giving placeholders.
    """

    def __init__(self, table: Mapping[str, Sequence[str]], *, absent: bool = False) -> None:
        self._table, self._absent = table, absent

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec with a deferring loader; None for modules not in the table."""
        if name not in self._table:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            loader = spec.loader
            spec.loader = _Loader(loader.name, loader.path, self._table[name], absent=self._absent)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, others: Sequence[str], *, absent: bool) -> None:
        super().__init__(name, path)
        self._others, self._absent = others, absent

    def exec_module(self, module: ModuleType) -> None:
        others = [name for name in self._others if name not in sys.modules]
        with absent(others) if self._absent else _placeholders(others):
            super().exec_module(module)


class _Nowhere:
    """An import finder that makes some modules unimportable."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, name: str, *_: Any) -> None:
        """Raise the import system's error for a module that is not installed."""
        if name in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextlib.contextmanager
def absent(names: Sequence[str]) -> Iterator[None]:
    """Make these modules unimportable (ImportError) in the block, unless already imported."""
    nowhere = _Nowhere(names)
    install(nowhere)
    try:
        yield
    finally:
        sys.meta_path.remove(nowhere)


@contextlib.contextmanager
def _placeholders(names: Sequence[str]) -> Iterator[None]:
    made = {name: ModulePlaceholder(name) for name in names}
    sys.modules.update(made)
    try:
        yield
    finally:
        for one in made.values():
            one.finish()


def install(finder: MetaPathFinderProtocol) -> None:
    """Install this finder before all others in this process."""
    sys.meta_path.insert(0, finder)
