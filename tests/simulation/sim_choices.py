"""Choices with their rewards and defaults: who asks for them, and what must come of each.

The oracle reads the journal's rows as bytes, and shares no code with what it judges: a choice has
one row at most, of the action that everybody was answered, and its label is the reward that was
told to be learned, or the default.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sim_loop import Process
from sim_network import answer_of

import online.errors
import online.rows.prediction_ids
import online.rows.validator
import online.serving.choices.choosing
import online.serving.choices.default_rewards
import online.serving.defaults
import online.serving.serving
from online.messages.choices import Action, ChooseRequest, RewardRequest
from replay.errors import ReplayError

if TYPE_CHECKING:
    from sim_processes import Replica
    from sim_world import World

DEFAULT, WAIT_S = 0.25, 1.5
SETTINGS: Final[Mapping[str, Any]] = {
    "policy": "epsilon", "epsilon": 1.0, "default_reward": DEFAULT, "reward_wait": WAIT_S
}  # fmt: skip
_ACTIONS: Final = [Action(name) for name in "abcd"]
_REWARDS: Final = (0.5, 1.0)
_PARTS: Final = (0.5, 0.125, 0.0625)
"""Rewards of a choice that takes several: no sum of them is the default, and all differ."""
_NAME: Final = "choice "


def settings(aggregate: str) -> dict[str, Any]:
    """How the model chooses."""
    return {**SETTINGS, "aggregate": aggregate}


def _sums(values: Iterable[float]) -> set[float]:
    """Return what some of the values may add up to."""
    found = {0.0}
    for value in values:
        found |= {value + x for x in found}
    return found


def is_choice(event: str) -> bool:
    """Whether the event is a choice, by its name."""
    return event.startswith(_NAME)


def serve(replica: Replica, spec: str) -> Any:
    """What chooses in a replica, as its shell builds it, on the simulated clocks."""
    model, world = replica.model, replica.world
    validator = online.rows.validator.Validator(model.settings, model.limits, numeric_only=False)
    keys = online.rows.prediction_ids.Keys([bytes(32)])
    nonces = online.rows.prediction_ids.Nonces(b"%06d" % int(replica.name.rpartition("-")[2]))
    tokens = online.rows.prediction_ids.Tokens(keys, model.settings.name, nonces)
    serving = online.serving.serving.Serving(model, validator, tokens, model.limits, spec)
    settings = model.settings.choose
    made = online.serving.choices.choosing.Choosing(serving, validator, model.limits, settings)
    rule = online.serving.choices.default_rewards.DefaultRewards(settings)
    made.defaults = online.serving.defaults.Defaults(model, rule, world.wall, world.loop.time)
    return made


async def give_for_ever(choosing: Any) -> None:
    """Look for choices that have waited, as the service does."""
    while True:
        await asyncio.sleep(0.3)
        try:
            await choosing.defaults.give()
        except (online.errors.RequestError, ReplayError):
            continue


@dataclass(frozen=True)
class Row:
    """A choice's row as it stands in the journal, and what the record in it says."""

    name: str
    action: str
    label: float
    key: bytes
    recorded: str
    waited_s: float
    frozen: bool

    def counts(self, undone: Collection[str]) -> float:
        """What the models have of it; ``undone``: what rollbacks have taken out."""
        return 0.0 if self.frozen or self.name in undone else self.label


def rows_of(rows: Sequence[Any]) -> Iterator[Row]:
    """Those of choices."""
    for row in rows:
        said = msgspec.msgpack.decode(row.payload[1:])
        features = said[0]
        if not is_choice(str(features.get("event", ""))):
            continue
        record = said[13]
        assert record[0] == 1, "these actions have no features"
        choice = msgspec.msgpack.decode(zlib.decompress(record[1:]))
        recorded = choice[1][choice[3]][0]
        waited_s = row.at - said[5]
        frozen = str(row.verdict) == "frozen"
        event, action, label = features["event"], features["@"], float(said[1])
        yield Row(event, action, label, row.key, recorded, waited_s, frozen)


class Choices:
    """Keeps what callers were told of choices, and compares it with the journal and the models.

    Attributes
    ----------
    met
        What came about, which would else be tested in name only.
    rows
        Those of the journal; None: nobody has looked yet.
    decided
        What else a reward may be answered after decisions of an operator: it has its row.
    """

    def __init__(self, aggregate: str = "earliest") -> None:
        self._aggregate = aggregate
        self.decided: set[str] = set()
        self.sent: dict[str, list[float]] = defaultdict(list)
        self.counted: dict[str, list[float]] = defaultdict(list)
        self.met: Counter[str] = Counter()
        self.actions: dict[str, str] = {}
        self.committed: set[str] = set()
        self.learned: dict[str, float] = {}
        self.refused: dict[str, set[float]] = defaultdict(set)
        self.rows: list[Row] | None = None

    def chosen(self, name: str, action: str, *, committed: bool) -> None:
        """Somebody was answered an action."""
        self.met["chosen again"] += name in self.actions
        first = self.actions.setdefault(name, action)
        assert first == action, f"{name} was answered {first}, and then {action}"
        if committed:
            self.committed.add(name)

    def rewarded(self, name: str, reward: float, status: str) -> None:
        """Somebody was answered about a reward."""
        self.met[f"reward {status}"] += 1
        if status in ("learned", "duplicate", "queued", *self.decided):
            first = self.learned.setdefault(name, reward)
            assert first == reward, f"{name}: {first} was learned, and then {reward}"
        else:
            assert status == "conflict", f"{name}: a reward was answered {status}"
            self.refused[name].add(reward)

    def kept(self, name: str, reward: float, status: str) -> None:
        """Somebody was answered about one of several rewards, which are learned as one."""
        self.met[f"reward {status}"] += 1
        if status in ("waiting", "duplicate"):
            assert reward not in self.refused[name], f"{name}: {reward} was too late before"
            if reward not in self.counted[name]:
                self.counted[name].append(reward)
        else:
            assert status == "expired", f"{name}: a reward was answered {status}"
            assert reward not in self.counted[name], f"{name}: {reward} was kept before"
            self.refused[name].add(reward)

    def _may_be(self, name: str) -> set[float]:
        """Labels that the rewards of a choice allow: of some nobody knows whether they came."""
        counted = self.counted[name]
        unknown = [x for x in self.sent[name] if x not in counted and x not in self.refused[name]]
        if self._aggregate == "sum":
            found = {sum(counted) + x for x in _sums(unknown)}
        else:
            found = {*counted[-1:], *unknown}
        return found - {0.0} if counted else (found - {0.0}) | {DEFAULT}

    def at_most_once(self, sums: Mapping[str, float], where: str) -> None:
        """At any time: one reward or the default, whole."""
        right: Collection[float] = (0.0, DEFAULT, *_REWARDS)
        if self._aggregate != "earliest":
            right = {DEFAULT, *_sums(_PARTS)}
        for name, x in sums.items():
            assert not is_choice(name) or x in right, f"{where}: {name} counts {x}"

    def wrong(self, sums: Mapping[str, float], where: str, undone: Collection[str]) -> str | None:
        """What is not as it must be in the end; None if nothing is."""
        if self.rows is None:
            return "nobody has looked at the journal"
        by_name: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            by_name[row.name].append(row)
        for name, rows in by_name.items():
            assert len(rows) == 1, f"{name} has the rows {rows}"
            (row,) = rows
            assert row.action == row.recorded, f"{name}: {row}"
            assert row.action == self.actions.get(name, row.action), f"{name}: {row}"
            assert row.label == self.learned.get(name, row.label), f"{name}: {row}"
            if self._aggregate == "earliest":
                assert row.label not in self.refused[name], f"{name}: {row} was refused"
            else:
                right = self._may_be(name)
                assert row.label in right, f"{name}: {row}, not one of {right}"
            waits = row.label == DEFAULT or self._aggregate != "earliest"
            early = waits and row.waited_s < WAIT_S
            assert not early, f"{name}: {row} came before its time"
            if sums.get(name, 0.0) != (right_now := row.counts(undone)):
                return f"{where}: {name} counts {sums.get(name, 0.0)}, not {right_now}: {row}"
        for name in self.committed | self.learned.keys() | self.counted.keys():
            if name not in by_name:
                return f"{where}: {name} has no row yet"
        self.met["default"] = sum(row.label == DEFAULT for row in self.rows)
        self.met["choice undone"] = sum(row.name in undone for row in self.rows)
        self.met["choice frozen"] = sum(row.frozen for row in self.rows)
        return None

    def keys(self, undone: Collection[str]) -> list[bytes]:
        """Keys of the choices' rows that count."""
        return [row.key for row in self.rows or () if row.counts(undone)]


class ChoiceClients:
    """Each asks for a choice, often again, and rewards it soon, late, twice, or never.

    Attributes
    ----------
    open
        Requests that somebody still wants an answer to.
    """

    def __init__(self, world: World) -> None:
        self._world, self.open, self._persistent = world, 0, False
        self._asked = 0
        self._dice = random.Random(f"choices {world.seed}")
        self._process = Process(world.loop, "choices")
        for k in range(self._dice.randint(6, 20) if world.climate.choices else 0):
            self.open += 1
            self._process.spawn(self._guarded(f"{_NAME}{k}", own=self._dice.random() < 0.6))

    def persist(self) -> None:
        """From now on nobody gives up."""
        self._persistent = True

    async def _guarded(self, name: str, *, own: bool) -> None:
        try:
            await self._live(name, own=own)
        except Exception as error:
            self._world.fail(error)
        self.open -= 1

    async def _live(self, name: str, *, own: bool) -> None:
        dice, world = self._dice, self._world
        await asyncio.sleep(dice.random() * world.climate.chaos_s)
        while True:
            several = range(dice.choice((1, 1, 2)) if own else 1)
            answers = await asyncio.gather(*[self._choose(name, own=own) for _ in several])
            if (answer := next((a for a in answers if a is not None), None)) is not None:
                break
            if not self._persistent and dice.random() < 0.05:
                return
            await asyncio.sleep(dice.random() * 0.3)
        if own and dice.random() < 0.4:
            await asyncio.sleep(dice.random())
            await self._choose(name, own=True)
        if dice.random() < 0.3:
            return
        await asyncio.sleep(dice.choice((0.2, 1.0, 2.0)) * dice.random() * WAIT_S)
        if world.climate.aggregate != "earliest":
            await self._several(*answer)
            return
        reward, other = dice.sample(_REWARDS, 2)
        while not await self._reward(*answer, reward):
            if not self._persistent and dice.random() < 0.05:
                return
            await asyncio.sleep(dice.random() * 0.3)
        while dice.random() < 0.4:
            await asyncio.sleep(dice.random())
            await self._reward(*answer, dice.choice((reward, reward, other)))

    async def _several(self, name: str, id_: str) -> None:
        """Send some rewards one after the other, each until it is answered, and some again."""
        dice = self._dice
        for reward in dice.sample(_PARTS, dice.randint(1, len(_PARTS))):
            self._world.choices.sent[name].append(reward)
            while not await self._reward(name, id_, reward):
                if not self._persistent and dice.random() < 0.05:
                    return
                await asyncio.sleep(dice.random() * 0.3)
            while dice.random() < 0.3:
                await asyncio.sleep(dice.random() * 0.3)
                await self._reward(name, id_, reward)
            await asyncio.sleep(dice.random())

    async def _choose(self, name: str, *, own: bool) -> tuple[str, str] | None:
        """The choice's name and id; None: no answer."""

        async def step(choosing: Any) -> tuple[str, Any]:
            asked, id_ = name, name.replace(" ", "-")
            if not own:  # without an id each request is another choice, also one that comes twice
                self._asked += 1
                asked = f"{name}, asked {self._asked}"
            context = {"event": asked, "poison": False, "deadly": False}
            request = ChooseRequest(_ACTIONS, context, id=id_ if own else None)
            return asked, await choosing.choose(request)

        if (said := await self._ask(step)) is None:
            return None
        asked, answer = said
        self._world.choices.chosen(asked, answer.action, committed=own)
        return asked, str(answer.id)

    async def _reward(self, name: str, id_: str, reward: float) -> bool:
        """Whether it was answered."""
        several = self._world.climate.aggregate != "earliest"
        said = RewardRequest(id_, reward, reward_id=f"{reward}" if several else None)
        answer = await self._ask(lambda choosing: choosing.rewards.take(said))
        if answer is None:
            return False
        note = self._world.choices.kept if several else self._world.choices.rewarded
        note(name, reward, answer[1].status)
        return True

    async def _ask(self, step: Callable[[Any], Awaitable[Any]]) -> Any:
        """What a replica answers; None: nothing, or to ask again."""
        world = self._world
        choosing = (one for one in world.actors if getattr(one, "choosing", None) is not None)
        replicas: list[Any] = [one for one in choosing if one.alive and one.ready]  # type: ignore[attr-defined]
        if not replicas:
            return None
        replica = self._dice.choice(replicas)
        return await answer_of(world, self._process, replica, partial(replica.ask, step))
