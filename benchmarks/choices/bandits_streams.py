"""Labelled streams as choices: reward 1 for the right class, and one of actions with features."""

from __future__ import annotations

import csv
import gzip
import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.fixtures import sources
from evaluation.streams import open_stream
from replay.example import Features, label_text

STREAMS: Final = (
    "image_segments", "digits", "insects", "elec2", "acs", "movielens", "mnist", "kdd99",
)  # fmt: skip
SHUFFLED: Final = ("image_segments", "digits")
SHARED: Final = ("acs", "mnist", "kdd99")
"""Streams that are read as `python -m benchmarks defaults` reads them."""

ROWS_MAX: Final = {
    "elec2": 10_000, "acs": 10_000, "movielens": 5_000, "mnist": 10_000, "kdd99": 10_000,
}  # fmt: skip
CANDIDATES: Final = 20
LIKED: Final = 4.0


@dataclass(frozen=True, slots=True)
class Chance:
    """One choice: what is known, what may be chosen, and the reward of each (of which one is told).

    ``label`` is the right action's place; None if there may be several.
    """

    context: Features
    actions: list[tuple[str, Features]]
    rewards: list[float]
    label: int | None


def chances(name: str, data: Path | None, seed: int, rows: int | None = None) -> list[Chance]:
    """Rows of a stream as choices, in the seed's order if the stream has none of its own."""
    most = rows or ROWS_MAX.get(name)
    if name == "movielens":
        return list(itertools.islice(_movielens(_folder(data) / "movielens_small", seed), most))
    if name in SHARED:
        source = sources.STREAMS[name].rows(_folder(data))
        told = list(itertools.islice(source, most))
    else:
        told = list(open_stream(name, data).rows)
    if name in SHUFFLED:
        told = [told[i] for i in np.random.default_rng(seed).permutation(len(told))]
    told = told[:most]
    names = sorted({label_text(label) for _, label in told})
    actions: list[tuple[str, Features]] = [(one, {}) for one in names]
    place = {one: i for i, one in enumerate(names)}
    return [
        Chance(x, actions, [float(label_text(y) == one) for one in names], place[label_text(y)])
        for x, y in told
    ]


def _folder(data: Path | None) -> Path:
    if data is None:
        raise FileNotFoundError("no data directory is set; set ONLINE_DATA_DIR")
    return data


def _movielens(folder: Path, seed: int) -> Iterator[Chance]:
    """A user and twenty movies that he has rated, by their genres; whether he liked the chosen."""
    with gzip.open(folder / "movies.csv.gz", "rt", encoding="utf-8") as lines:
        films = {row["movieId"]: row for row in csv.DictReader(lines)}
    rated: dict[str, list[tuple[str, float]]] = defaultdict(list)
    with gzip.open(folder / "ratings.csv.gz", "rt", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            rated[row["userId"]].append((row["movieId"], float(row["rating"])))
    rng = np.random.default_rng(seed)
    users = [user for user, of in rated.items() if len(of) >= CANDIDATES]
    while True:
        user = users[int(rng.integers(len(users)))]
        picked = [rated[user][i] for i in rng.permutation(len(rated[user]))[:CANDIDATES]]
        actions: list[tuple[str, Features]] = []
        for movie, _ in picked:
            film = films.get(movie, {"genres": "", "title": ""})
            of: Features = {f"g {one}": True for one in film["genres"].split("|")}
            year = film["title"].rstrip()[-5:-1]
            actions.append((movie, {**of, "year": float(year) if year.isdigit() else None}))
        yield Chance({"user": user}, actions, [float(s >= LIKED) for _, s in picked], None)
