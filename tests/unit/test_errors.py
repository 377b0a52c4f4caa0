"""Every error survives pickling (it crosses processes) and says whether it is definite."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Iterator

import pytest

import evaluation
import online
import paramserver
import replay

BASES = {
    "online": "OnlineError",
    "paramserver": "ParamServerError",
    "replay": "ReplayError",
    "evaluation": "EvaluationError",
}
# The first runs, the other two import Ray, whose flags the rest of a test run should not inherit.
SKIPPED = ("online.__main__", "online.deployment", "paramserver.ray_client")
NO_ERRORS = ("Crash",)  # a stopped machine in the checks for snapshot stores: nobody catches it
SAMPLES: dict[str, object] = {
    "str": "text",
    "object": "text",
    "str | None": "text",
    "int": 3,
    "int | None": 3,
    "float": 2.5,
    "bool": False,
    "tuple[str, ...]": ("text",),
    "Sequence[object]": ("text", 3),
}


def error_classes() -> Iterator[type[Exception]]:
    """Exception classes that a module of the four packages defines itself."""
    for package in (online, paramserver, replay, evaluation):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name in SKIPPED:
                continue
            module = importlib.import_module(found.name)
            for value in vars(module).values():
                own = inspect.isclass(value) and value.__module__ == found.name
                if own and issubclass(value, Exception) and value.__name__ not in NO_ERRORS:
                    yield value


CLASSES = sorted(set(error_classes()), key=lambda c: f"{c.__module__}.{c.__name__}")


def arguments(error: type[Exception]) -> list[object]:
    """A value for each parameter of the constructor, by its annotation."""
    if error.__init__ is Exception.__init__:
        return []
    parameters = list(inspect.signature(error.__init__).parameters.values())[1:]
    return [SAMPLES[str(p.annotation)] for p in parameters]


def assert_survives(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert again.definite is error.definite  # type: ignore[attr-defined]


def test_classes_are_found() -> None:
    names = {f"{c.__module__.partition('.')[0]}.{c.__name__}" for c in CLASSES}
    assert len(CLASSES) >= 30
    assert {f"{package}.{base}" for package, base in BASES.items()} <= names


@pytest.mark.parametrize("error", CLASSES, ids=lambda c: c.__name__)
def test_round_trip(error: type[Exception]) -> None:
    package = error.__module__.partition(".")[0]
    assert BASES[package] in {c.__name__ for c in error.__mro__}
    made = error(*arguments(error))
    assert isinstance(made.definite, bool)  # type: ignore[attr-defined]
    assert_survives(made)
    if made.args:
        assert str(made) != str(made.args), "it has no message of its own"


class _Lossy(Exception):
    definite = True

    def __init__(self, field: str, bound: int) -> None:
        super().__init__(f"{field} is above {bound}")
        self.field, self.bound = field, bound


def test_a_constructor_that_swallows_its_arguments_is_found() -> None:
    with pytest.raises(TypeError):
        assert_survives(_Lossy("rows", 3))
