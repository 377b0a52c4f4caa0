"""Choices for which a quarter of the sources reports a reward of 1 for one action.

The sources choose in turns in a simulated world, and each says what its choice has brought: the
honest ones that of the world, the liars 1 whenever it was one action, and the truth, or nothing,
of the others.  Regret is that of all choices, by the world's own chances.  In one process, with the
real replica, journal and filters, and without HTTP.

The ratio of few worlds is mostly chance: its standard error over ten is about a tenth.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.choices.bandits_worlds import World, make
from benchmarks.fixtures.senders import inside
from online.messages.choices import Action, ChooseRequest, RewardRequest
from online.messages.structs import Receipt
from online.rows.validator import Validator
from online.serving.choices.choosing import Choosing
from online.settings.config import Settings, load

SOURCES: Final = 24
RATIO_MAX: Final = 1.1
WORLDS: Final = ("context", "arms")
LIES: Final = ("none", "one action", "one action, nothing of the others")


@dataclass(frozen=True, slots=True)
class Line:
    """Regret, mean over worlds, beside the same without liars; what was set aside of both kinds.

    ``error`` is the standard error of ``ratio``, over worlds.
    """

    world: str
    lie: str
    filters: str
    rows: int
    worlds: int
    regret: float
    clean: float
    ratio: float
    error: float
    honest_aside: float
    lies_aside: float
    good: bool


def run(
    worlds: Sequence[int],
    rows: int,
    filters: str = "default",
    names: Sequence[str] = WORLDS,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Line]:
    """Each world without liars and with each kind of them; ``filters``: those of the settings."""
    for name in names:
        clean = np.ones(len(worlds))
        for lie in LIES:
            played = []
            for seed in worlds:
                played.append(play(make(name, seed, rows), lie, seed, filters))
                progress(f"{name} {seed}, lies {lie}: regret {played[-1][0]:.1f}")
            each = np.array([regret for regret, _, _ in played])
            clean = each if lie == "none" else clean
            regret, honest, lies = np.mean(np.array(played), axis=0).tolist()
            mean = float(clean.mean())
            ratio = regret / mean
            error = float((each - ratio * clean).std() / mean / max(len(each) - 1, 1) ** 0.5)
            yield Line(
                name, lie, filters, rows, len(played), regret, mean, ratio, error, honest,
                lies, ratio <= RATIO_MAX,
            )  # fmt: skip


def play(world: World, lie: str, seed: int, filters: str) -> tuple[float, float, float]:
    """Regret, and the share of honest rewards and of lies that was not taken whole."""
    model = {"name": "shop", "task": "choose", "filters": filters}
    settings = load(None, {"cluster": "embedded", "models": [model]}, {})
    with tempfile.TemporaryDirectory(prefix="online-bench-") as folder:
        return asyncio.run(_played(world, lie, seed, settings, Path(folder)))


async def _played(
    world: World, lie: str, seed: int, settings: Settings, folder: Path
) -> tuple[float, float, float]:
    rng, k = random.Random(seed), world.means.shape[1]
    target = int(world.means.mean(axis=0).argmin())  # who sells the worst one has most to gain
    told = settings.models[0]
    assert told.choose is not None
    regret, aside, sent = 0.0, Counter[bool](), Counter[bool]()
    async with inside(folder, told, {}, 1) as desk:
        (serving,) = desk.servings
        validator = Validator(told, settings.limits, numeric_only=False)
        choosing = Choosing(serving, validator, settings.limits, told.choose)
        for t, context in enumerate(world.contexts):
            source = rng.randrange(SOURCES)
            lies = lie != LIES[0] and source % 4 == 0
            asked = ChooseRequest([Action(str(i)) for i in range(k)], context)
            answer = await choosing.choose(asked)
            i = int(answer.action)
            reward = world.reward(t, i)
            if lies and i == target:
                reward = 1.0
            elif lies and lie == LIES[2]:
                reward = 0.0
            said = RewardRequest(answer.id, reward, source=f"s{source}")
            _, receipt = await choosing.rewards.take(said)
            assert isinstance(receipt, Receipt)
            sent[lies] += 1
            aside[lies] += receipt.status != "learned"
            regret += world.regret(t, i)
    return regret, aside[False] / max(sent[False], 1), aside[True] / max(sent[True], 1)
