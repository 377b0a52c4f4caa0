"""Ratings of films, each tested, then learned: the factorization machine beside river's.

Two tasks on the same rows: how many stars, and whether four or more.  Users with odd numbers chose
the defaults of ``fm``; those with even ones, whom nothing was chosen on, are what is shown.  Peers
have the best of their rates on the very rows that are shown, in hindsight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
from river import facto, optim, reco

from benchmarks.fixtures import datasets
from benchmarks.fixtures.several_replicas import Dealt
from evaluation.metrics import Task
from online.models.fm import Fm, FmTable
from online.models.loading.load import load
from online.settings.cache import Cache
from online.settings.model import ModelSettings
from online.settings.sync import Sync
from replay.example import Features

Part = Literal["choice", "proof", "whole"]

RATES: Final = (0.005, 0.01, 0.025, 0.05)
"""Of the peers; the best of them in hindsight is shown."""

SEEDS: Final = (0, 1, 2)
LIKED: Final = 4.0
_SHARE_MIN: Final = 1e-6
_FACTORS: Final = 8
_CUT_ROWS: Final = 64


@dataclass(frozen=True, slots=True)
class Rating:
    """Who gave a film how many stars."""

    user: str
    film: str
    genres: tuple[str, ...]
    stars: float


@dataclass(frozen=True, slots=True)
class Line:
    """How one learner did; ``setting``: the rate, or the seed, that it had."""

    learner: str
    setting: str
    rows: int
    mae: float
    rmse: float
    auc: float
    log_loss: float


def ratings(data: Path, part: Part) -> list[Rating]:
    """Ratings in the order of their times.  Raises StreamUnusable."""
    genres = {film: tuple(of.split("|")) for film, of in datasets.genres(data).items()}
    odd = {"choice": (1,), "proof": (0,), "whole": (0, 1)}[part]
    return [
        Rating(user, film, genres.get(film, ()), stars)
        for user, film, stars, _ in datasets.ratings(data)
        if int(user) % 2 in odd
    ]


class Rater(Protocol):
    """A rater answers a number, the stars or the probability of four or more, and learns."""

    def answer(self, rating: Rating) -> float:
        """A number for the user and the film."""

    def learn(self, rating: Rating, y: float) -> None:
        """Learn what the number was."""


class Mean:
    """The mean of all so far."""

    def __init__(self, task: Task) -> None:
        self._n, self._mean = 0, 0.5 if task == "binary" else 3.0

    def answer(self, rating: Rating) -> float:
        """Answer the mean so far."""
        return self._mean

    def learn(self, rating: Rating, y: float) -> None:
        """Take it into the mean."""
        self._n += 1
        self._mean += (y - self._mean) / self._n


def row_of(rating: Rating, *, genres: bool = True) -> Features:
    """A rating as the service is asked."""
    row: Features = {"user": rating.user, "film": rating.film}
    if genres:
        row["genres"] = " ".join(one.replace("-", "") for one in rating.genres)
    return row


class Ours:
    """A model of the service."""

    def __init__(self, model: Any, task: Task, *, genres: bool = True) -> None:
        self._model, self._binary, self._genres = model, task == "binary", genres

    def answer(self, rating: Rating) -> float:
        """Answer the number or the probability of true."""
        found = self._model.predict(row_of(rating, genres=self._genres))
        return float(found.probabilities[True] if self._binary else found.label)

    def learn(self, rating: Rating, y: float) -> None:
        """Learn the row at hand."""
        self._model.learn(row_of(rating, genres=self._genres), bool(y) if self._binary else y, 1.0)


class Sent(Ours):
    """A model whose changes are cut off as often as a service would, at most."""

    _n = 0

    def learn(self, rating: Rating, y: float) -> None:
        """Learn the row at hand."""
        super().learn(rating, y)
        self._n += 1
        if self._n % _CUT_ROWS == 0:
            self._model.cut()


class Several:
    """Four replicas of a built-in, each answering every fourth row before it exchanges."""

    def __init__(
        self, name: str, task: Task, sync: Sync | None = None, rows: int | None = None, **more: Any
    ) -> None:
        params = {"text": ["genres"], **more}
        settings = ModelSettings(
            name="stars",
            task=task,
            learner=name,
            params=params,
            filters="none",
            sync=sync or Sync(),
        )
        settings = settings.model_copy(update={"cache": Cache(rows=rows)})
        self._dealt, self._binary = Dealt(settings, 4), task == "binary"

    def answer(self, rating: Rating) -> float:
        """Answer as the replica does whose turn it is."""
        replicas = self._dealt.replicas
        learner = replicas[(self._dealt.n + 1) % len(replicas)].learner
        if learner.cache is not None:
            learner.cache.use(learner.cache.ids_of(row_of(rating)))
        return Ours(learner.serving, "binary" if self._binary else "regression").answer(rating)

    def learn(self, rating: Rating, y: float) -> None:
        """Let it learn the row, and one exchange if it is time."""
        self._dealt.step("a", row_of(rating), bool(y) if self._binary else y)


class Machine:
    """A factorization machine of river, genres as features of their own."""

    def __init__(self, model: Any, task: Task) -> None:
        self._model, self._binary = model, task == "binary"

    def _row(self, rating: Rating) -> dict[str, Any]:
        return {"user": rating.user, "film": rating.film, **dict.fromkeys(rating.genres, 1.0)}

    def answer(self, rating: Rating) -> float:
        """Answer the number or the probability of true."""
        if self._binary:
            return float(self._model.predict_proba_one(self._row(rating))[True])
        return float(self._model.predict_one(self._row(rating)))

    def learn(self, rating: Rating, y: float) -> None:
        """Learn the row at hand."""
        self._model.learn_one(self._row(rating), bool(y) if self._binary else y)


class Biased:
    """River's matrix factorization with biases; a probability is its number, cut to 0 and 1."""

    def __init__(self, rate: float) -> None:
        normal = optim.initializers.Normal(sigma=0.1, seed=1)
        self._model = reco.BiasedMF(
            _FACTORS, optim.SGD(rate), optim.SGD(rate), latent_initializer=normal, seed=1
        )

    def answer(self, rating: Rating) -> float:
        """Answer the number asked for."""
        return float(self._model.predict_one(rating.user, rating.film))

    def learn(self, rating: Rating, y: float) -> None:
        """Learn who gave what to what."""
        self._model.learn_one(rating.user, rating.film, y)


def _built_in(name: str, task: Task) -> Ours:
    params = {"text": ["genres"]}
    made = load(name, params, task=task, classes=None, key=bytes(32), base_dir=Path())
    return Ours(made.model, task)


def _fm(seed: int, task: Task, *, genres: bool = True, **changes: Any) -> Ours:
    recipe = replace(Fm(text=("genres",), seed=seed), **changes)
    return Ours(recipe.model_for(task), task, genres=genres)


def _table(task: Task, *, rounds: bool = False) -> Sent:
    model = Fm(text=("genres",), table=True).model_for(task)
    assert isinstance(model, FmTable)
    if rounds:
        model.round_deltas()
    return Sent(model, task)


def _river(kind: str, rate: float, task: Task) -> Machine:
    name = f"{kind}Classifier" if task == "binary" else f"{kind}Regressor"
    sgd = {"weight_optimizer": optim.SGD(rate), "latent_optimizer": optim.SGD(rate)}
    made = getattr(facto, name)(n_factors=_FACTORS, intercept_lr=rate, seed=1, **sgd)
    return Machine(made, task)


Make = Callable[[Task], Rater]


def _each(values: Sequence[Any], make: Callable[..., Rater]) -> dict[str, Make]:
    return {str(value): partial(make, value) for value in values}


LEARNERS: Final[Mapping[str, Mapping[str, Make]]] = {
    "mean": {"": Mean},
    "linear": {"": partial(_built_in, "linear")},
    "linear, 4 replicas": {"": partial(Several, "linear")},
    "ftrl": {"": partial(_built_in, "ftrl")},
    "fm": _each(SEEDS, _fm),
    "fm, 4 replicas": {"": partial(Several, "fm")},
    "fm, a table": {"0": _table},
    "fm, a table, 4 replicas": {"": partial(Several, "fm", table=True)},
    "fm, float16 in pushes": {"0": partial(_table, rounds=True)},
    "fm, float16 in pushes, 4 replicas": {
        "": partial(Several, "fm", table=True, sync=Sync(vectors="float16"))
    },
    "fm, 1,600 rows held, 4 replicas": {"": partial(Several, "fm", table=True, rows=1_600)},
    "fm without pairs": {"": partial(_fm, 0, start=0.0)},
    "fm, user and film only": _each(SEEDS, partial(_fm, genres=False)),
    "fm, k = 4": _each(SEEDS[:1], partial(_fm, k=4)),
    "fm, k = 16": _each(SEEDS[:1], partial(_fm, k=16)),
    "river FM": _each(RATES, partial(_river, "FM")),
    "river HOFM, degree 3": _each(RATES[1:3], partial(_river, "HOFM")),
    "river BiasedMF": _each(RATES, lambda rate, task: Biased(rate)),
}


def run(
    rows: Sequence[Rating],
    names: Sequence[str] = tuple(LEARNERS),
    progress: Callable[[str], None] = lambda text: None,
    learners: Mapping[str, Mapping[str, Make]] = LEARNERS,
) -> list[Line]:
    """Each learner in both tasks, with each of its settings."""
    lines = []
    for name in names:
        for setting, make in learners[name].items():
            progress(f"{name} {setting}")
            stars = np.array([rating.stars for rating in rows])
            liked = (stars >= LIKED).astype(np.float64)
            numbers = _tested(make("regression"), rows, stars)
            shares = np.clip(_tested(make("binary"), rows, liked), _SHARE_MIN, 1 - _SHARE_MIN)
            errors = numbers - stars
            logs = liked * np.log(shares) + (1 - liked) * np.log1p(-shares)
            lines.append(
                Line(
                    name, setting, len(rows), float(np.abs(errors).mean()),
                    math.sqrt(float((errors * errors).mean())), area(shares, liked > 0),
                    -float(logs.mean()),
                )
            )  # fmt: skip
    return lines


def best(lines: Sequence[Line]) -> list[Line]:
    """Return each learner's best setting, score by score: peers have it in hindsight.

    A setting that has left the finite numbers is the worst.
    """
    found = []
    for name in dict.fromkeys(line.learner for line in lines):
        mine = [line for line in lines if line.learner == name]
        found.append(
            Line(
                name, f"best of {len(mine)}", mine[0].rows, _least([line.mae for line in mine]),
                _least([line.rmse for line in mine]), -_least([-line.auc for line in mine]),
                _least([line.log_loss for line in mine]),
            )
        )  # fmt: skip
    return found


def _least(numbers: Sequence[float]) -> float:
    return min(numbers, key=lambda x: math.inf if math.isnan(x) else x)


Floats = npt.NDArray[np.float64]


def _tested(rater: Rater, rows: Sequence[Rating], labels: Floats) -> Floats:
    """Test each row, then learn it."""
    found = np.zeros(len(rows))
    for i, (rating, y) in enumerate(zip(rows, labels.tolist(), strict=True)):
        found[i] = rater.answer(rating)
        rater.learn(rating, y)
    return found


def area(scores: Floats, positive: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve, exactly; equal scores count half."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2.0)[place]
    many, rest = int(positive.sum()), int((~positive).sum())
    return float((rank[positive].sum() - many * (many + 1) / 2.0) / max(many * rest, 1))
