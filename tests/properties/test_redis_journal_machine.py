"""Any order of calls on one Redis server, by two processes, as for a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import journal_machine as machine_module
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from replay.errors import JournalBehind, JournalUnavailable
from replay.journal.batch import Bounds
from replay.journal.redis import scripts as redisscripts
from replay.journal.redis.journal import RedisJournal

HERE = Path(__file__).parent

modest: Any = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
# A mutant ends its run, so only one that is missed takes so many.  Which examples are drawn follows
# the constants of whatever modules are loaded: as many as were enough one day may not be the next.
mutated: Any = settings(
    modest, max_examples=1_000, phases=[Phase.generate], report_multiple_bugs=False
)


@pytest.fixture(scope="module")
def url(redis_node: Any) -> str:
    return str(redis_node.url)


def machine(url: str) -> Any:
    bounds = Bounds(halves=machine_module.HALVES)

    class RedisMachine(machine_module.JournalMachine):  # type: ignore[misc]
        open_journal = staticmethod(
            lambda folder: RedisJournal(url, prefix=folder.name, bounds=bounds)
        )

    return RedisMachine


@pytest.mark.parametrize("examples", [15, pytest.param(40, marks=pytest.mark.long)])
def test_the_redis_journal_keeps_its_promises(url: str, examples: int) -> None:
    run_state_machine_as_test(machine(url), settings=settings(modest, max_examples=examples))


OLD_IS_OWN = ("APPEND", "tonumber(offset) > known", "true", "old row is an own row")
MUTANTS = [
    ("APPEND", "tonumber(offset) > known", "false", "own row is a duplicate"),
    OLD_IS_OWN,
    ("APPEND", "and over ~= had[4] then", "and false then", "over any half"),
    ("APPEND", "then count = count + 1 end", "then stop = stop + 1 end", "offset taken by a half"),
    ("CLAIM", "int(tonumber(n) + 1)", "n", "claim not counted"),
    ("TRIM", "if epoch ~= ARGV[3] then", "if false then", "trim without epoch"),
    ("TRIM", "ARGV[i + 1] .. '-0'", "'+'", "trim past the floor"),
    ("TRIM", "redis.call('HDEL', P .. ':ids:' .. model, key)", "", "ids stay"),
    ("TRIM", "if upto then redis.call('XTRIM'", "if false then redis.call('XTRIM'", "ids only"),
    ("WRITE_CONTROL", "if epoch ~= ARGV[6] then", "if false then", "fence ignored"),
]


@pytest.mark.parametrize(
    ("script", "rule", "without"),
    [
        # by chance the first takes a hundred examples
        pytest.param(*m[:3], id=m[3], marks=[pytest.mark.long] if m is OLD_IS_OWN else [])
        for m in MUTANTS
    ],
)
def test_the_machine_notices_a_missing_rule(
    url: str, script: str, rule: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = getattr(redisscripts, script)
    assert whole.count(rule) == 1
    monkeypatch.setattr(redisscripts, script, whole.replace(rule, without))
    errors = (AssertionError, JournalUnavailable, JournalBehind, pytest.fail.Exception)
    with pytest.raises(errors) as failure:
        run_state_machine_as_test(machine(url), settings=mutated)
    assert "compiling" not in str(failure.value)


def old_row(made: Any) -> None:
    """A row that was answered comes again."""
    try:
        p = made.first_writer("m")
        made.send(0, p, 0, [made.fresh(p, 1)], lost=False)
        made.send(0, p, 1, [made.fresh(p, 1)], lost=False)
    finally:
        made.teardown()


def test_an_old_row_that_is_an_own_row_is_noticed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_row(machine(url)())
    script, rule, without, _ = OLD_IS_OWN
    monkeypatch.setattr(redisscripts, script, getattr(redisscripts, script).replace(rule, without))
    with pytest.raises(AssertionError):
        old_row(machine(url)())
