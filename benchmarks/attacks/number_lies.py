"""Lies about numbers, within the range of what is sent: five of twenty sources, and honest ones.

The rows of a stream in order, from another place with each seed, with the answers to the second
half judged (mean absolute error, honest rows only).  Lies are about one of the last two hundred
rows, a quarter of what arrives, from a fourth of the stream on:

* *flip*: high is low and low is high, within what 99 of 100 labels are;
* *half*: every other label is the highest of those;
* *random*: the label of another row of late;
* *shift*: a standard deviation above the truth.

Honest sources are *alike*, each with the labels of one third in nine of ten rows (*by label*), a
few with most of the rows (*by size*), or each with a hundred rows (*one after another*).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.attacks.outlying_targets import MODELS, Row, rows_of
from benchmarks.fixtures.several_replicas import Dealt
from online.models.loading.from_settings import load_model
from online.settings.config import Settings
from online.settings.model import ModelSettings
from replay.example import Features
from replay.journal.base import Verdict

LIES: Final = ("flip", "half", "random", "shift")
DEALS: Final = ("alike", "by label", "by size", "one after another")
STREAMS: Final = ("price, linear", "price, linreg", "demand, linear", "ratings, entity")
ROWS: Final = 2_000

LOST_MAX: Final = 1.05
ASIDE_MAX: Final = 0.02
"""Ratio of honest sources' error to that without filters; share of their rows set aside."""

_HONEST: Final = 15
_LIARS: Final = 5
_DEALT_TO: Final = 12

Sent = tuple[str, Features, float, bool]
"""Source, features, label, whether it is a lie."""


@dataclass(frozen=True, slots=True)
class Told:
    """One kind of lie, or of honest sources.  ``clean``: error without lies and filters.

    ``unfiltered``, ``filtered``: error with them.  ``weight``: of lies, in the mean.
    """

    what: str
    seed: int
    replicas: int
    clean: float
    unfiltered: float
    filtered: float
    caught: int
    weight: float
    honest_set_aside: int
    good: bool


@dataclass(frozen=True, slots=True)
class Played:
    """Error, liars in quarantine, weight of the lies, honest rows set aside."""

    error: float
    caught: int
    weight: float
    set_aside: int


def honest_source(deal: str, n: int, third: int, draw: random.Random) -> str:
    """Who sends the ``n``-th row, whose label is in this third."""
    if deal == "by label" and draw.random() < 0.9:
        return f"s{3 * draw.randrange(_DEALT_TO // 3) + third}"
    if deal == "by size":
        return f"s{int(_DEALT_TO * draw.random() ** 4)}"
    if deal == "one after another":
        return f"s{n // 100 % _DEALT_TO}"
    return f"s{draw.randrange(_HONEST if deal == 'alike' else _DEALT_TO)}"


def sent(rows: Sequence[Row], seed: int, lie: str | None, deal: str = "alike") -> list[list[Sent]]:
    """Return what is sent about each row; without ``lie`` the liars send nothing."""
    draw, order = random.Random(seed), sorted(y for _, y in rows)
    low, high = order[len(order) // 200], order[-1 - len(order) // 200]
    thirds = order[len(order) // 3], order[2 * len(order) // 3]
    spread, out = statistics.pstdev(order), []
    for n, (features, label) in enumerate(rows):
        third = sum(label > edge for edge in thirds)
        group: list[Sent] = [(honest_source(deal, n, third, draw), features, label, False)]
        if lie is not None and draw.random() < 1.0 / 3.0:
            about, said = rows[draw.randrange(max(n - 200, 0), n + 1)]
            lying = 4 * n >= len(rows)
            if lying:
                said = {
                    "flip": low + high - said,
                    "half": high if draw.random() < 0.5 else said,
                    "random": rows[draw.randrange(max(n - 500, 0), n + 1)][1],
                    "shift": min(said + spread, high),
                }[lie]
            group.append((f"liar{draw.randrange(_LIARS)}", about, said, lying))
        out.append(group)
    return out


def play(stream: str, groups: Sequence[list[Sent]], filters: str, replicas: int) -> Played:
    """Send it all in this process."""
    told = {"name": "m", "task": "regression", "filters": filters, **MODELS[stream]}
    settings = ModelSettings.model_validate(told)
    whole = Settings(models=(settings,))
    loop = Dealt(settings, replicas, build=lambda: load_model(settings, whole, bytes(32)).model)
    errors, weights, aside = list[float](), list[float](), 0
    for n, group in enumerate(groups):
        for source, features, label, lie in group:
            if 2 * n >= len(groups) and not source.startswith("liar"):
                answer = loop.replicas[loop.n % replicas].learner.predict(features).label
                errors.append(abs(float(answer or 0.0) - label))
            row = loop.step(source, features, label)
            away = row.verdict is Verdict.QUARANTINED
            if lie:
                weights.append(0.0 if away else row.factor)
            aside += away and not source.startswith("liar")
    condemned: set[str] = set()
    for replica in loop.replicas:
        if replica.filters is not None:
            condemned.update(replica.filters.reputations.quarantined)
    caught = sum(source.startswith("liar") for source in condemned)
    weight = statistics.fmean(weights) if weights else 0.0
    return Played(statistics.fmean(errors), caught, weight, aside)


def run(
    seeds: Sequence[int], streams: Sequence[str] = STREAMS, replicas: Sequence[int] = (2,),
    lies: Sequence[str] = LIES, deals: Sequence[str] = DEALS, many: int = ROWS,
) -> Iterator[Told]:  # fmt: skip
    """Each kind of honest sources, and each lie, on each stream.  Raises StreamUnusable."""
    for stream in streams:
        for seed in seeds:
            rows = rows_of(stream, seed, many)
            for n in replicas:
                clean = 0.0
                for lie, deal in [*((None, deal) for deal in deals), *((x, "alike") for x in lies)]:
                    groups = sent(rows, seed, lie, deal)
                    bare, found = (play(stream, groups, f, n) for f in ("none", "default"))
                    clean = bare.error if deal == "alike" and lie is None else clean
                    few = found.set_aside <= ASIDE_MAX * len(rows)
                    good = few and (lie is not None or found.error <= LOST_MAX * bare.error)
                    yield Told(
                        f"{stream}, {lie or f'honest {deal}'}", seed, n,
                        clean if lie is not None else bare.error, bare.error, found.error,
                        found.caught, found.weight, found.set_aside, good,
                    )  # fmt: skip
