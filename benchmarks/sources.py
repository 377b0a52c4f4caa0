"""Streams of many kinds: numbers, categories, texts, ids; labels at once or late."""

from __future__ import annotations

import cmath
import csv
import gzip
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.edge import sms
from evaluation.errors import StreamUnusable
from evaluation.metrics import Task
from evaluation.streams import open_stream
from replay.example import Features, Label

Row = tuple[Features, Label]

_KDD_ROWS: Final = 50_000
_ACS_ROWS: Final = 60_000
_MNIST_ROWS: Final = 10_000
_MADE_ROWS: Final = 20_000
"""Rows of a stream that a generator makes."""


def _acs(data: Path) -> Iterator[Row]:
    """People of a survey, codes as categories; whether each is employed."""
    import pyarrow.parquet as pq

    table = pq.read_table(_file(data, "acs_employment_MA", "employment_MA_reference.pq"))
    names = [n for n in table.column_names if n.isupper() or n == "RAC1P"]
    for row in table.slice(0, _ACS_ROWS).to_pylist():
        yield {n: row[n] for n in names}, bool(row["employed"])


def _kdd(data: Path) -> Iterator[Row]:
    """Connections, every tenth of the file, with the kind of attack; three columns are texts."""
    path = _file(data, "kdd99_10pct", "kddcup.data_10_percent.gz")
    with gzip.open(path, "rt") as lines:
        for line in itertools.islice(lines, 0, 10 * _KDD_ROWS, 10):
            *values, label = line.rstrip(".\n").split(",")
            row: Features = {
                f"{i}": v if i in (1, 2, 3) else float(v) for i, v in enumerate(values)
            }
            yield row, label


def _ratings(data: Path) -> Iterator[Row]:
    """Who rated which movie, both as categories; whether with four stars or more."""
    path = _file(data, "movielens_small", "ratings.csv.gz")
    with gzip.open(_file(data, "movielens_small", "movies.csv.gz"), "rt") as lines:
        genres = {row[0]: row[2] for row in csv.reader(lines)}
    with gzip.open(path, "rt") as lines:
        next(lines)
        told = [line.rstrip("\n").split(",") for line in lines]
    for user, movie, stars, at in sorted(told, key=lambda row: int(row[3])):
        hour = float(int(at) // 3600 % 24)
        row: Features = {
            "user": user, "movie": movie, "genres": genres.get(movie, "").replace("|", " "),
            "hour": hour,
        }  # fmt: skip
        yield row, float(stars) >= 4


def _mnist(data: Path) -> Iterator[Row]:
    from benchmarks.studies.digits import mnist

    digits = mnist(data)
    for image, digit in zip(digits.x[:_MNIST_ROWS], digits.y[:_MNIST_ROWS].tolist(), strict=True):
        yield {f"p{i}": float(v) for i, v in enumerate(image.tolist()) if v}, int(digit)


def _drifting(data: Path, name: str) -> Iterator[Row]:
    """A synthetic stream with known drift; the last column is the class."""
    with gzip.open(_file(data, "synth_known_drift", name), "rt") as lines:
        for line in lines:
            *values, label = line.strip().split(",")
            try:
                numbers = [float(v) for v in values]
            except ValueError:  # a header
                continue
            yield {f"{i}": v for i, v in enumerate(numbers)}, float(label) > 0


def _file(data: Path, *parts: str) -> Path:
    path = data.joinpath(*parts)
    if not path.is_file():
        raise StreamUnusable(parts[0], f"no file {path}", "Set ONLINE_DATA_DIR")
    return path


def _demand(data: Path) -> Iterator[Row]:
    for x, _ in open_stream("elec2", data).rows:
        y = x["nswdemand"]
        assert isinstance(y, float)
        yield {n: v for n, v in x.items() if n != "nswdemand"}, y


@dataclass(frozen=True, slots=True)
class Source:
    """Where a stream is, and what is known of it.

    Attributes:
        delay: Rows after which a label is known.
        text: Features that are taken as bags of words by those who can.
    """

    task: Task
    rows: Callable[[Path], Iterable[Row]]
    delay: int = 0
    text: tuple[str, ...] = ()


def _known(name: str) -> Callable[[Path], Iterable[Row]]:
    return lambda data: open_stream(name, data).rows


def _bundled(name: str, read: Callable[[Features, Any], Row]) -> Callable[[Path], Iterator[Row]]:
    """A data set inside river that :func:`open_stream` has no name for."""

    def rows(data: Path) -> Iterator[Row]:
        from river import datasets

        return (read(x, y) for x, y in getattr(datasets, name)())

    return rows


def _flare(x: Features, y: Any) -> Row:
    """A region of the sun, its grades as categories; whether it had a flare of class C."""
    return {n: v if isinstance(v, str) else str(v) for n, v in x.items()}, y["c-class-flares"] > 0


def _made(make: Callable[[Any], Any], task: Task = "binary") -> Callable[[Path], Iterator[Row]]:
    """A stream of river's generators, with names that are texts."""

    def rows(data: Path) -> Iterator[Row]:
        from river.datasets import synth

        for x, y in make(synth).take(_MADE_ROWS):
            yield {f"{n}": v for n, v in x.items()}, bool(y) if task == "binary" else y

    return rows


def _turning(data: Path) -> Iterator[Row]:
    """Two numbers of one sign or not, on axes that turn once around; one label in 20 is wrong."""
    rng = random.Random(5)
    for i in range(_MADE_ROWS):
        a, b = rng.gauss(0.0, 1.0), rng.gauss(0.0, 1.0)
        turned = complex(a, b) * cmath.exp(2j * cmath.pi * i / _MADE_ROWS)
        odd = rng.random() < 0.05
        yield {"a": a, "b": b, "c": rng.gauss(0.0, 1.0)}, (turned.real * turned.imag > 0) != odd


STREAMS: Final[Mapping[str, Source]] = {
    "elec2": Source("binary", _known("elec2")),
    "insects": Source("multiclass", _known("insects")),
    "gas": Source("multiclass", _known("gas")),
    "acs": Source("binary", _acs),
    "kdd99": Source("multiclass", _kdd),
    "sms": Source("binary", sms, text=("text",)),
    "movielens": Source("binary", _ratings, text=("genres",)),
    "phishing": Source("binary", _known("phishing")),
    "bananas": Source("binary", _known("bananas")),
    "image segments": Source("multiclass", _known("image_segments")),
    "digits": Source("multiclass", _known("digits")),
    "mnist": Source("multiclass", _mnist),
    "sea": Source("binary", partial(_drifting, name="sea_0123_abrupto_noise_0.2.csv.gz")),
    "sine": Source("binary", partial(_drifting, name="sine_0123_gradual.csv.gz")),
    "mixed": Source("binary", partial(_drifting, name="mixed_0101_gradual.csv.gz")),
    "random tree": Source("binary", partial(_drifting, name="rt_2563789698568873_abrupto.csv.gz")),
    "demand": Source("regression", _demand),
    "solar flare": Source("binary", _bundled("SolarFlare", _flare)),
    "trump approval": Source("regression", _bundled("TrumpApproval", lambda x, y: (x, y))),
    "chick weights": Source("regression", _bundled("ChickWeights", lambda x, y: (x, float(y)))),
    "turning xor": Source("binary", _turning),
    "hyperplane": Source(
        "binary", _made(lambda s: s.Hyperplane(seed=7, n_drift_features=5, mag_change=0.002))
    ),
    "friedman": Source(
        "regression",
        _made(lambda s: s.FriedmanDrift("gra", position=(7_000, 14_000), seed=7), "regression"),
    ),
    "moving clouds": Source(
        "multiclass",
        _made(lambda s: s.RandomRBFDrift(7, 7, n_classes=4, change_speed=0.0005), "multiclass"),
    ),
    "loans": Source("binary", _made(lambda s: s.Agrawal(classification_function=6, seed=7))),
}
"""Each as it comes, with labels at once; :func:`named` takes a delay, too."""


def named(stream: str) -> Source:
    """The stream of this name, or with ``NUMBER late`` after it that one with late labels.

    The last number counts.  Raises ValueError with the names there are.
    """
    *words, last = stream.split()
    if last == "late" and len(words) > 1 and words[-1].isdecimal():
        return replace(named(" ".join(words[:-1])), delay=int(words[-1]))
    if (found := STREAMS.get(stream)) is None:
        raise ValueError(f"{stream!r} is no stream; name one of: {', '.join(STREAMS)}")
    return found
