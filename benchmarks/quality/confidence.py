"""Sets and intervals on real streams: how often they have the label, with labels at once and late.

`linear` answers each row before its label is known and learns it when it has come; the thresholds
are the service's own.  With several replicas the rows are asked of them in turn, labels come to any
of them, and what each has added is merged as the parameter server does, every 64 rows of each.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.fixtures import datasets
from benchmarks.quality.defaults import built
from evaluation.metrics import Task
from evaluation.streams import Row, open_stream
from online.models.base import Prediction
from online.sure.calibration import Calibration
from online.sure.conformal import Confidence, held
from paramserver.core.blocks import Blocks, copy, merge
from replay.example import Example, Features, Label, label_text

CHOSE: Final = ("bananas", "gas", "price")
"""Streams by which the steps were chosen; how they looked on Elec2, INSECTS and ACS was seen."""
PROVE: Final = ("elec2", "insects", "acs", "demand")
UNSEEN: Final = ("sea", "mixed", "ratings")
DELAYS: Final = (0, 48, 500)
LEVEL: Final = 0.9
GROUPS: Final = ("RAC1P", "SEX", "DIS")
"""Features of `acs` by which its groups are told apart: race, sex, disability."""
GROUP_MIN: Final = 300
VALUES: Final = 32
_WINDOW, _SKIPPED, _TOGETHER = 500, 1_000, 64
_PEER: Final = Path(__file__).parents[1].joinpath("studies") / "saocp_peer.py"

Progress = Callable[[str], None]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Line:
    """The results of one stream at one label delay.

    Attributes:
        coverage, alone: Share of rows whose set or interval had the label; whose single answer was
            right.
        size: Labels in a set, or width of an interval, in the mean.
        least, fifth: Coverage of disjoint windows of 500 rows behind the first 1,000: the least,
            and the 5th percentile.
        least_able: The least coverage at which no window of single labels is below the level, where
            it is more.
    """

    stream: str
    delay: int
    who: str
    rows: int
    coverage: float
    alone: float | None
    size: float
    least: float | None
    fifth: float | None
    least_able: float | None


@dataclass(frozen=True, slots=True)
class Group:
    """A group has the rows of a stream with one value of a feature, labels so many rows late.

    Attributes:
        one, own: Coverage with one threshold for all, and with a part of it for each group.
        size, size_own: Labels in a set, in the mean of the group.
    """

    stream: str
    delay: int
    who: str
    group: str
    rows: int
    one: float
    own: float
    size: float
    size_own: float


@dataclass(frozen=True, slots=True)
class Asked:
    """Rows of a stream as they were answered, the labels so many rows late."""

    stream: str
    delay: int
    task: Task
    answers: list[tuple[dict[str, float] | None, Label]]


def rows_of(name: str, data: Path, most: int | None) -> tuple[Task, Iterator[Row]]:
    """Task and rows of a stream by its name here."""
    if name == "acs":
        return "binary", islice(_acs(data), most or 40_000)
    if name in ("price", "demand"):
        return "regression", islice(datasets.elec2_column(data, f"nsw{name}"), most)
    if name == "ratings":
        return "regression", islice(_ratings(data), most)
    places = {"sea": "sea_0123_abrupto_noise_0.2", "mixed": "mixed_0101_abrupto"}
    if name in places:
        path = data / "synth_known_drift" / f"{places[name]}.csv.gz"
        stream = open_stream(str(path))
    else:
        stream = open_stream(name, data)
    return stream.task, islice(stream.rows, most)


def _acs(data: Path) -> Iterator[Row]:
    left_out = {"id", "employed", "year", "prediction", "predicted_probability"}
    for row in datasets.employment(data):
        yield {k: v for k, v in row.items() if k not in left_out}, bool(row["employed"])


def _ratings(data: Path) -> Iterator[Row]:
    for one in datasets.ratings(data):
        yield {"user": f"u{one.user}", "film": f"f{one.film}"}, one.stars


def ask(name: str, data: Path, delay: int, most: int | None) -> Asked:
    """Answer and learn a stream, each row's label ``delay`` rows late."""
    task, rows = rows_of(name, data, most)
    served = built("linear", task)
    waiting: list[tuple[Features, Label, Prediction]] = []
    answers: list[tuple[dict[str, float] | None, Label]] = []
    for i, (x, y) in enumerate(rows):
        _, said = served.answer_noted(x)
        if task == "regression":
            score = {"": float(said.label)} if isinstance(said.label, float) else None
        else:
            shares = said.probabilities or {}
            score = {label_text(k): p for k, p in shares.items()} or None
        answers.append((score, y))
        waiting.append((x, y, said))
        if i >= delay:
            served.learn_noted(*waiting[i - delay])
            waiting[i - delay] = ({}, False, said)
    return Asked(name, delay, task, answers)


def ours(asked: Asked, replicas: int = 1) -> Line:
    """Thresholds of the service, in so many replicas."""
    seen = _play(asked, replicas)
    return _line(asked, "ours" if replicas == 1 else f"ours, {replicas} replicas", seen)


def grouped(
    asked: Asked, rows: Sequence[Features], names: Sequence[str], replicas: int = 1
) -> list[Group]:
    """Groups of at least so many rows by these features, with one threshold and with own parts."""
    one, own = (_play(asked, replicas, rows, slices) for slices in ((), names))
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        for name in names:
            groups.setdefault(f"{name} {row[name]}", []).append(i)
    who = "ours" if replicas == 1 else f"ours, {replicas} replicas"
    out = []
    for group, places in sorted(groups.items()):
        if len(places) >= GROUP_MIN:
            first, second = (np.array([seen[i] or (0, 0) for i in places]) for seen in (one, own))
            covered, covered_own = float(first[:, 0].mean()), float(second[:, 0].mean())
            size, size_own = float(first[:, 1].mean()), float(second[:, 1].mean())
            out.append(
                Group(
                    asked.stream, asked.delay, who, group, len(places), round(covered, 4),
                    round(covered_own, 4), round(size, 3), round(size_own, 3),
                )
            )  # fmt: skip
    return out


def _play(
    asked: Asked,
    replicas: int,
    rows: Sequence[Features] = (),
    slices: Sequence[str] = (),
    seed: int = 1,
) -> list[tuple[bool, float] | None]:
    """Answer each row by thresholds in so many replicas; whether it had the label, and its size."""
    draw = random.Random(seed)
    parts = [Confidence(asked.task, LEVEL, slices, VALUES) for _ in range(replicas)]
    values: Blocks = {}
    examples: list[Example] = []
    seen: list[tuple[bool, float] | None] = []
    for i, (score, label) in enumerate(asked.answers):
        part = parts[i % replicas]
        row = rows[i] if rows else {}
        example = Example(row, label, score=score, sure=part.stamp(row))
        examples.append(example)
        seen.append(held(asked.task, example))
        if i >= asked.delay:
            draw.choice(parts).add(examples[i - asked.delay])
        if replicas > 1 and (i + 1) % (_TOGETHER * replicas) == 0:
            exchange(parts, values)
    return seen


def exchange(parts: Sequence[Confidence | Calibration], values: Blocks) -> None:
    """Merge what each replica has added into the values, and give them to all replicas."""
    for one in parts:
        merge(values, one.cut())
    for one in parts:
        one.rebase(copy(values))


def saocp(asked: Asked, peer: Path) -> Line:
    """The same answers with the peer's thresholds; scores are 1 − p of the label, or errors."""
    scores = [_score(score, label) for score, label in asked.answers]
    scale = 1.0
    if asked.task == "regression":
        scale = max(scores[:100]) * 3**0.5
    given = json.dumps({"scores": scores, "delay": asked.delay, "scale": scale})
    done = subprocess.run([peer, _PEER], input=given, capture_output=True, text=True, check=True)
    thresholds: list[float] = json.loads(done.stdout)
    seen: list[tuple[bool, float] | None] = []
    for (score, label), own, most in zip(asked.answers, scores, thresholds, strict=True):
        if score is None:
            seen.append(None)
        elif "" in score:
            seen.append((own <= most, 2.0 * most))
        else:
            top = max(score, key=score.__getitem__) == label_text(label)
            size = sum(1.0 - p <= most for p in score.values())
            seen.append((top or own <= most, float(max(size, 1))))
    return _line(asked, "SAOCP", seen)


def _score(score: dict[str, float] | None, label: Label) -> float:
    if score is None:
        return 1.0
    if "" in score:
        return abs(score[""] - float(label))
    return 1.0 - score.get(label_text(label), 0.0)


def _line(asked: Asked, who: str, seen: Sequence[tuple[bool, float] | None]) -> Line:
    there = [i for i, one in enumerate(seen) if one is not None]
    found = [one for one in seen if one is not None]
    covered = np.array([one[0] for one in found], dtype=float)
    windows = _windows(covered)
    alone = able = None
    if asked.task != "regression":
        answers = [asked.answers[i] for i in there]
        right = np.array([_right(score, label) for score, label in answers], dtype=float)
        alone = float(right.mean())
        able = float(np.maximum(_windows(right, 0), LEVEL).mean())
    return Line(
        asked.stream, asked.delay, who, len(seen),
        round(float(covered.mean()), 4),
        None if alone is None else round(alone, 4),
        float(f"{np.mean([one[1] for one in found]):.4g}"),
        round(float(windows.min()), 3) if len(windows) else None,
        round(float(np.percentile(windows, 5)), 3) if len(windows) else None,
        None if able is None else round(able, 4),
    )  # fmt: skip


def _windows(hits: Floats, skipped: int = _SKIPPED) -> Floats:
    rest = hits[skipped:]
    many = len(rest) // _WINDOW
    means: Floats = rest[: many * _WINDOW].reshape(many, _WINDOW).mean(axis=1)
    return means


def _right(score: dict[str, float] | None, label: Label) -> bool:
    return bool(score) and max(score or {}, key=(score or {}).__getitem__) == label_text(label)


def run_groups(
    data: Path,
    *,
    most: int | None = None,
    delays: Sequence[int] = DELAYS,
    progress: Progress = lambda text: None,
) -> list[Group]:
    """People of `acs` by their groups, with labels at once and late, in one replica and four."""
    rows = [{name: x[name] for name in GROUPS} for x, _ in rows_of("acs", data, most)[1]]
    found = []
    for delay in delays:
        progress(f"acs by groups, labels {delay} late")
        asked = ask("acs", data, delay, most)
        found += grouped(asked, rows, GROUPS) + grouped(asked, rows, GROUPS, replicas=4)
    return found


def run(
    names: Sequence[str],
    data: Path,
    *,
    peer: Path | None = None,
    most: int | None = None,
    delays: Sequence[int] = DELAYS,
    progress: Progress = lambda text: None,
) -> list[Line]:
    """Each stream with labels at once and late, in one replica and four, beside the peer."""
    lines = []
    for name in names:
        for delay in delays:
            progress(f"{name}, labels {delay} late")
            asked = ask(name, data, delay, most)
            lines += [ours(asked), ours(asked, replicas=4)]
            if peer is not None:
                lines.append(saocp(asked, peer))
    return lines
