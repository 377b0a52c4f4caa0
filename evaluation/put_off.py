"""Imports that are put off until something needs them.

River imports scipy's statistics, and with its sample data scikit-learn and pandas, for a few of its
estimators; Ray Serve imports pandas to write its tables as JSON.  That is a second of a core and
100 MB in each process of the service, none of which the first prediction needs.  While one of the
modules in a table here is imported it finds a :class:`StandIn` in the place of such a library, or
none at all; everybody else imports the library itself.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any, Final

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
"""By module of river: what it imports at its beginning and uses in some calls."""

SERVE: Final[Mapping[str, Sequence[str]]] = {"ray.serve._private.utils": ("pandas",)}
"""By module of Ray Serve: what it can do without."""


class StandIn(ModuleType):
    """A module that is imported when something of it is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name, f"`{name}`, imported when it is used.")
        self.__dict__["_taken_by"] = threading.get_ident()  # by a name, while a module is imported

    def __getattr__(self, name: str) -> Any:
        """Return what the module has, or while another imports a name from it, a promise of it."""
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        if self.__dict__["_taken_by"] == threading.get_ident():
            return _Promise(self, name)
        if sys.modules.get(self.__name__) is self:  # to another thread, just now
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)

    def taken(self) -> None:
        """From now on each use is one of the module itself."""
        self.__dict__["_taken_by"] = None
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


class _Promise:
    """A function or an object of a module that is imported when it is used."""

    def __init__(self, module: StandIn, name: str) -> None:
        self._module, self._name = module, name

    def __call__(self, *args: Any, **named: Any) -> Any:
        return getattr(self._module, self._name)(*args, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(self._module, self._name), name)


class PutOff:
    """Finds the modules of a table, each of which is imported without what the table names.

    Parameters:
        table: Names of modules by the module that imports them.
        absent: Whether they can't be imported meanwhile (ImportError); else there are stand-ins.
    """

    def __init__(self, table: Mapping[str, Sequence[str]], *, absent: bool = False) -> None:
        self._table, self._absent = table, absent

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, with a loader that puts off; None for any other module."""
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
        with absent(others) if self._absent else _stand_ins(others):
            super().exec_module(module)


class _Nowhere:
    """Finds some modules nowhere, whoever else could."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, name: str, *_: Any) -> None:
        """Raise what the import system raises for a module that is not installed."""
        if name in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextlib.contextmanager
def absent(names: Sequence[str]) -> Iterator[None]:
    """While this lasts these modules can't be imported (ImportError); if they were, they stay."""
    nowhere = _Nowhere(names)
    install(nowhere)
    try:
        yield
    finally:
        sys.meta_path.remove(nowhere)


@contextlib.contextmanager
def _stand_ins(names: Sequence[str]) -> Iterator[None]:
    made = {name: StandIn(name) for name in names}
    sys.modules.update(made)
    try:
        yield
    finally:
        for one in made.values():
            one.taken()


def install(finder: PutOff | _Nowhere) -> None:
    """Find modules by this finder first, from now on, in this process."""
    sys.meta_path.insert(0, finder)
