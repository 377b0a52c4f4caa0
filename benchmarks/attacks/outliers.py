"""One event with a true label and numbers that are far off: what it costs, and honest rows pay.

Twenty sources send the rows of a real stream, shuffled but for Elec2 and INSECTS, and one of them
the outliers.  *Accuracy* is that of the answers to the rows behind the first outlier, in percent,
each asked before its block is learned; with filters and without, and both with an ordinary event
in the place of each outlier: one event more deals all rows behind it to the other replicas.

* *1e4*, *1e100*, *-1e4*: one event, every number of it is that;
* *one name*: one number of one event is 1e4;
* *in turn*: one event for each name, with 1e6 there;
* *five*, *1 %*, *10 %*: five events within forty rows, or so many of all, from 1e3 to 1e100;
* *known*: ten events of one who knows the bound, each just within it.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.service import form, service
from benchmarks.fixtures.several_replicas import Dealt
from evaluation.metrics import Task
from evaluation.streams import open_stream
from online.learning.bounds import FAR
from online.learning.ranges import REACH
from online.settings.config import data_dir
from online.settings.model import ModelSettings
from replay import codec
from replay.example import Features, Label

STREAMS: Final[dict[str, tuple[Task, str, int]]] = {
    "elec2": ("binary", "logreg", 6_000),
    "phishing": ("binary", "logreg", 1_250),
    "insects": ("multiclass", "softmax", 4_000),
    "image_segments": ("multiclass", "softmax", 2_310),
    "gas": ("multiclass", "softmax", 3_000),
}
"""Task, learner and rows of each."""

KINDS: Final = ("1e4", "1e100", "-1e4", "one name", "in turn", "five", "1 %", "10 %", "known")
OVER_HTTP: Final = ("1e4", "1e100")
FILTERS: Final = ("none", "default")
_AGAIN: Final = "again"

POINTS: Final = 0.5
"""Of accuracy that one event may cost."""

_SOURCES: Final = 20
_BLOCK: Final = 10
_IN_ORDER: Final = ("elec2", "insects")
_BEGIN: Final = 3  # the first outlier comes after a third of the rows

Sent = tuple[str, Features, Label, bool]
"""Source, features, label, and whether it is an outlier."""


@dataclass(frozen=True, slots=True)
class Outlying:
    """One attack on one stream.  ``clipped``: of honest rows.  ``lost``: points, with filters.

    ``apart``: how far two runs without the attack differ; None: they can't, in this process.
    """

    stream: str
    kind: str
    seed: int
    replicas: int
    off_none: float
    none: float
    off: float
    default: float
    clipped: int
    lost: float
    apart: float | None
    good: bool


def sent(stream: str, kind: str, seed: int, rows: int | None = None) -> list[Sent]:
    """All that is sent, in order.  Raises StreamUnusable."""
    _, _, most = STREAMS[stream]
    draw = random.Random(seed)
    honest = list(islice(iter(open_stream(stream, data_dir()).rows), None))
    if stream not in _IN_ORDER:
        draw.shuffle(honest)
    elif len(honest) > most:
        begin = draw.randrange(len(honest) - most)
        honest = honest[begin : begin + most]
    honest = honest[: min(rows or most, most)]
    begin, out, last = len(honest) // _BEGIN, list[Sent](), dict[str, float]()
    for n, (features, label) in enumerate(honest):
        for name, value in features.items():
            last[name] = max(last.get(name, 0.0), abs(float(value or 0.0)))
        out.append((f"s{draw.randrange(_SOURCES)}", features, label, False))
        found = _outliers(kind, n - begin, features, last, draw) if n >= begin else []
        out += [("s0", outlier, label, True) for outlier in found]
    return out


def ordinary(events: Sequence[Sent]) -> list[Sent]:
    """The same, with the row before it in the place of each outlier."""
    out = list[Sent]()
    for source, features, label, outlier in events:
        out.append((source, out[-1][1] if outlier else features, label, outlier))
    return out


def _outliers(
    kind: str, n: int, features: Features, most: Mapping[str, float], draw: random.Random
) -> list[Features]:
    """Return the outliers that come behind the ``n``-th row since they began."""
    names = list(features)
    if kind in ("1e4", "1e100", "-1e4"):
        return [dict.fromkeys(names, float(kind))] if n == 0 else []
    if kind == "one name":
        return [{**features, draw.choice(names): 1e4}] if n == 0 else []
    if kind == "in turn":
        return [{**features, names[n]: 1e6}] if n < len(names) else []
    if kind == "known":
        reach = {name: (REACH / len(names)) * 2.0 ** min(n // 4, 6) for name in names}
        return [{k: most[k] * (1.0 + reach[k]) for k in names}] if n < 40 and not n % 4 else []
    due = {"five": n < 40 and not n % 8, "1 %": not n % 100, "10 %": not n % 10}
    return [dict.fromkeys(names, 10.0 ** draw.randrange(3, 101))] if due.get(kind) else []


def run(
    kinds: Sequence[str] = KINDS,
    seeds: Sequence[int] = (0, 1, 2),
    streams: Sequence[str] = tuple(STREAMS),
    replicas: Sequence[int] = (1, 2),
    rows: int | None = None,
) -> Iterator[Outlying]:
    """Each attack on each stream, by each seed and number of replicas, in this process."""
    for stream in streams:
        for many in replicas:
            for seed in seeds:
                known: dict[tuple[int, ...], dict[str, tuple[float, int]]] = {}
                for kind in kinds:
                    events = sent(stream, kind, seed, rows)
                    places = tuple(i for i, one in enumerate(events) if one[3])
                    if places not in known:
                        clean = ordinary(events)
                        known[places] = {f: alone(stream, clean, f, many) for f in FILTERS}
                    honest = known[places]
                    found = {f: alone(stream, events, f, many) for f in FILTERS}
                    yield _line(stream, kind, seed, many, honest, found)


def over_http(
    kinds: Sequence[str] = OVER_HTTP,
    seeds: Sequence[int] = (0, 1, 2),
    streams: Sequence[str] = tuple(STREAMS)[:3],
    replicas: Sequence[int] = (1, 2),
    rows: int | None = None,
) -> Iterator[Outlying]:
    """The same by services: one for each seed and number of replicas, a model for each run.

    ``kinds``: of one event each.
    """
    for many in replicas:
        for seed in seeds:
            wanted = {
                (stream, kind, f): f"{stream}-{i}-{f}"
                for stream in streams
                for i, kind in enumerate(("", _AGAIN, *kinds))
                for f in FILTERS
            }
            models = [
                {**_settings(stream, f), "name": name} for (stream, _, f), name in wanted.items()
            ]
            settings = {**form(many), "models": models}
            found: dict[tuple[str, str, str], tuple[float, int]] = {}
            with service(settings) as running, contextlib.closing(Connection(running.url)) as way:
                for (stream, kind, f), name in wanted.items():
                    honest_only = kind in ("", _AGAIN)
                    events = sent(stream, kinds[0] if honest_only else kind, seed, rows)
                    events = ordinary(events) if honest_only else events
                    found[stream, kind, f] = _served(way, name, events)
            for stream in streams:
                honest = {f: found[stream, "", f] for f in FILTERS}
                for kind in kinds:
                    attacked = {f: found[stream, kind, f] for f in FILTERS}
                    again = found[stream, _AGAIN, "default"][0]
                    yield _line(
                        stream,
                        kind,
                        seed,
                        many,
                        honest,
                        attacked,
                        abs(honest["default"][0] - again),
                    )


def _line(
    stream: str,
    kind: str,
    seed: int,
    replicas: int,
    honest: Mapping[str, tuple[float, int]],
    found: Mapping[str, tuple[float, int]],
    apart: float | None = None,
) -> Outlying:
    off, (kept, clipped) = honest["default"][0], found["default"]
    lost = off - kept
    return Outlying(
        stream, kind, seed, replicas, honest["none"][0], found["none"][0], off, kept, clipped,
        lost, apart, lost <= POINTS,
    )  # fmt: skip


def _settings(stream: str, filters: str) -> dict[str, Any]:
    task, learner, _ = STREAMS[stream]
    plain = {"scale": "plain"}  # behind the limited scaler an outlier ruins nothing anyway
    return {"name": "m", "task": task, "learner": learner, "params": plain, "filters": filters}


def alone(stream: str, events: Sequence[Sent], filters: str, replicas: int) -> tuple[float, int]:
    """In this process, without HTTP and journal: the same learners, filters and server."""
    loop = Dealt(ModelSettings.model_validate(_settings(stream, filters)), replicas)
    right = asked = clipped = 0
    begin = sum(not one[3] for one in events) // _BEGIN
    for source, features, label, outlier in events:
        replica = loop.replicas[loop.n % replicas]
        if not outlier and loop.n > begin:
            answer = replica.learner.predict(features).label
            right, asked = right + (answer == label), asked + 1
        row = loop.step(source, features, label)
        clipped += not outlier and codec.decode(row.payload).raw is not None
    return 100.0 * right / asked, clipped


def _served(way: Connection, model: str, events: Sequence[Sent]) -> tuple[float, int]:
    """Request answers for blocks of rows, and then send their labels."""
    right = asked = clipped = 0
    begin = sum(not one[3] for one in events) // _BEGIN
    for at in range(0, len(events), _BLOCK):
        block = events[at : at + _BLOCK]
        rows = [features for _, features, _, outlier in block if not outlier]
        labels = [label for _, _, label, outlier in block if not outlier]
        if at > begin and rows:
            code, answer = way.post(f"/v1/models/{model}/predict", {"instances": rows})
            assert code == 200, answer
            answers = [row["prediction"] for row in answer["predictions"]]
            right += sum(a == b for a, b in zip(answers, labels, strict=True))
            asked += len(labels)
        told = [
            {"features": x, "label": y, "source": source, "event_id": f"{at + i}"}
            for i, (source, x, y, _) in enumerate(block)
        ]
        code, receipts = way.post(f"/v1/models/{model}/feedback", {"events": told})
        assert code == 200, receipts
        reasons = [one.get("reason") or "" for one in receipts["events"]]
        pairs = zip(reasons, block, strict=True)
        clipped += sum(why.startswith(FAR) and not one[3] for why, one in pairs)
    return 100.0 * right / asked, clipped
