"""Every detector passes the conformance suite; detectors with one rule less do not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import detector_oracles as oracles
import pytest
from changed_source import changed

import evaluation.drift as package

LATE = {"page_hinkley": 400, "hddm_a": 200, "ddm": 300}
"""Rows that these take from .1 to .6, as their defaults are slow."""
LOCATES = {"glr"}
NOISY = {"ddm": 8, "hddm_w": 4, "hddm_a": 2}
"""False alarms in 20,000 rows of those whose tests are not corrected for being made at each row."""

PACKAGES = ("evaluation.drift", "detector_checks")


def promises(load: Callable[[str], Any]) -> dict[str, tuple[Callable[[], Any], Any]]:
    """Factory and promise of every detector, from the modules that ``load`` gives."""
    detectors, checks = load("evaluation.drift.detectors"), load("detector_checks")
    return {
        name: (
            make,
            checks.Promise(
                falls=name not in detectors.ONLY_RISES,
                false_max=NOISY.get(name, 1),
                delay_max=LATE.get(name, 150),
                locates=name in LOCATES,
            ),
        )
        for name, make in detectors.DETECTORS.items()
    }


def conformance() -> Iterator[Any]:
    checks = importlib.import_module("detector_checks")
    for name, (make, promise) in promises(importlib.import_module).items():
        for check, run in checks.yield_checks(make, promise):
            yield pytest.param(run, id=f"{name}: {check}")


@pytest.mark.parametrize("run", list(conformance()))
def test_detector(run: Callable[[], None]) -> None:
    run()


def test_our_own_detector_alarms_where_a_slow_one_does() -> None:
    make = promises(importlib.import_module)["glr"][0]
    oracles.agrees(make)
    oracles.merges(make)


def run_changed(module: str, rule: str, without: str, of: str) -> None:
    """The suite on one detector, with the rule changed."""
    with changed(f"evaluation.drift.{module}", rule, without, PACKAGES) as load:
        make, promise = promises(load)[of]
        load("detector_checks").check_detector(make, promise)
        if of == "glr":
            oracles.agrees(make)
            oracles.merges(make)


MUTANTS = [
    ("glr", "alarm", "if 0.0 <= x <= 1.0:", "if x == x:", "any number will do"),
    ("glr", "alarm", "if 0.0 <= x <= 1.0:", "if not x < 0.0 and not x > 1.0:", "NaN will do"),
    ("glr", "alarm", '"up" if after > before else "down"', '"down" if after > before else "up"',
     "directions are swapped"),
    ("adwin", "alarm", "return Change(direction, before, after, n_before, n_after)",
     "return Change(direction, after, before, n_before, n_after)", "means are swapped"),
    ("glr", "glr", "alarm = alarm or statistic > self._threshold - easier", "alarm = True",
     "alarms below the threshold"),
    ("glr", "glr", "n1 * _kl(sum1 / n1, p) + n0", "n1 * _kl(sum1 / n1, p) - n0",
     "the older part counts against the change"),
    ("glr", "glr", "self._n, self._sum = sum(self._ns), sum(self._sums)\n        return",
     "return", "the rows before the change are counted on"),
    ("glr", "glr", "del self._ns[:at], self._sums[:at]", "del self._ns[at:], self._sums[at:]",
     "what is newer than the change is forgotten"),
    ("glr", "glr", "if last - first <= self._width:", "if True:", "blocks never merge"),
    ("glr", "glr", "self._open_n, self._open_sum = 0, 0.0\n        last",
     "self._open_n = 0\n        last", "an open block keeps its sum"),
    ("glr", "glr", "if n0 < ROWS_MIN:", "if n0 < 2_000:", "short spans are never tested"),
    ("glr", "glr", "            if statistic > best:\n                best, at = statistic, i",
     "            if statistic > best:\n                return i", "the first split, not the best"),
    ("glr", "glr", "math.log(n0 * n1 / n / SCALE)", "math.log(n1 / SCALE)",
     "the older part's rows don't count"),
    ("glr", "glr", "statistic > self._threshold - easier", "statistic > self._threshold + easier",
     "long splits are harder"),
    ("adwin", "detectors", "n, total = self._n, self._sum\n", "n, total = self._n, self._n\n",
     "the sum is the number"),
    ("adwin", "detectors", "        self._n, self._sum = 0, 0.0\n        return change(total",
     "        return change(total", "rows before an alarm are counted on"),
    ("page_hinkley", "detectors", "lambda: River(drift.PageHinkley())",
     'lambda: River(drift.PageHinkley(mode="up"))', "falls are not seen"),
    ("hddm_a", "detectors", "binary.HDDMA(two_sided_test=True)", "binary.HDDMA()",
     "falls are not seen"),
    ("hddm_w", "detectors", "binary.HDDMW(two_sided_test=True)",
     "binary.HDDMW(two_sided_test=True, drift_confidence=0.2)", "it alarms all the time"),
    ("ddm", "detectors", "self._recent += (x - self._recent) / min(self._n, RECENT)",
     "self._recent += (self._recent - x) / min(self._n, RECENT)", "the recent mean runs away"),
    ("ddm", "detectors", "        self._begin()\n        return detected",
     "        return detected", "rows before an alarm are counted on"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("of", "module", "rule", "without"),
    [pytest.param(*m[:4], id=f"{m[0]}: {m[4]}") for m in MUTANTS],
)
def test_the_suite_rejects_a_changed_rule(of: str, module: str, rule: str, without: str) -> None:
    with pytest.raises((AssertionError, ArithmeticError, IndexError)) as failure:
        run_changed(module, rule, without, of)
    assert " stands " not in str(failure.value)


def test_the_unchanged_detectors_pass_where_mutants_fail() -> None:
    run_changed("alarm", "Signal = Literal[", "Signal = Literal[  ", "glr")
    assert sys.modules["evaluation.drift"] is package
