"""`online evaluate`: estimates what other policies would have earned, from the logged choices."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from online.commands.base import Context, common, console, moment, only, readable, replacing, table
from online.errors import ConfigError, StartRefused

if TYPE_CHECKING:
    from evaluation.offpolicy import Estimated
    from online.decide.record import Choice
    from online.settings.choose import Choose
    from online.settings.config import Settings
    from replay.journal.base import Journal

_USUAL: Final = ("greedy", "uniform")


@common()
def evaluate(
    context: Context,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy", help="greedy, uniform, baseline, epsilon:0.1 or always:ACTION; repeatable"
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option(min=1e-6, max=0.5, help="probability that an interval ever misses")
    ] = 0.05,
    since: Annotated[
        str | None, typer.Option(help="rewards recorded since: 7d, 2026-05-31, …")
    ] = None,
    until: Annotated[str | None, typer.Option(help="and before")] = None,
    dsjson: Annotated[
        Path | None,
        typer.Option("--dsjson", help="write the log to a file in VowpalWabbit's dsjson format"),
    ] = None,
    obp: Annotated[
        Path | None, typer.Option("--obp", help="write the log to a file of arrays (.npz) for obp")
    ] = None,
) -> None:
    """Estimate what other policies would have earned, from the journal's choices and rewards.

    The service need not run, and nothing is changed.  The intervals remain valid however often they
    are computed.  Policies are evaluated with the rewards that the model expected at the time of
    the request, so no reward influences its own evaluation.

    Example: online evaluate --policy greedy --policy always:news

    Example: online evaluate --since 7d --json

    Example: online evaluate --dsjson log.dsjson --obp log.npz
    """
    from online.decide.policy_evaluation import SERVED, Judging
    from online.rows.journal_rows import open_for_report

    settings = context.settings()
    served, choose = _chosen(settings, context.model)
    names = [n for n in dict.fromkeys(policy or _USUAL) if n != SERVED]
    judging = Judging(names, alpha, *choose.reward_range, apprentice=choose.apprentice)
    begin = -math.inf if since is None else moment("--since", since)
    end = math.inf if until is None else moment("--until", until)
    n = beyond = 0
    with contextlib.closing(open_for_report(settings)) as journal:
        read_again = partial(logged, journal, served, begin, end)
        for one in _written(read_again, dsjson, obp):
            try:
                judging.add(one.choice, one.reward)
            except ValueError:  # a reward from before the range was changed
                beyond += 1
                continue
            n += 1
    if not n:
        raise StartRefused(
            f"the journal has no rewarded choice of {served} in this time",
            "Send rewards for choices first, or name another time",
        )
    judged = judging.now()
    if context.as_json:
        print(json.dumps(_data(judged, judging.unanswered, beyond)))
    else:
        _print(judged, judging.unanswered, beyond)


def _chosen(settings: Settings, name: str | None) -> tuple[str, Choose]:
    """Name and settings of the model that chooses.  Raises ConfigError."""
    choosing = {m.name: (m.name, m.choose) for m in settings.models if m.choose is not None}
    if not choosing:
        raise ConfigError("models", "no model has task: choose", "Set `task: choose` for one")
    return only(choosing, name, "choose", "does not choose")


class Logged(NamedTuple):
    """A choice with its reward, and when that was recorded (POSIX seconds)."""

    choice: Choice
    reward: float
    event: str
    at: float


def _written(
    read_again: Callable[[], Iterator[Logged]], dsjson: Path | None, obp: Path | None
) -> Iterator[Logged]:
    """Yield the rows, after writing obp's file and while writing the dsjson file."""
    from online.decide.dsjson import line
    from online.decide.obp import Feedback

    if obp is not None:
        feedback = Feedback()
        for one in read_again():
            feedback.add(one.choice, one.reward)
        with replacing("--obp", obp) as part:
            feedback.save(part)
    with contextlib.ExitStack() as opened:
        file = None
        if dsjson is not None:
            place = opened.enter_context(replacing("--dsjson", dsjson))
            file = opened.enter_context(place.open("w", encoding="utf-8"))
        for one in read_again():
            if file is not None:
                file.write(line(*one) + "\n")
            yield one


def logged(journal: Journal, model: str, since: float, until: float) -> Iterator[Logged]:
    """Yield choices with their rewards in journal order, except quarantined ones.

    Light rows count as often as in the service's scores (:mod:`evaluation.light_rows`).
    """
    from evaluation.light_rows import weigh
    from evaluation.metrics import add
    from online.decide.record import RecordInvalid, unpack
    from online.rows.history import origin
    from online.rows.in_order import rows_after
    from replay.codec import decode
    from replay.errors import PayloadFormat, PayloadInvalid
    from replay.journal.base import Verdict

    n, weights = 0, dict[str, float]()
    for row in rows_after(journal, model):
        lost = row.verdict in (Verdict.LOST, Verdict.QUARANTINED)
        if lost or not since <= row.at < until or origin(row).key != row.key:
            continue
        with contextlib.suppress(PayloadFormat, PayloadInvalid, RecordInvalid):
            example = decode(row.payload)
            counts, more = weigh(example, weights, n)
            n += 1
            add(weights, more)
            if not (counts and example.scored) or example.choice is None:
                continue
            if isinstance(example.label, (int, float)):
                choice, reward = unpack(example.choice), float(example.label)
                yield Logged(choice, reward, row.event_id, row.at)


def _data(
    estimates: Mapping[str, Estimated], unanswered: Mapping[str, int], beyond: int
) -> dict[str, Any]:
    policies = {
        name: {
            "n": one.n, "unanswered": unanswered[name], "ips": one.ips, "snips": one.snips,
            "dr": one.dr, "effective": one.effective, "warnings": list(one.warnings),
            "interval": None if one.interval is None else list(_ends(one)),
        }
        for name, one in estimates.items()
    }  # fmt: skip
    return {"at": time.time(), "out_of_range": beyond, "policies": policies}


def _ends(one: Estimated) -> tuple[float, float]:
    assert one.interval is not None
    return one.interval.low, one.interval.high


def _print(estimates: Mapping[str, Estimated], unanswered: Mapping[str, int], beyond: int) -> None:
    numbers = ("reward", "between", "snips", "choices", "worth")
    rows = table("policy", *numbers, right=numbers)
    for name, one in estimates.items():
        between = "–"
        if one.interval is not None:
            low, high = _ends(one)
            between = f"{low:.3f} … {high:.3f}"
        rows.add_row(
            readable(name), _cell(one.dr), between, _cell(one.snips), f"{one.n:,}",
            f"{one.effective:,.0f}",
        )  # fmt: skip
    console().print(rows)
    for name, one in estimates.items():
        for warning in one.warnings:
            console().print(f"[yellow]{readable(name)}: {readable(warning)}[/yellow]")
        if unanswered[name]:
            console().print(f"{readable(name)}: no answer to {unanswered[name]:,} choices")
    if beyond:
        console().print(f"{beyond:,} rewards are out of reward_range, and were left out")


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
