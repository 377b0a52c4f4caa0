"""Three ways past the filters: a heavy weight, a stored join, a guessed id.

* *weight*: twenty honest sources; one event of a stranger with a wrong label, as heavy as it may
  be, at four instants of the stream.  What it costs the thousand answers behind it.
* *joins*: fifteen honest sources, five liars with a quarter of the rows, all labels by short ids;
  beside the same with features.
* *ids*: an app predicts with short ids, its back office labels them; a stranger guesses every other
  id, before or after the prediction, or predicts first with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from benchmarks.attacks.abuse import HONEST, HOSTILE
from benchmarks.attacks.liars import sent
from benchmarks.fixtures.senders import Desk, Outside, inside
from benchmarks.fixtures.service import Running, form, service
from benchmarks.fixtures.several_replicas import Dealt
from evaluation.streams import open_stream
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from online.settings.tokens import WEIGHT_MAX, Grant
from replay.example import Features, Label

STREAMS: Final = {
    "phishing": ("binary", "logreg", 1_250),
    "elec2": ("binary", "linear", 3_000),
    "insects": ("multiclass", "linear", 3_000),
    "image_segments": ("multiclass", "linear", 2_310),
}
"""Task, learner and rows of each."""

INSTANTS: Final = (0.2, 0.4, 0.6, 0.8)
SPAN: Final = 1_000
WEIGHTS: Final = (1.0, 2.0, 5.0, 10.0, 100.0)
"""Weights that a default was chosen from, and one beyond."""

WAYS: Final = ("features", "prediction first", "label first")
GUESSES: Final = ("off", "labels", "predictions")

_SOURCES: Final = 20
_TAKEN: Final = ("learned", "clipped")

Row = tuple[Features, Label]


@dataclass(frozen=True, slots=True)
class Weighed:
    """``lost``, ``worst``: points of accuracy in the mean over instants, and the most."""

    what: str
    filters: str
    replicas: int
    seed: int
    weight: float
    clean: float
    lost: float
    worst: float


@dataclass(frozen=True, slots=True)
class Joined:
    """``accuracy``: of answers to honest rows of the second half, in percent.

    ``lies_taken``, ``honest_set_aside``: in percent of theirs.  ``caught``: liars whose last lies
    were set aside.
    """

    what: str
    filters: str
    replicas: int
    seed: int
    accuracy: float
    lies: int
    lies_taken: float
    caught: int
    honest_set_aside: float


@dataclass(frozen=True, slots=True)
class Guessed:
    """``learned``, ``conflicts``: of the owner's labels, in percent.

    ``sources``: whether the predicting token stands for one.
    """

    what: str
    filters: str
    replicas: int
    seed: int
    sources: bool
    accuracy: float
    learned: float
    conflicts: float


def rows_of(name: str, data_dir: Path | None, seed: int, most: int | None = None) -> list[Row]:
    """The stream's first rows; of those without an order of their own, another for each seed."""
    rows = list(islice(iter(open_stream(name, data_dir).rows), STREAMS[name][2]))
    if name in ("phishing", "image_segments"):
        random.Random(seed).shuffle(rows)
    return rows[:most]


def settings_of(name: str, filters: str, model: str = "m") -> dict[str, Any]:
    """Return the settings of a model for the stream."""
    task, learner, _ = STREAMS[name]
    return {"name": model, "task": task, "learner": learner, "filters": filters}


def _wrong(rows: Sequence[Row], label: Label, draw: random.Random) -> Label:
    labels = sorted({str(y): y for _, y in rows}.values(), key=str)
    return draw.choice([other for other in labels if other != label])


# -- weight ------------------------------------------------------------------------------------


def weighed(
    name: str, filters: str, replicas: int, seed: int, weights: Sequence[float],
    rows: Sequence[Row],
) -> Iterator[Weighed]:  # fmt: skip
    """One stream, in this process and without a journal: weights need none."""
    instants = [int(len(rows) * share) for share in INSTANTS]
    clean = [_dealt(name, filters, replicas, seed, rows, at, None) for at in instants]
    mean = sum(clean) / len(clean)
    for weight in weights:
        lost = [
            whole - _dealt(name, filters, replicas, seed, rows, at, weight)
            for whole, at in zip(clean, instants, strict=True)
        ]
        few = sum(lost) / len(lost)
        yield Weighed(name, filters, replicas, seed, weight, mean, few, max(lost))


def _dealt(
    name: str, filters: str, replicas: int, seed: int, rows: Sequence[Row], at: int,
    weight: float | None,
) -> float:  # fmt: skip
    """Accuracy of the answers from row ``at`` on."""
    loop = Dealt(ModelSettings.model_validate(settings_of(name, filters)), replicas)
    draw, right, asked = random.Random(seed), 0, rows[at : at + SPAN]
    for n, (features, label) in enumerate(rows[: at + SPAN]):
        if n == at and weight is not None:
            loop.step("stranger", *_lie(rows, at, seed), weight)
        if n >= at:
            right += loop.model.predict(features).label == label
        loop.step(f"user-{draw.randrange(_SOURCES):02}", features, label)
    return 100.0 * right / len(asked)


def _lie(rows: Sequence[Row], at: int, seed: int) -> Row:
    draw = random.Random(seed * 7_919 + at)
    features, label = rows[draw.randrange(at)]
    return features, _wrong(rows, label, draw)


async def weighed_at(
    desk: Desk, rows: Sequence[Row], seed: int, weight: float | None
) -> tuple[float, str]:
    """The same by a desk, with the event at two fifths: accuracy, and what became of the event."""
    at, draw, right, fate = int(len(rows) * INSTANTS[1]), random.Random(seed), 0, ""
    asked = rows[at : at + SPAN]
    for n, (features, label) in enumerate(rows[: at + SPAN]):
        if n == at and weight is not None:
            wrong, lie = _lie(rows, at, seed)
            event = {"features": wrong, "label": lie, "event_id": "lie", "weight": weight}
            fate = await desk.label("stranger", event, n)
        if n >= at:
            right += await desk.predict("app", features, None, n) == label
        event = {"features": features, "label": label, "event_id": str(n)}
        await desk.label(f"user-{draw.randrange(_SOURCES):02}", event, n)
    return 100.0 * right / len(asked), fate


# -- joins -------------------------------------------------------------------------------------


async def joined(
    desk: Desk, rows: Sequence[Row], way: str, seed: int, *, attacked: bool
) -> tuple[float, int, float, int, float]:
    """The last five fields of :class:`Joined`."""
    groups = list(sent(rows, "flip", seed))
    events = [(n, event) for n, group in enumerate(groups) for event in group]
    events = [(n, event) for n, event in events if attacked or not event[3]]
    right = asked = 0
    told: dict[str, list[dict[str, Any]]] = {}
    for i, (n, (source, features, label, _)) in enumerate(events):
        own = f"e-{i}"
        event: dict[str, Any] = {"features": features, "label": label, "event_id": own}
        if way != "features":
            event = {"id": own, "label": label}
        told.setdefault(source, []).append(event)
        if way == "label first":
            await desk.label(source, event, i + 1)
        answer = await desk.predict("anybody", features, None if way == "features" else own, i)
        if way == "prediction first":
            await desk.written(i)
        if way != "label first":
            await desk.label(source, event, i + 1)
        if 2 * n > len(groups) and source in HONEST:
            asked, right = asked + 1, right + (answer == label)
    fates = {source: await desk.outcomes(source, events) for source, events in told.items()}
    lies: dict[str, list[str]] = {}
    honest = Counter[str]()
    places = {source: iter(found) for source, found in fates.items()}
    for _, (source, _, _, lie) in events:
        fate = next(places[source])
        if lie:
            lies.setdefault(source, []).append(fate)
        else:
            honest[fate] += 1
    flat = [fate for found in lies.values() for fate in found]
    taken = 100.0 * sum(fate in _TAKEN for fate in flat) / max(len(flat), 1)
    caught = sum(set(found[-3:]) == {"quarantined"} for found in lies.values())
    aside = 100.0 * honest["quarantined"] / max(honest.total(), 1)
    return 100.0 * right / max(asked, 1), len(flat), taken, caught, aside


# -- ids ---------------------------------------------------------------------------------------


async def guessed(
    desk: Desk, rows: Sequence[Row], guess: str, seed: int, app: str
) -> tuple[float, float, float]:
    """The last three fields of :class:`Guessed`; ``app``: who predicts."""
    draw, right, asked = random.Random(seed), 0, 0
    fates = Counter[str]()
    for n, (features, label) in enumerate(rows):
        own, early = f"visit-{9_000 + n}", draw.random() < 0.5
        attacked = guess != "off" and draw.random() < 0.5
        lie = {"id": own, "label": _wrong(rows, label, draw)}
        if attacked and guess == "labels" and early:
            await desk.label("stranger", lie, n + 1)
        if attacked and guess == "predictions":
            other = rows[draw.randrange(len(rows))][0]
            await desk.predict("other" if app == "app" else app, other, own, n)
        answer = await desk.predict(app, features, own, n)
        if attacked and guess == "labels" and not early:
            await desk.label("stranger", lie, n)
        fates[await desk.label("office", {"id": own, "label": label}, n)] += 1
        if 2 * n > len(rows):
            asked, right = asked + 1, right + (answer == label)
    n = len(rows)
    learned = 100.0 * sum(fates[fate] for fate in _TAKEN) / n
    return 100.0 * right / max(asked, 1), learned, 100.0 * fates["conflict"] / n


# -- tables ------------------------------------------------------------------------------------

SENDERS: Final[Mapping[str, Grant]] = {
    "app": Grant("app"),
    "other": Grant("other"),
    "anybody": Grant(),
    "office": Grant("office", labels_for=("app",)),
    "stranger": Grant("stranger"),
    **{name: Grant(name) for name in (*HONEST, *HOSTILE)},
    **{f"user-{i:02}": Grant(f"user-{i:02}") for i in range(_SOURCES)},
}
"""What each one's token stands for."""

_PREDICTS: Final = ("app", "other", "anybody")


def tables(
    only: str, names: Sequence[str], seeds: Sequence[int], replicas: Sequence[int],
    data_dir: Path | None, rows: int | None = None,
) -> Iterator[Weighed | Joined | Guessed]:  # fmt: skip
    """One of the three tables in this process: the attack off, filters none, and the default."""
    for name in names:
        for n in replicas:
            for seed in seeds:
                given = rows_of(name, data_dir, seed, rows)
                if only == "weight":
                    yield from _weights(name, n, seed, given)
                else:
                    yield from _inside(only, name, n, seed, given)


def _weights(name: str, replicas: int, seed: int, rows: Sequence[Row]) -> Iterator[Weighed]:
    most = Limits().weight_max
    yield from weighed(name, "default", replicas, seed, sorted({*WEIGHTS, most}), rows)
    yield from weighed(name, "none", replicas, seed, [WEIGHT_MAX], rows)


def _inside(
    only: str, name: str, replicas: int, seed: int, rows: Sequence[Row]
) -> Iterator[Joined | Guessed]:
    for filters in ("none", "default"):
        settings = ModelSettings.model_validate(settings_of(name, filters))
        for kind, attacked in _cases(only):
            with tempfile.TemporaryDirectory(prefix="online-doors-") as folder:
                yield asyncio.run(
                    _case(Path(folder), settings, replicas, only, name, rows, seed,
                          kind, attacked=attacked)
                )  # fmt: skip


def _cases(only: str) -> Iterator[tuple[str, bool]]:
    if only == "joins":
        yield WAYS[0], False
        yield from ((way, True) for way in WAYS)
    else:
        for guess in GUESSES:
            yield from ((guess, sources) for sources in (False, True))


async def _case(
    folder: Path, settings: ModelSettings, replicas: int, only: str, name: str,
    rows: Sequence[Row], seed: int, kind: str, *, attacked: bool,
) -> Joined | Guessed:  # fmt: skip
    async with inside(folder, settings, SENDERS, replicas) as desk:
        return await _by(desk, settings.filters, only, name, replicas, rows, seed, kind,
                         attacked=attacked)  # fmt: skip


async def _by(
    desk: Desk, filters: Any, only: str, name: str, replicas: int, rows: Sequence[Row], seed: int,
    kind: str, *, attacked: bool,
) -> Joined | Guessed:  # fmt: skip
    if only == "joins":
        what = f"{name}, {kind}" if attacked else f"{name}, {kind}, nobody lies"
        found = await joined(desk, rows, kind, seed, attacked=attacked)
        return Joined(what, filters, replicas, seed, *found)
    app = "app" if attacked else "anybody"  # here: whether the app's token stands for a source
    guesses = await guessed(desk, rows, kind, seed, app)
    return Guessed(f"{name}, {kind}", filters, replicas, seed, attacked, *guesses)


SERVED: Final[Mapping[str, Sequence[tuple[str, str, bool]]]] = {
    "weight": (("none", "", False), ("none", "", True), ("default", "", False),
               ("default", "", True)),
    "joins": (("none", "features", False), ("none", "prediction first", True),
              ("default", "features", True), ("default", "prediction first", True),
              ("default", "label first", True)),
    "ids": (("default", "off", True), ("default", "labels", False), ("default", "labels", True),
            ("default", "predictions", False), ("default", "predictions", True)),
}  # fmt: skip
"""Over HTTP: filters, case, and whether it is attacked (of ids: whether the app has a source)."""


def served(
    only: str, names: Sequence[str], seeds: Sequence[int], replicas: Sequence[int],
    data_dir: Path | None, rows: int | None = None,
) -> Iterator[Weighed | Joined | Guessed]:  # fmt: skip
    """The same over HTTP: a service for each stream and seed, a model for each case."""
    tokens = {name: f"{name}-".ljust(32, "t") for name in SENDERS}
    admin = "admin-".ljust(32, "a")
    feedback = [_entry(name, token) for name, token in tokens.items() if name not in _PREDICTS]
    asking = [_entry(name, tokens[name]) for name in _PREDICTS]
    access = {"predict": [*asking, admin], "admin": admin, "feedback": feedback}
    cases = SERVED[only]
    for name in names:
        for n in replicas:
            for seed in seeds:
                models = [settings_of(name, case[0], f"m{i}") for i, case in enumerate(cases)]
                given = rows_of(name, data_dir, seed, rows)
                with service({**form(n), "models": models, "tokens": access}) as running:
                    yield from _served(running, only, name, n, seed, given, tokens)


def _entry(name: str, token: str) -> dict[str, Any]:
    grant = SENDERS[name]
    entry: dict[str, Any] = {"token": token}
    if grant.source is not None:
        entry["source"] = grant.source
    if grant.labels_for is not None:
        entry["labels_for"] = list(grant.labels_for)
    return entry


def _served(
    running: Running, only: str, name: str, replicas: int, seed: int, rows: Sequence[Row],
    tokens: Mapping[str, str],
) -> Iterator[Weighed | Joined | Guessed]:  # fmt: skip
    clean = 0.0
    for i, (filters, kind, attacked) in enumerate(SERVED[only]):
        with contextlib.closing(Outside(running, f"m{i}", tokens)) as desk:
            if only != "weight":
                yield asyncio.run(
                    _by(desk, filters, only, name, replicas, rows, seed, kind, attacked=attacked)
                )
                continue
            most = WEIGHT_MAX if filters == "none" else Limits().weight_max
            heavy = most if attacked else None
            right, fate = asyncio.run(weighed_at(desk, rows, seed, heavy))
            if attacked:
                lost, what = clean - right, f"{name}, HTTP, {fate}"
                yield Weighed(what, filters, replicas, seed, most, clean, lost, lost)
            clean = right
