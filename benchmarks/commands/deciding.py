"""Commands of `python -m benchmarks` about choices: streams, worlds, off-policy logs, costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands.table import (
    AsJson,
    Rows,
    Streams,
    app,
    one_of,
    progress,
    show,
    show_result,
    verdict,
)
from online.settings.config import data_dir


@app.command()
def bandits(
    stream: Streams = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="a policy of ours; may be given again")
    ] = None,
    seeds: Annotated[int, typer.Option(help="orders and draws of each", min=1)] = 5,
    first: Annotated[int, typer.Option(help="the first seed")] = 1,
    late: Annotated[int, typer.Option(help="choices until a reward is told", min=0)] = 0,
    beside: Annotated[bool, typer.Option(help="VowpalWabbit and what is possible, too")] = True,
    rows: Rows = None,
    as_json: AsJson = False,
) -> None:
    """Mean reward of choices on labelled streams, beside VowpalWabbit, river and all told.

    VowpalWabbit, told as late, is left out where it is not installed.  Needs
    the data sets in ONLINE_DATA_DIR.  Example: python -m benchmarks bandits --stream digits
    """
    from benchmarks.choices import bandits as bench
    from benchmarks.choices.bandits_streams import STREAMS

    found = [
        line
        for name in one_of(stream, STREAMS)
        for line in bench.run(
            name,
            data_dir(),
            range(first, first + seeds),
            rows,
            late,
            bench.kinds(one_of(policy, bench.POLICIES)),
            beside=beside,
        )
    ]
    show("mean reward of the chosen action", found, as_json=as_json)


@app.command("bandit-worlds")
def bandit_worlds(
    world: Annotated[list[str] | None, typer.Option(help="a world; may be given again")] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="a policy of ours; may be given again")
    ] = None,
    worlds: Annotated[int, typer.Option(help="of each kind", min=1)] = 40,
    first: Annotated[int, typer.Option(help="the first one's seed")] = 1,
    rows: Rows = None,
    as_json: AsJson = False,
) -> None:
    """Regret in simulated worlds where exploring pays, beside Thompson's rule and KL-UCB.

    Example: python -m benchmarks bandit-worlds --world arms --policy auto
    """
    from benchmarks.choices import bandits_worlds as bench
    from benchmarks.choices.bandits import POLICIES, kinds

    played = kinds(one_of(policy, POLICIES))
    found = [
        line
        for name in one_of(world, bench.WORLDS)
        for line in bench.run(name, range(first, first + worlds), rows or 1500, played)
    ]
    show("regret", found, as_json=as_json)


@app.command("off-policy")
def off_policy(
    logs: Annotated[int, typer.Option(help="logs with known truth", min=1)] = 200,
    rows: Rows = None,
    peer: Annotated[Path | None, typer.Option(help="a folder with obp")] = None,
    as_json: AsJson = False,
) -> None:
    """How often the interval of a policy's value ever misses, and how far each estimate is off.

    With ``--peer`` beside those of obp (pip install --ignore-requires-python --no-deps -t FOLDER
    obp==0.5.7).  Exit code 1 if more than one in twenty does.  Example: python -m benchmarks
    off-policy
    """
    from benchmarks.studies import offpolicy as bench

    found = bench.run(range(1, logs + 1), rows or 2000, peer)
    raise verdict("off-policy", found, as_json=as_json)


@app.command()
def propensities(
    choices: Annotated[int, typer.Option(help="of all policies together", min=1)] = 1_000_000,
    as_json: AsJson = False,
) -> None:
    """Chi-square of what was chosen, beside what the logged probabilities say of it.

    Exit code 1 if chance would do so once in a thousand times.  Example: python -m benchmarks
    propensities --choices 100000
    """
    from benchmarks.choices import propensities as bench

    found = bench.run(choices)
    raise verdict("chi-square of the draws", found, as_json=as_json)


@app.command("poisoned-rewards")
def poisoned_rewards(
    worlds: Annotated[int, typer.Option(help="of each kind", min=1)] = 16,
    first: Annotated[int, typer.Option(help="the first one's seed")] = 1,
    filters: Annotated[str, typer.Option(help="none or default, as in the settings")] = "default",
    world: Annotated[str | None, typer.Option(help="context or arms; both by default")] = None,
    rows: Rows = None,
    as_json: AsJson = False,
) -> None:
    """Regret where a quarter of the sources says 1 of one action, beside that without them.

    In one process.  Example: python -m benchmarks poisoned-rewards --worlds 4
    """
    from benchmarks.attacks import poisoned_rewards as bench

    one_of([filters], ("none", "default"))
    names = one_of(None if world is None else [world], bench.WORLDS)

    lines = bench.run(range(first, first + worlds), rows or 1500, filters, names, progress)
    show("poisoned rewards", list(lines), as_json=as_json)


@app.command("choices-killed")
def choices_killed(
    kills: Annotated[int, typer.Option(help="of the whole service", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="of the pauses between them")] = 0,
) -> None:
    """Kill a service with choices and rewards in flight, and compare what callers know with it.

    Exit code 1 if a reward is lost, counted twice or another one, or a choice was drawn again.
    Example: python -m benchmarks choices-killed --kills 20
    """
    from benchmarks.faults import choices_killed as bench

    result = bench.run(kills, seed=seed)
    show_result(result)
    raise typer.Exit(0 if result.good else 1)


@app.command("conversions-killed")
def conversions_killed(
    kills: Annotated[int, typer.Option(help="every fourth of all processes", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="of the pauses between them, and of who dies")] = 0,
) -> None:
    """Kill processes of a service that takes no label for a negative, until one comes.

    Exit code 1 if a label is lost, or a default counts twice or stays beside what corrects it.
    Example: python -m benchmarks conversions-killed --kills 20
    """
    from benchmarks.faults import conversions_killed as bench

    result = bench.run(kills, seed=seed)
    show_result(result)
    raise typer.Exit(0 if result.good else 1)


@app.command("choice-cost")
def choice_cost(
    turns: Annotated[int, typer.Option(help="blocks of each kind", min=1)] = 9,
    as_json: AsJson = False,
) -> None:
    """CPU time of choices beside predictions, of rewards and committed choices beside feedback.

    Exit code 1 if one costs more than was asked.  Example: python -m benchmarks choice-cost
    """
    from benchmarks.speed import choice_cost as bench

    found = bench.run(turns)
    raise verdict("CPU time of the service a request", found, as_json=as_json)
