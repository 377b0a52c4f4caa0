"""One learner out of several: each row is answered by those that did well of late.

Every learner answers and learns every row; the selector costs as much as they do together, and a
few microseconds.  An answer is judged when its label comes, by what each learner answered when it
was asked: its loss is (2 · [it was wrong] + its Brier score) / 3, or in regression its error in
units of the median error of all, at most 4, divided by 4.  Losses fade (Littlestone and Warmuth
1994, *The weighted majority algorithm*; Herbster and Warmuth 1998, *Tracking the best expert*)::

    S_k ← f · S_k + loss of k,    v_k ∝ exp(−S_k),    mixture = Σ v_k · answer of k

How fast is for the stream to say: a mixture is kept for each fade of :data:`FADES`, and these are
mixed by the same rule, judged by their own answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from evaluation.learner import Answer, by_shares, by_value, verbs
from evaluation.metrics import Task
from replay.example import Features, Label

LEARNERS_MAX: Final = 64
FADES: Final = (0.98, 0.995, 0.9995)
"""Of the learners' losses at each label: windows of 50, 200 and 2,000 labels."""
OUTER_FADE: Final = 0.999
ERROR_MAX: Final = 4.0

Shares = Mapping[Label, float]


@dataclass(frozen=True, slots=True)
class Notes:
    """What each learner answered and noted, and what each mixture made of it."""

    inner: list[object]
    answers: list[Any]
    mixtures: list[Any]


class Selector:
    """Several learners that answer as one; a learner itself, see :mod:`evaluation.learner`.

    Parameters
    ----------
    learners
        By name, 1 to :data:`LEARNERS_MAX` of them.

    Attributes
    ----------
    losses
        By fade, the faded losses of the learners.
    """

    def __init__(self, learners: Mapping[str, Any], task: Task) -> None:
        if not 1 <= len(learners) <= LEARNERS_MAX:
            raise ValueError(f"a selector has 1 to {LEARNERS_MAX} learners, got {len(learners)}")
        self.task = task
        self.names = tuple(learners)
        self._verbs = [verbs(learner, task) for learner in learners.values()]
        self.losses = [[0.0] * len(learners) for _ in FADES]
        self._outer = [0.0] * len(FADES)

    def votes(self) -> dict[str, float]:
        """Each learner's share in the next answer."""
        return dict(zip(self.names, self._votes(), strict=True))

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
        inner, answers = [], []
        for ask, _ in self._verbs:
            answer, notes = ask(x)
            inner.append(notes)
            answers.append(self._told(answer))
        mix: Callable[[Any, Sequence[float]], Any]
        mix = _mean if self.task == "regression" else _mixed
        mixtures = [mix(answers, _votes(losses)) for losses in self.losses]
        mixed = mix(mixtures, _votes(self._outer))
        found: Callable[[Task, Any], Answer]
        found = by_value if self.task == "regression" else by_shares
        return found(self.task, mixed), Notes(inner, answers, mixtures)

    def learn_noted(self, x: Features, y: Label, notes: Notes) -> None:
        """Judge the learners and the mixtures by what they answered; then all learn the row."""
        judge: Callable[[Any, Label], list[float]]
        judge = _errors if self.task == "regression" else _losses
        now, outer = judge(notes.answers, y), judge(notes.mixtures, y)
        self.losses = [
            [fade * s + loss for s, loss in zip(held, now, strict=True)]
            for fade, held in zip(FADES, self.losses, strict=True)
        ]
        self._outer = [OUTER_FADE * s + loss for s, loss in zip(self._outer, outer, strict=True)]
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


def _losses(answers: Sequence[Shares], y: Label) -> list[float]:
    """Of nothing: 1."""
    out = []
    for shares in answers:
        own = shares.get(y, 0.0)
        values = shares.values()
        wrong = own < max(values, default=1.0)
        brier = sum([p * p for p in values]) + 1.0 - 2.0 * own
        out.append((2.0 * wrong + brier) / 3.0)
    return out


def _errors(answers: Sequence[float | None], y: Label) -> list[float]:
    """Errors in units of their median, at most 1; of nothing: 1."""
    target = float(y)
    errors = [math.inf if a is None else abs(a - target) for a in answers]
    typical = sorted(errors)[(len(errors) - 1) // 2]
    if not 0.0 < typical < math.inf:
        return [float(e > typical) for e in errors]
    return [min(e / typical, ERROR_MAX) / ERROR_MAX for e in errors]
