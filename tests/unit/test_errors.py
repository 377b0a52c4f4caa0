"""Every error survives pickling (it crosses processes) and says whether it is definite.

Its sentence names nothing that it does not carry.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Iterator
from string import Formatter

import pytest

import evaluation
import online
import paramserver
import replay
from online.messages.structs import Event
from refusals import Refusal

BASES = {
    "online": "OnlineError",
    "paramserver": "ParamServerError",
    "replay": "ReplayError",
    "evaluation": "EvaluationError",
}
# The first runs, the others import Ray, whose flags the rest of a test run should not inherit.
SKIPPED = (
    "online.__main__",
    "online.service.on_ray.deployment",
    "online.service.on_ray.serve_peers",
    "paramserver.clients.ray_client",
)
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
    "tuple[Event, ...]": (Event(True, event_id="e"),),
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
    return [SAMPLES[str(p.annotation)] for p in fields(error)]


def fields(error: type[Exception]) -> list[inspect.Parameter]:
    """The parameters of the constructor; none where Exception's takes anything."""
    if error.__init__ is Exception.__init__:
        return []
    return list(inspect.signature(error).parameters.values())


def unknown(error: type[Refusal]) -> list[str]:
    """Names in the sentence that are no fields of the class."""
    names = [name for _, name, _, _ in Formatter().parse(error.text) if name is not None]
    return sorted(set(names) - {p.name for p in fields(error)})


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
    assert issubclass(error, Refusal)
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


@pytest.mark.parametrize("error", CLASSES, ids=lambda c: c.__name__)
def test_the_sentence_names_what_the_error_carries(error: type[Refusal]) -> None:
    assert unknown(error) == []
    assert not fields(error) or error.text or "__str__" in vars(error)


@pytest.mark.parametrize("error", CLASSES, ids=lambda c: c.__name__)
def test_arguments_may_be_named(error: type[Exception]) -> None:
    values = arguments(error)
    named = error(**{p.name: v for p, v in zip(fields(error), values, strict=True)})
    placed = error(*values)
    assert (named.args, vars(named), str(named)) == (placed.args, vars(placed), str(placed))
    assert_survives(named)


class _Sealed(Refusal):
    partition: int
    end: int = 7
    remedy: str = "register a new one"
    text = "partition {partition} is sealed at {end:03d}; {remedy!s:.8}"


def test_a_sentence_has_fields_defaults_and_formats() -> None:
    assert unknown(_Sealed) == []
    error = _Sealed(3, remedy="wait for another")
    assert str(error) == "partition 3 is sealed at 007; wait for"
    assert error.args == (3, 7, "wait for another")
    assert_survives(error)


@pytest.mark.parametrize("text", ["at {ends}", "{partition.real}", "{args[0]}", "{} rows"])
def test_a_sentence_that_names_something_else_is_noticed(text: str) -> None:
    assert len(unknown(type("Misspelt", (_Sealed,), {"text": text}))) == 1


@pytest.mark.parametrize("named", [{}, {"partition": 1, "ends": 2}])
def test_arguments_that_are_no_fields_are_refused(named: dict[str, int]) -> None:
    with pytest.raises(TypeError, match=r"partition|ends"):
        _Sealed(**named)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="too many"):
        _Sealed(1, 2, "r", "more")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="partition"):
        _Sealed(1, partition=1)  # type: ignore[misc]


def test_fields_of_the_base_come_first() -> None:
    class Adopted(_Sealed):
        by: str = "nobody"
        text = "partition {partition}, adopted by {by}"

    assert [p.name for p in fields(Adopted)] == ["partition", "end", "remedy", "by"]
    assert str(Adopted(3, by="r1")) == "partition 3, adopted by r1"


def test_without_fields_an_error_says_what_it_is_given() -> None:
    class Lowered(Refusal):
        """A model that is asked row by row."""

    assert str(Lowered("a forest")) == "a forest"
    assert Lowered("a", 2).args == ("a", 2)
