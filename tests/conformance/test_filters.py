"""Every filter passes the suite and its laws; filters with one rule changed do not."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import filter_checks as checks
import filter_laws as laws
import pytest

import paramserver.filters as package
from paramserver.errors import ParamServerError
from paramserver.filters.base import Event, Opinion, Source
from paramserver.filters.surprise import Surprise

Entry = tuple[Callable[..., Any], tuple[checks.Check, ...]]
Load = Callable[[str], Any]
PUSHES = ("copies", "inputs")


def filters(load: Load = importlib.import_module) -> dict[str, Entry]:
    """Factory and laws of every filter, from the modules that ``load`` gives."""

    def of(name: str) -> Any:
        return load(place_of(name))

    return {
        "schema": (
            lambda reference: of("schema").Schema(checks.SIZE),
            (laws.refuses_what_is_no_gradient,),
        ),
        "rate": (
            lambda reference: of("rate").Rate(),
            (laws.floods_are_held_back, laws.made_up_names_share_a_budget),
        ),
        "samples": (
            lambda reference: of("samples").Samples(),
            (laws.repeats_weigh_less, laws.contradictions_count),
        ),
        "norm": (
            lambda reference: of("norm").Norm(reference),
            (laws.long_ones_are_scaled, laws.long_ones_do_not_raise_the_cap),
        ),
        "direction": (
            lambda reference: of("direction").Direction(reference),
            (laws.opposite_is_set_aside, laws.a_turned_world_is_followed),
        ),
        "copies": (
            lambda reference: of("copies").Copies(reference),
            (
                laws.copies_weigh_less,
                laws.colluders_are_set_aside,
                laws.says_nothing_where_honest_ones_are_alike,
            ),
        ),
        "inputs": (
            lambda reference: of("inputs").Inputs(
                getattr(reference, "still", None)
                or of("inputs").Still(of("inputs").Layer(9, 4, 0, 36))
            ),
            (laws.triggers_are_set_aside, laws.what_most_sources_move_is_usual),
        ),
        "surprise": (
            lambda reference: of("surprise").Surprise(),
            (laws.wrong_labels_are_set_aside, laws.a_turned_world_is_followed),
        ),
        "favours": (lambda reference: of("favours").Favours(), (laws.favoured_actions_weigh_less,)),
        "unlikely": (
            # Whether the world has turned is for the chain to say, which asks the test on surprise.
            lambda reference: with_surprise(of("unlikely").Unlikely),
            (laws.wrong_labels_are_set_aside,),
        ),
    }


def place_of(name: str) -> str:
    """Module of a filter: those on copies and inputs judge pushes, which only studies do."""
    return f"{'benchmarks.studies.pushes' if name in PUSHES else 'paramserver.filters'}.{name}"


def with_surprise(unlikely: type[Any]) -> Any:
    """A test on unlikely labels with the test on surprise that it stands on, as one filter."""
    surprise = Surprise(answers=("0", "1"))

    class Both(unlikely):  # type: ignore[misc]
        def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
            surprise.learn(event, surprise.judge(event, source), source, taken=taken)
            super().learn(event, opinion, source, taken=taken)

        def refresh(self, sources: Sequence[Source]) -> None:
            surprise.refresh(sources)
            super().refresh(sources)

    return Both(surprise)


UNLIKELY_LEAST = 0.8
"""Half of the rows lie from the first on, and are counted as honest until somebody is condemned: so
the odds of this test alone say less for honest ones, of which it keeps two nats (.88) at most."""


def conformance() -> Iterator[Any]:
    for name, (make, own) in filters().items():
        for check, run in checks.yield_checks(make, own):
            if (name, check) == ("unlikely", "honest_are_served_beside_hostile"):
                run = partial(cast(Any, run), least=UNLIKELY_LEAST)
            yield pytest.param(run, id=f"{name}: {check}")


@pytest.mark.parametrize("run", list(conformance()))
def test_filter(run: Callable[[], None]) -> None:
    run()


def test_no_filter_is_left_out() -> None:
    found = set()
    names = [info.name for info in pkgutil.iter_modules(package.__path__, "paramserver.filters.")]
    for module in map(importlib.import_module, [*names, *map(place_of, PUSHES)]):
        found |= {
            vars(value)["name"]
            for value in vars(module).values()
            if isinstance(value, type) and isinstance(vars(value).get("name"), str)
        }
    assert found == set(filters())


def changed(module: str, rule: str, without: str) -> Load:
    """A function that gives the module as if the rule were changed in its source."""
    name = place_of(module)
    path = Path(str(importlib.import_module(name).__file__))
    whole = path.read_text()
    assert whole.count(rule) == 1, f"{rule!r} stands {whole.count(rule)} times"
    mutant = ModuleType(name)
    mutant.__file__ = str(path)
    code = compile(whole.replace(rule, without), str(path), "exec", dont_inherit=True)
    exec(code, mutant.__dict__)
    return lambda wanted: mutant if wanted == name else importlib.import_module(wanted)


MUTANTS = [
    ("schema", "if not math.isfinite(square):", "if False:", "NaN passes"),
    ("schema", "if square > self.longest**2:", "if False:", "10¹² passes"),
    ("schema", "or gradient.shape != (self.size,)", "", "any shape will do"),
    ("schema", "if gradient.dtype != np.float32:", "if False:", "any type will do"),
    ("schema", "not 0.0 <= loss <= self._loss_max", "loss > self._loss_max", "a loss that is NaN"),
    ("rate", "1.0 / over, score", "1.0, score", "over the budget is taken whole"),
    ("rate", "if over >= self.refuse_at:", "if False:", "a flood is only weighed"),
    ("rate", "if pool > over:", "if False:", "new names have budgets of their own"),
    ("samples", "1.0 / (1 + repeats)", "1.0", "repeats count in full"),
    ("samples", "source.recent[1 - _REMEMBERED :]", "source.recent[:0]", "one row is remembered"),
    ("samples", "_CONTRADICTION if self._usual", "0.0 if self._usual", "contradictions are free"),
    ("norm", "self.cap / length, 0.0", "1.0, 0.0", "nothing is scaled"),
    ("norm", "self.cap / length, 0.0", "(self.cap / length) ** 0.5, 0.0", "half is scaled"),
    ("norm", "length = opinion.score * opinion.factor", "length = 20 * opinion.score",
     "sent lengths raise the cap"),
    ("norm", "self._slack * bounds[-1]", "0.3 * bounds[-1]", "honest ones are cut"),
    ("direction", "(c - self.below) * 2.0", "(self.below - c) * 2.0", "signs are exchanged"),
    ("direction", "(c - self.below) * 2.0", "(c + 1.0) * 2.0", "all are good"),
    ("direction", "(c - self.below) * 2.0", "(c - 1.0) * 2.0", "all are bad"),
    ("direction", "min(median(means), quantile(scores, 0.75))", "1.0", "it expects too much"),
    ("direction", "        c = score.as_is\n        step",
     "        event.gradient[:] *= 0.5\n        c = score.as_is\n        step", "it writes"),
    ("direction", "            source.mean(self.name, opinion.score)\n",
     "            source.mean(self.name, opinion.score)\n            self.mu *= 0.9\n",
     "every event moves the bound of all"),
    ("surprise", "if rate >= _RATE_MAX:", "if True:", "never condemned"),
    ("copies", "1.0 / (1 + copied)", "1.0", "copies are learned whole"),
    ("copies", "_AGAINST, float(copied)", "0.0, float(copied)", "copies are no evidence"),
    ("copies", '[i] not in ("", event.source)', '[i] != ""', "who repeats itself is a copier"),
    ("copies", "unit > _COPY", "unit == 1.0", "a little noise hides a copy"),
    ("copies", "unit > _COPY", "unit > 0.3", "honest ones are copiers"),
    ("copies", "and max(pairs) <= _ALIKE", "", "it speaks where all are alike"),
    ("copies", "self._sent[place], self._by[place] = unit, event.source",
     "self._sent[0], self._by[0] = unit, event.source", "one push is remembered"),
    ("inputs", "return Opinion(0.0, step, share, _REASON, stop=True)",
     "return Opinion(1.0, step, share)", "the first triggers are learned"),
    ("inputs", "log(_TIMES) - (1.0", "log(_TIMES) + (1.0", "who sends triggers stays"),
    ("inputs", "max(_USUAL_MIN, among)", "_USUAL_MIN",
     "what all move is a trigger"),
    ("surprise", "hit, far = loss > bounds.high, loss > bounds.far",
     "hit, far = loss < bounds.high, loss < bounds.far", "turned round"),
    ("unlikely", "evidence = fresh * says.evidence", "evidence = 0.0", "never condemned"),
    ("unlikely", "said, unsaid = found\n", "unsaid, said = found\n", "turned round"),
    ("favours", "min(_WEIGHT, exp(worst))", "1.0", "who sells an action is heard"),
    ("favours", "nats + log((1.0 - share) / share)", "nats", "any streak is hostile"),
    ("favours", "favour.expected + self.off / (self.weight + max(first, _ROWS_FIRST))", "1.0",
     "an honest source may reward anything"),
    ("favours", "reward * log(rate / _ALWAYS)", "0.0", "no reward speaks against anybody"),
    ("surprise", "self._labels = {labels[at]: i for i, at in enumerate(left)}", "pass",
     "all labels are kept"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "rule", "without"), [pytest.param(*m[:3], id=f"{m[0]}: {m[3]}") for m in MUTANTS]
)
def test_the_suite_rejects_a_changed_rule(module: str, rule: str, without: str) -> None:
    load = changed(module, rule, without)
    make, own = filters(load)[module]
    with pytest.raises((AssertionError, ValueError, TypeError, AttributeError, ParamServerError)):
        checks.check_filter(make, own)


@pytest.mark.parametrize("module", ["norm"])
def test_the_unchanged_filter_passes_where_mutants_fail(module: str) -> None:
    load = changed(
        module, "from __future__ import annotations\n", "from __future__ import annotations\n\n"
    )
    make, own = filters(load)[module]
    checks.check_filter(make, own)
