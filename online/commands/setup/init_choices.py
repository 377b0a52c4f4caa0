"""`online init --task choose`: writes settings for a log of choices, and evaluates the log."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from evaluation.offpolicy import OffPolicy
from online.commands.base import bar
from online.commands.setup.init import lacking, printable, scalar, written
from online.decide import Policy, row
from online.errors import ConfigError
from online.models.rewards import RewardModel, Rewards
from online.tables.first_look import Table, Value
from online.tables.guess import FEATURES, LOOK_ROWS, Column, Guess, guess
from replay.example import Example, Features

ACTIONS_MAX: Final = 256
"""Most distinct actions of a log: all of them are scored for each row."""
NONE: Final = "none"
"""Given instead of a column's name if there is no such column."""

_PROBABILITY: Final = "--probability"
_ACTIONS: Final = re.compile(r"(chosen_?)?(action|arm|variant|choice|offer|decision)(_?id)?", re.I)
_REWARDS: Final = re.compile(
    r"rewards?|payoff|gain|revenue|profit|clicks?|clicked|bought|converted|conversion|purchase",
    re.I,
)
_PROPENSITIES: Final = re.compile(r"propensity(_score)?|p|prob(ability)?|pscore", re.I)


@dataclass(frozen=True, slots=True)
class Logged:
    """One row of the log: context, chosen action, its reward, and its probability if known."""

    context: Features
    action: str
    reward: float
    probability: float | None


@dataclass(frozen=True, slots=True)
class Log:
    """A table as a log of choices.

    Attributes:
        found: The role of each column; the action is a category, its probability a number.
        action, probability: Names of these columns; without a probability each action counts as
            drawn with its share.
        shares: Share of each action in the examined rows, the most frequent first.
        low, high: The least and the greatest reward of these rows.
    """

    found: Guess
    action: str
    probability: str | None
    shares: dict[str, float]
    low: float
    high: float

    def rows(self) -> Iterator[Logged]:
        """Yield all rows that have an action and a reward, in order of time if there is a time.

        Raises ConfigError for an invalid probability.
        """
        for at in self.found.rows():
            context = dict(at.features)
            taken = context.pop(self.action, None)
            p = None if self.probability is None else context.pop(self.probability, None)
            if taken is None:
                continue
            if self.probability is not None and not _likely(p):
                problem = f"a probability of {p!r} in column {self.probability}"
                remedy = f"Mend the row or drop it, or say {_PROBABILITY} {NONE}"
                raise ConfigError(str(self.found.table.path), problem, remedy)
            reward = float(at.label)
            yield Logged(context, str(taken), reward, None if p is None else float(p))


@dataclass(frozen=True, slots=True)
class Earned:
    """Mean rewards: of the log, of the best single action, and of a model that learned meanwhile.

    The last two are estimated with self-normalized importance weights (SNIPS).
    """

    rows: int
    reward: float
    constant: tuple[str, float]
    model: float | None


def logged_of(table: Table, named: Mapping[str, str | None]) -> Log:
    """Guess the roles of columns in a log of choices, except for those that options name.

    Raises ConfigError.
    """
    for option, name in named.items():
        if name not in (None, *table.names) and (option, name) != (_PROBABILITY, NONE):
            remedy = f"Name one of: {', '.join(table.names)}"
            raise ConfigError(option, f"there is no column {name!r}", remedy)
    action = named["--action"] or _named(table, _ACTIONS, "--action", "action")
    reward = named["--label"] or _named(table, _REWARDS, "--label", "reward")
    if reward == action:
        raise ConfigError("--label", f"{reward} is the action", "Name the column of the reward")
    p = named[_PROBABILITY]
    if p in (reward, action):
        what = "reward" if p == reward else "action"
        remedy = f"Name the column of how likely the action was, or say {_PROBABILITY} {NONE}"
        raise ConfigError(_PROBABILITY, f"{p} is the {what}", remedy)
    table, unlikely = replace(table, action=action, reward=reward), dict[str, Value]()
    taken, low, high = Counter[str](), float("inf"), float("-inf")
    for cells in islice(table.rows(), LOOK_ROWS):
        value = cells[reward]
        if value is None or cells[action] is None:
            continue
        if isinstance(value, str):
            problem = f"{value[:80]!r} in column {reward} is no number"
            raise ConfigError("--label", problem, "Name the column of the reward")
        low, high = min(low, float(value)), max(high, float(value))
        taken[str(cells[action])] += 1
        unlikely = {n: v for n, v in cells.items() if not _likely(v)} | unlikely
    if not 2 <= len(taken) <= ACTIONS_MAX:
        problem = f"column {action} has {len(taken):,} different values"
        raise ConfigError("--action", problem, f"Name one with 2 to {ACTIONS_MAX} actions")
    if not low < high:
        raise ConfigError("--label", f"all rewards are {low:g}", "Name another column")
    low, high = (0.0, 1.0) if low >= 0.0 and high <= 1.0 else (low, high)
    shares = {name: n / taken.total() for name, n in taken.most_common()}
    none: dict[str, Value] = {}
    if p is None:
        others = [name for name in table.names if name not in (reward, action)]
        maybe = [name for name in others if _PROPENSITIES.fullmatch(name)]
        none = {name: unlikely[name] for name in maybe if name in unlikely}
        p = next((name for name in maybe if name not in none), None)
    elif p == NONE:
        p = None
    return Log(_columns(table, reward, action, p, none), action, p, shares, low, high)


def _likely(value: object) -> bool:
    """Whether it is a valid probability of an action that was chosen."""
    return type(value) in (int, float) and 0.0 < value <= 1.0  # type: ignore[operator]


def _named(table: Table, wanted: re.Pattern[str], option: str, what: str) -> str:
    if (column := next((name for name in table.names if wanted.fullmatch(name)), None)) is None:
        remedy = f"Name one of: {', '.join(table.names)}"
        raise ConfigError(option, f"no column looks like the {what}", remedy)
    return column


def _columns(
    table: Table, reward: str, action: str, p: str | None, unlikely: Mapping[str, Value]
) -> Guess:
    """The guessed roles of a table's columns, with those of the choice replaced.

    Parameters:
        unlikely: Columns that are named like a probability, with a value that is none.
    """
    guessed = guess(table, reward)
    kinds = {
        action: Column(action, "category", "the chosen action"),
        reward: Column(reward, "label", "the reward of that action"),
    }
    if p is not None:
        why = f"how likely the action was to be taken ({_PROBABILITY} {NONE}: it is not)"
        kinds[p] = Column(p, "number", why)
    for one in guessed.columns:
        if one.name in unlikely:
            why = f"{one.why}; no probability, as it has {unlikely[one.name]!r:.80}"
            kinds[one.name] = replace(one, why=f"{why} ({_PROBABILITY} {one.name}: it is)")
    columns = tuple(kinds.get(c.name, c) for c in guessed.columns)
    if wrong := next((c.name for c in columns if c.kind in FEATURES and c.name[0] == "@"), None):
        raise ConfigError(str(table.path), f"a column {wrong!r}", "Name it without the '@'")
    return replace(guessed, columns=columns)


def earned(log: Log, most: int, *, hidden: bool) -> Earned:
    """Play the log: the model chooses before it learns each reward.  Raises ConfigError."""
    recipe = Rewards(log.low, log.high, tuple(log.found.named("text")))
    model, policy = recipe.model_for("regression"), Policy(kind="greedy")
    names, n, total = list(log.shares), 0, 0.0
    judged = OffPolicy(low=log.low, high=log.high)
    alone = {name: [0.0, 0.0] for name in names}
    with bar("playing", hidden=hidden) as progress:
        task = progress.add_task("", total=None)
        for one in islice(log.rows(), most):
            if one.action not in alone or not log.low <= one.reward <= log.high:
                continue  # an action or reward that the examined rows did not have
            n, total = n + 1, total + one.reward
            weight = 1.0 / _learn(model, policy, judged, log, names, one)
            alone[one.action][0] += weight
            alone[one.action][1] += weight * one.reward
            if n % 500 == 0:
                progress.update(task, completed=n)
    if not n:
        raise ConfigError(str(log.found.table.path), "no row has action and reward", "Name both")
    best = max((name for name in names if alone[name][0]), key=lambda x: _ratio(alone[x]))
    return Earned(n, total / n, (best, _ratio(alone[best])), judged.now().snips)


def _ratio(sums: Sequence[float]) -> float:
    return sums[1] / sums[0]


def _learn(
    model: RewardModel, policy: Policy, judged: OffPolicy, log: Log, names: list[str], one: Logged
) -> float:
    """Evaluate what the model would choose, then learn the row; returns the logged propensity."""
    place = names.index(one.action)
    scores = model.score(one.context, [(name, {}) for name in names])
    target = policy.decide(scores).probabilities.tolist()
    logged = list(log.shares.values())
    if one.probability is not None:  # the remainder is shared evenly by the other actions
        logged = [(1.0 - one.probability) / (len(names) - 1)] * len(names)
        logged[place] = one.probability
    judged.add(one.reward, place, logged, target, scores.means.tolist())
    notes = scores.notes(place, logged[place], [True] * len(names), {})
    model.learn_noted(Example(row(one.context, one.action, {}), one.reward, notes=notes), 1.0)
    return logged[place]


def settings_text(name: str, log: Log, n: int) -> str:
    """The text of online.yaml for a log of choices."""
    guessed, file = log.found, log.found.table.path.name
    lines = [
        f"# Guessed by `online init` from {n:,} choices of {file}: change whatever is not so.",
        "cluster: embedded        # one process; without this line two replicas on Ray",
        "models:",
        f"  - name: {scalar(name)}",
        "    task: choose",
        "    choose:",
        f"      reward_range: {scalar([log.low, log.high])}",
        "      # default_reward: 0   # where no reward within reward_wait means that nothing came",
    ]
    if text := guessed.named("text"):
        lines += ["    learner: rewards", f"    params: {scalar({'text': text})}"]
    lines += ["", f"# The columns of {file}:"]
    width = max(len(column.name) for column in guessed.columns)
    for column in guessed.columns:
        lines.append(f"#   {column.name:<{width}}  {kind_of(log, column):<11}  {column.why}")
    first = next(log.rows())
    actions: list[dict[str, Any]] = [{"id": action} for action in log.shares]
    question = {"context": first.context, "actions": actions}
    rewarded = {"id": "the id of the answer", "reward": first.reward}
    lines += ["", "# The first row as requests:"]
    for verb, body in (("choose", question), ("reward", rewarded)):
        example = json.dumps(body, ensure_ascii=False).replace("'", "\\u0027")
        lines.append(f"#   curl http://127.0.0.1:8000/v1/models/{name}/{verb} -d '{example}'")
    return written(lines)


def kind_of(log: Log, column: Column) -> str:
    """Return the role of a column in a log of choices."""
    own = {log.action: "action", log.found.label: "reward", log.probability: "probability"}
    return own.get(column.name, column.kind)


def say(log: Log, place: Path, made: Earned) -> None:
    """Print the guessed roles and the rewards."""
    guessed = log.found
    print(f"{printable(guessed.table.path.name)}: choices among {len(log.shares)} actions")
    width = max(len(column.name) for column in guessed.columns)
    for column in guessed.columns:
        print(f"  {column.name:<{width}}  {kind_of(log, column)}: {column.why}")
    if log.probability is None:
        print("  no probability: each action counts as drawn by its share, whatever the context")
    action, alone = made.constant
    would = "unknown" if made.model is None else f"{made.model:.4g}"
    print(
        f"\nplayed {made.rows:,} choices, each asked before it was learned; mean reward:\n"
        f"  of the log {made.reward:.4g}  of {action!r} alone {alone:.4g}  of the model {would}"
    )
    print(f"\nwrote {place}, which lists what was guessed\n\n  online serve {place}\n")
    print("It starts empty. To teach it the log, before or meanwhile:\n")
    print(f"  {_backfill(log, place)}{lacking()}")


def _backfill(log: Log, settings: Path) -> str:
    """The command that teaches the model the log from which the settings were guessed."""
    guessed = log.found
    words = ["online", "backfill", "--config", str(settings), "--input", str(guessed.table.path)]
    words += ["--label", guessed.label, "--action", log.action]
    for column in guessed.columns:
        kind = kind_of(log, column)
        if kind == "event_id":
            words += ["--event-id", column.name]
        elif column.name and kind not in (*FEATURES, "action", "reward"):
            words += ["--ignore", column.name]
    return shlex.join(words)
