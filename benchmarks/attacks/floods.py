"""Sources that behave and then turn, many names that lie a little, and a replica that hears few.

Rows of a real stream are dealt to honest sources, answered, judged and learned in one process, by
one replica or two (:mod:`benchmarks.fixtures.several_replicas`).  Then lies come between them:
earlier rows with a wrong label.

* *flood*: some of 26 sources are honest until half of the stream, then send 1, 4 or 15 lies a row;
* *quiet*: the same lies, all to a replica that hears nothing else;
* *names*: a quarter of what arrives are lies, and after three of them there is a new name; or half
  are, and each name has nine;
* *unsure*: the flood, but each lie is about a row of which the model, which the liar asks, is not
  sure; in this process only;
* *few*: nobody lies, and no source ever sends more than three rows; *half*: half of the rows come
  from such sources, the others from twenty.

Figures are of the honest rows while lies come: the *attacked thousand*.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any, Final, Protocol

from benchmarks.fixtures import datasets
from benchmarks.fixtures.several_replicas import Dealt
from evaluation.errors import StreamUnusable
from evaluation.streams import open_stream
from online.learning.scores import score_of
from online.settings.model import ModelSettings
from replay.example import Features, Label
from replay.journal.base import Verdict

STREAMS: Final[dict[str, tuple[str, str, int, int]]] = {
    "elec2": ("binary", "logreg", 2_000, 1_000),
    "insects": ("multiclass", "softmax", 2_000, 1_000),
    "phishing": ("binary", "logreg", 700, 550),
    "image_segments": ("multiclass", "softmax", 1_300, 1_000),
    "gas": ("multiclass", "softmax", 2_000, 1_000),
    "acs": ("binary", "linear", 2_000, 1_000),
}
"""Task, learner, rows before the lies, rows among them."""

ATTACKS: Final = ("flood", "quiet", "unsure", "names", "few", "half")
SOURCES: Final = 26
LIES: Final = (1, 4, 15)
LIARS: Final = (3, 6, 8)

CAUGHT_MIN: Final = 0.8
SET_ASIDE_MAX: Final = 2.0
POINTS: Final = 5.0
BELOW: Final = 0.5
NAMES_POINTS: Final = 3.0
FEW_POINTS: Final = 0.3
HALF_POINTS: Final = 0.5
"""Share of liars in quarantine; honest rows set aside, percent; points below no lies, and below no
filter; the same for new names, for sources of three rows, and for half of the rows from these."""

_NAMES: Final = ((3, 3), (9, 1))
"""Lies of a name, and for how many rows there is one."""

_LATELY: Final = 500  # rows that lies are about
_SURE: Final = 0.7
_ASKED: Final = 60
"""Share of the likeliest label from where on the model is sure; rows that a liar asks about."""

_LABEL: Final = "employed"
_NOT_FEATURES: Final = ("id", "year", "prediction", "predicted_probability", _LABEL)

Row = tuple[Features, Label]
Sent = tuple[str, Features, Label, bool]
"""Source, features, label sent, whether it is a lie."""


@dataclass(frozen=True, slots=True)
class Flooded:
    """One attack on one stream.

    ``accuracy``, ``clean`` and ``unfiltered``: of answers to the attacked thousand, in percent,
    with filters, without lies (and filters), and without filters.  ``caught``: liars in quarantine
    at the end, ``liars`` of them there are (names of few lies are not to be caught).
    ``honest_set_aside``: percent of honest rows while lies come.  ``lies_taken``: lies learned,
    with whatever weight.
    """

    what: str
    seed: int
    replicas: int
    accuracy: float
    clean: float
    unfiltered: float
    caught: int
    liars: int
    honest_set_aside: float
    honest_quarantined: int
    lies_taken: int
    lies: int
    good: bool


def settings_of(name: str, filters: str, learner: str | None = None) -> dict[str, Any]:
    """Return the settings of a model for the stream."""
    task, usual, _, _ = STREAMS[name]
    return {"name": "m", "task": task, "learner": learner or usual, "filters": filters}


def parts_of(name: str, most: int | None = None) -> tuple[int, int]:
    """Rows before the lies and among them, ``most`` of both together."""
    _, _, before, among = STREAMS[name]
    whole = min(most or before + among, before + among)
    return before * whole // (before + among), among * whole // (before + among)


def rows_of(name: str, data_dir: Path | None, seed: int, most: int | None = None) -> list[Row]:
    """Return as many rows as the attack needs; each seed begins elsewhere in a long stream."""
    before, among = parts_of(name, most)
    if name == "acs":
        rows = _acs(data_dir, seed * (before + among) % 60_000, before + among)
    else:
        stream = open_stream(name, data_dir)
        spare = max((stream.n_rows or 0) - before - among, 0)
        begin = seed * 1_500 % (spare + 1) if spare > 1_500 else 0
        rows = list(islice(iter(stream.rows), begin, begin + before + among))
    return rows


def _acs(data_dir: Path | None, begin: int, many: int) -> list[Row]:
    return [
        ({k: v for k, v in row.items() if k not in _NOT_FEATURES}, bool(row[_LABEL]))
        for row in islice(datasets.employment(data_dir), begin, begin + many)
    ]


def honest_name(i: int) -> str:
    """The honest source of this number."""
    return f"s{i:02d}"


def flood(rows: Sequence[Row], before: int, liars: int, lies: int, seed: int) -> list[list[Sent]]:
    """Return what is sent about each row: ``liars`` of 26 sources behave for ``before`` rows."""
    draw = random.Random(seed)
    names = [honest_name(i) for i in range(SOURCES)]
    hostile = names[SOURCES - liars :]
    out = []
    for n, (features, label) in enumerate(rows):
        sender = names[draw.randrange(SOURCES if n < before else SOURCES - liars)]
        group: list[Sent] = [(sender, features, label, False)]
        for _ in range(lies if n >= before else 0):
            group.append((draw.choice(hostile), *_lie(rows, n, draw), True))
        out.append(group)
    return out


def many_names(
    rows: Sequence[Row], before: int, seed: int, of_a_name: int = 3, apart: int = 3
) -> list[list[Sent]]:
    """Twenty honest sources; a lie for ``apart`` rows, some ``of_a_name``, which is new."""
    draw, told, out = random.Random(seed), 0, []
    for n, (features, label) in enumerate(rows):
        group: list[Sent] = [(honest_name(draw.randrange(20)), features, label, False)]
        if n >= before and n % apart == 0:
            name = f"new-{told // of_a_name}"
            group.append((name, *_lie(rows, n, draw), True))
            told += 1
        out.append(group)
    return out


def few_each(rows: Sequence[Row], seed: int, of_others: float = 0.0) -> list[list[Sent]]:
    """One to three rows of each source, in between those of others; a share of twenty sources."""
    draw, live, made, out = random.Random(seed), list[list[Any]](), 0, []
    for features, label in rows:
        if of_others and draw.random() < of_others:
            out.append([(honest_name(draw.randrange(20)), features, label, False)])
            continue
        while len(live) < 20:
            live.append([f"user-{made}", draw.randrange(1, 4)])
            made += 1
        at = draw.randrange(len(live))
        out.append([(live[at][0], features, label, False)])
        live[at][1] -= 1
        if not live[at][1]:
            del live[at]
    return out


def _share(model: Any, task: Any, features: Features) -> float:
    """The share that a model gives to the label which it answers."""
    score = score_of(task, model.predict(features))
    return max((score or {"": 1.0}).values())


def _lie(
    rows: Sequence[Row],
    n: int,
    draw: random.Random,
    share: Callable[[Features], float] | None = None,
) -> Row:
    """A wrong label of one of the rows before the ``n``-th; ``share``: one with a small share."""
    for _ in range(1 if share is None else _ASKED):
        features, label = rows[draw.randrange(max(n - _LATELY, 0), n + 1)]
        if share is None or share(features) < _SURE:
            break
    labels = list({str(y): y for _, y in sorted(rows, key=lambda row: str(row[1]))}.values())
    return features, draw.choice([other for other in labels if other != label])


@dataclass(frozen=True, slots=True)
class Played:
    """The outcome of all that was sent, in the terms that :class:`Flooded` explains."""

    accuracy: float
    quarantined: frozenset[str]
    set_aside: Counter[str]
    taken: int


class Play(Protocol):
    """Sends it all, in this process (:func:`play`) or over HTTP.

    ``quiet``: lies go to the last replica, and nothing else goes there.  ``lying``: whether lies
    are sent; if not, their turns pass, so that each replica gets the same honest rows.
    """

    def __call__(
        self, name: str, groups: Sequence[list[Sent]], before: int, filters: str, replicas: int = 1,
        *, quiet: bool = False, vouched: bool = True, learner: str | None = None,
        lying: bool = True,
    ) -> Played:  # fmt: skip
        """Return what became of it."""


def play(
    name: str, groups: Sequence[list[Sent]], before: int, filters: str, replicas: int = 1,
    *, quiet: bool = False, vouched: bool = True, learner: str | None = None,
    lying: bool = True, unsure: int | None = None,
) -> Played:  # fmt: skip
    """Send it all to replicas of this process.

    ``unsure``: seed of lies about rows of which the model is not sure, in the place of the others.
    """
    given = settings_of(name, filters, learner)
    settings = ModelSettings.model_validate(given)
    loop = Dealt(settings, replicas, vouched=vouched)
    rows, draw = [group[0][1:3] for group in groups], random.Random(unsure)
    set_aside, condemned, taken, right = Counter[str](), dict[str, None](), 0, 0
    for n, group in enumerate(groups):
        for source, features, label, lie in group:
            if n >= before and not lie:
                right += loop.model.predict(features).label == label
            if lie and not lying:
                loop.pass_by()
                continue
            if lie and unsure is not None:
                share = partial(_share, loop.model, settings.task)
                features, label = _lie(rows, n, draw, share)
            to = None if not quiet else replicas - 1 if lie else 0
            row = loop.step(source, features, label, to=to)
            aside = row.verdict is Verdict.QUARANTINED
            taken += lie and not aside
            if aside and n >= before and not lie:
                set_aside[source] += 1
    for replica in loop.replicas:
        if replica.filters is not None:
            condemned.update(dict.fromkeys(replica.filters.reputations.quarantined))
    asked = len(groups) - before
    return Played(100.0 * right / asked, frozenset(condemned), set_aside, taken)


def attacked(
    name: str, groups: Sequence[list[Sent]], before: int, seed: int, replicas: int, what: str,
    *, clean: float | None = None, by: Play = play, **given: Any,
) -> Flooded:  # fmt: skip
    """One attack: without it (unless ``clean`` is known), without filters, and with them."""
    if clean is None:
        clean = by(name, groups, before, "none", replicas, lying=False, **given).accuracy
    bare = by(name, groups, before, "none", replicas, **given).accuracy
    found = by(name, groups, before, "default", replicas, **given)
    liars = {event[0] for group in groups for event in group if event[3]}
    lies = sum(event[3] for group in groups for event in group)
    aside = 100.0 * sum(found.set_aside.values()) / (len(groups) - before)
    caught = len(found.quarantined & liars)
    good = aside <= SET_ASIDE_MAX and found.accuracy >= max(
        clean - (NAMES_POINTS if "names" in what else POINTS), bare - BELOW
    )
    if "names" not in what:
        good = good and caught >= CAUGHT_MIN * len(liars)
    return Flooded(
        f"{name}, {what}", seed, replicas, found.accuracy, clean, bare, caught, len(liars),
        aside, len(found.quarantined - liars), found.taken, lies, good,
    )  # fmt: skip


def run(
    data_dir: Path | None, names: Sequence[str], seeds: Sequence[int],
    kinds: Sequence[str] = ATTACKS,
    liars: Sequence[int] = LIARS, lies: Sequence[int] = LIES, replicas: Sequence[int] = (1, 2),
    learner: str | None = None, way: AbstractContextManager[Play] | None = None,
    most: int | None = None,
) -> Iterator[Flooded]:  # fmt: skip
    """Each attack on each stream with each seed; ``way``: not in this process; ``most`` rows.

    Raises StreamUnusable.
    """
    with way or nullcontext(play) as by:
        for name in names:
            before, _ = parts_of(name, most)
            for seed in seeds:
                rows = rows_of(name, data_dir, seed, most)
                if len({str(label) for _, label in rows}) < 2:
                    why = f"its {len(rows)} rows of seed {seed} have one label: none is wrong"
                    raise StreamUnusable(name, why, "Take other seeds, or more rows")
                for kind in kinds:
                    for many in replicas if kind != "quiet" else (2,):
                        one = _Case(name, rows, before, seed, many, by, learner)
                        yield from one.each(kind, liars, lies)


@dataclass(frozen=True, slots=True)
class _Case:
    """Rows of a stream, and how many replicas get them."""

    name: str
    rows: Sequence[Row]
    before: int
    seed: int
    replicas: int
    by: Play
    learner: str | None

    def each(self, kind: str, liars: Sequence[int], lies: Sequence[int]) -> Iterator[Flooded]:
        clean: float | None = None  # the same for one replica: it gets all honest rows
        if kind == "names":
            for vouched, (many, apart) in product((True, False), _NAMES):
                groups = many_names(self.rows, self.before, self.seed, many, apart)
                what = f"names, {many} lies each, {_tokens(vouched)}"
                found = self._attacked(groups, what, vouched=vouched, clean=clean)
                clean = found.clean if self.replicas == 1 else None
                yield found
            return
        if kind in ("few", "half"):
            yield from (self._few(kind, vouched=vouched) for vouched in (True, False))
            return
        if kind == "unsure" and self.by is not play:
            return
        for k in liars:
            for n in lies if kind == "flood" else (1,):
                groups = flood(self.rows, self.before, k, n, self.seed)
                given: dict[str, Any] = {"unsure": self.seed} if kind == "unsure" else {}
                found = self._attacked(
                    groups, f"{kind}, {k} liars, {n} a row", quiet=kind == "quiet", clean=clean,
                    **given,
                )  # fmt: skip
                clean = found.clean if self.replicas == 1 else None
                yield found

    def _attacked(self, groups: Sequence[list[Sent]], what: str, **given: Any) -> Flooded:
        return attacked(
            self.name, groups, self.before, self.seed, self.replicas, what, by=self.by,
            learner=self.learner, **given,
        )  # fmt: skip

    def _few(self, kind: str, *, vouched: bool) -> Flooded:
        groups = few_each(self.rows, self.seed, 0.0 if kind == "few" else 0.5)
        bare, found = (
            self.by(self.name, groups, 0, filters, self.replicas, vouched=vouched,
                    learner=self.learner)
            for filters in ("none", "default")
        )  # fmt: skip
        aside = 100.0 * sum(found.set_aside.values()) / len(groups)
        points = FEW_POINTS if kind == "few" else HALF_POINTS
        good = not found.set_aside and bare.accuracy - found.accuracy <= points
        return Flooded(
            f"{self.name}, {kind}, {_tokens(vouched)}", self.seed, self.replicas, found.accuracy,
            bare.accuracy, bare.accuracy, 0, 0, aside, len(found.quarantined), 0, 0, good,
        )  # fmt: skip


def _tokens(vouched: bool) -> str:
    return "tokens" if vouched else "no tokens"
