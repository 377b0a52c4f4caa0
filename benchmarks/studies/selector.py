"""One learner out of several: each row is answered by those that did well of late.

Every learner answers and learns every row, so the selector costs as much as they do together, and
some microseconds.  When a label comes, the learners are judged by what each of them answered when
the row was asked; their losses fade, and the answer is their mixture (Littlestone and Warmuth
1994, *The weighted majority algorithm*; Herbster and Warmuth 1998, *Tracking the best expert*)::

    S_k ← (1 − 1/W) · S_k + loss of k,    v_k ∝ exp(−333/W · S_k),    answer = Σ v_k · answer of k

W = 333 labels, and ten more for each label that comes between a question and its own: errors that
are old when they decide say more about the learners if they are many.

The loss is 1 if a classifier was wrong.  Its probabilities are left out: a forest that is right
and modest would count less than a tree that is wrong and sure.  In regression it is the error in
units of the median error of all, at most 4, divided by 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from evaluation.learner import Answer, by_shares, by_value, verbs
from evaluation.metrics import Task
from replay.example import Features, Label

LEARNERS_MAX: Final = 64
WINDOW: Final = 1000.0 / 3.0
"""Labels over which losses fade, if they come at once."""
PER_LATE: Final = 10.0
"""Further ones for each label that comes between a question and its own."""
_LATE_FADE: Final = 0.99  # of how many these are
ERROR_MAX: Final = 4.0

Shares = Mapping[Label, float]


@dataclass(frozen=True, slots=True)
class Notes:
    """Notes hold what each learner noted and answered, and how many labels were known by then."""

    inner: list[object]
    answers: list[Any]
    labels: int


class Selector:
    """Several learners that answer as one; a learner itself, see :mod:`evaluation.learner`.

    Parameters:
        learners: By name, 1 to :data:`LEARNERS_MAX` of them.

    Attributes:
        losses: S_k, by learner.
    """

    def __init__(self, learners: Mapping[str, Any], task: Task) -> None:
        if not 1 <= len(learners) <= LEARNERS_MAX:
            raise ValueError(f"a selector has 1 to {LEARNERS_MAX} learners, got {len(learners)}")
        self.task = task
        self.names = tuple(learners)
        self._verbs = [verbs(learner, task) for learner in learners.values()]
        self.losses = [0.0] * len(learners)
        self._labels = 0
        self._late = 0.0  # labels between a question and its own, of late

    def votes(self) -> dict[str, float]:
        """Each learner's share in the next answer."""
        return dict(zip(self.names, self._votes(), strict=True))

    def _votes(self) -> list[float]:
        rate = WINDOW / self._window
        return _votes([rate * loss for loss in self.losses])

    @property
    def _window(self) -> float:
        return WINDOW + PER_LATE * self._late

    def predict_one(self, x: Features) -> Label | None:
        """Label or number; None if no learner knows any."""
        return self.answer_noted(x)[0].label

    def predict_proba_one(self, x: Features) -> Shares:
        """Probabilities of the labels."""
        return self.answer_noted(x)[0].probabilities or {}

    def learn_one(self, x: Features, y: Label) -> None:
        """Learn a row; the learners are judged by what they answer now."""
        self.learn_noted(x, y, self.answer_noted(x)[1])

    def answer_noted(self, x: Features) -> tuple[Answer, Notes]:
        """The mixture's answer, and what the learners answered."""
        inner: list[object] = []
        answers: list[Any] = []
        for ask, _ in self._verbs:
            answer, told = ask(x)
            inner.append(told)
            answers.append(self._told(answer))
        notes = Notes(inner, answers, self._labels)
        if self.task == "regression":
            return by_value(self.task, _mean(answers, self._votes())), notes
        return by_shares(self.task, _mixed(answers, self._votes())), notes

    def learn_noted(self, x: Features, y: Label, notes: Notes) -> None:
        """Judge the learners by what they answered; then all learn the row."""
        now = (_errors if self.task == "regression" else _wrong)(notes.answers, y)
        self._late += (1.0 - _LATE_FADE) * (self._labels - notes.labels - self._late)
        self._labels += 1
        fade = 1.0 - 1.0 / self._window
        self.losses = [fade * s + loss for s, loss in zip(self.losses, now, strict=True)]
        for (_, learn), told in zip(self._verbs, notes.inner, strict=True):
            learn(x, y, told)

    def _told(self, answer: Answer) -> Any:
        """Shares of labels, empty of none; a number or None in regression."""
        if self.task == "regression":
            return answer.label
        if answer.probabilities is not None:
            return answer.probabilities
        return {} if answer.label is None else {answer.label: 1.0}


def _votes(losses: Sequence[float]) -> list[float]:
    """Each one's share in the answer."""
    least = min(losses)
    votes = [math.exp(least - loss) for loss in losses]
    total = sum(votes)
    return [vote / total for vote in votes]


def _mixed(answers: Sequence[Shares], votes: Sequence[float]) -> Shares:
    """Shares of labels; who knows none has no vote."""
    mixed: dict[Label, float] = {}
    total = 0.0
    for shares, vote in zip(answers, votes, strict=True):
        if shares:
            total += vote
            for label, p in shares.items():
                mixed[label] = mixed.get(label, 0.0) + vote * p
    return {label: p / total for label, p in mixed.items()} if total else {}


def _mean(answers: Sequence[float | None], votes: Sequence[float]) -> float | None:
    known = [(a, v) for a, v in zip(answers, votes, strict=True) if a is not None]
    total = sum([v for _, v in known])
    return sum([a * v for a, v in known]) / total if total else None


def _wrong(answers: Sequence[Shares], y: Label) -> list[float]:
    """1 for another label than ``y``, of which the first of several is meant, and for none."""
    return [float(not shares or max(shares, key=shares.__getitem__) != y) for shares in answers]


def _errors(answers: Sequence[float | None], y: Label) -> list[float]:
    """Errors in units of their median, at most 1; of nothing: 1."""
    target = float(y)
    errors = [math.inf if a is None else abs(a - target) for a in answers]
    typical = sorted(errors)[(len(errors) - 1) // 2]
    if not 0.0 < typical < math.inf:
        return [float(e > typical) for e in errors]
    return [min(e / typical, ERROR_MAX) / ERROR_MAX for e in errors]
