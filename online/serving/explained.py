"""Explanations of answers: what each feature contributed to the prediction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter
from typing import Final

from msgspec import UNSET, UnsetType

from online.errors import RequestError
from online.messages.structs import Explanation, NearRow
from online.models.base import Prediction
from online.replica.replica import ModelReplica
from online.rows.validator import Validator
from online.serving.nearest import Nearest
from online.sure.contributions import Contributions, NotExplained, added_up, explaining
from online.sure.views import calibration_in
from replay.example import Features, Label

_MORE_S: Final = 0.002
"""Further orders of the features are tried while less time than this was used."""

_TURN_S: Final = 0.0005
"""Time that model calls for one explanation may take in one turn of the event loop."""


class Explained:
    """Explains one model's answers.

    Parameters:
        clock_s: Clock that measures the model's calls, in seconds.
    """

    def __init__(
        self,
        replica: ModelReplica,
        validator: Validator,
        clock_s: Callable[[], float] = perf_counter,
    ) -> None:
        self._replica, self._validator, self._clock_s = replica, validator, clock_s
        self._nearest = Nearest(replica, validator)
        self._size = 1  # rows in one turn, adapted to how long they take

    def check(self, features: Features) -> None:
        """Raise RequestError if the row has too many features."""
        most = self._replica.limits.explain_max // 2
        if len(features) > most:
            message = f"a row of {len(features)} features, at most {most} are explained"
            hint = "Send fewer, or raise limits.explain_max to twice as many"
            raise RequestError(422, "too_many_to_explain", message, "features", hint)

    async def nearest(self, features: Features, n: int) -> list[NearRow] | UnsetType:
        """Return the ``n`` nearest learned rows; UNSET for ``n`` = 0.  Raises RequestError."""
        return await self._nearest.to(features, n) if n else UNSET

    def at_once(self, features: Features) -> tuple[Prediction, Explanation] | None:
        """Answer, and explain it from the weights; None: the model has to be sampled instead.

        Raises RequestError if it can't be explained.
        """
        learner = self._replica.learner
        calibration = calibration_in(learner.tally.views)
        if calibration is not None and calibration.on:
            return None  # a calibrated answer differs from the sum that the weights explain
        try:
            explained = added_up(learner.serving, learner.bounds.answered(features))
        except NotExplained as error:
            raise _refused(error) from None
        if explained is None:
            return None
        answer, contributions = explained
        return answer, self._told(contributions, self._label(answer))

    @asynccontextmanager
    async def in_turns(self, features: Features) -> AsyncIterator[tuple[Prediction, Explanation]]:
        """Answer, and explain the answer over many turns; nothing is learned inside the context.

        Raises RequestError if it can't be explained, or not within ``limits.explain_s``.
        """
        limit_s = self._replica.limits.explain_s
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(limit_s):
                    await stack.enter_async_context(self._replica.change_lock.hold())
                    while (explained := await self._found(features)) is None:
                        pass  # the model was changed by an operator or by a sealed partition
            except TimeoutError:
                message = f"it was not explained within {limit_s:g} s"
                hint = "Send fewer features, ask without explain, or raise limits.explain_s"
                raise RequestError(503, "explain_too_slow", message, "explain", hint, 1) from None
            yield explained

    async def _found(self, features: Features) -> tuple[Prediction, Explanation] | None:
        """Return the answer and its explanation; None: the model was changed meanwhile."""
        learner, clock_s = self._replica.learner, self._clock_s
        model, stamp = learner.serving, learner.stamp
        answer = learner.predict(features)
        label, asked, worked_s = self._label(answer), 0, 0.0

        def ask(rows: Sequence[Features]) -> list[Prediction]:
            nonlocal asked
            asked = len(rows)
            return learner.predict_many(rows)

        steps = explaining(
            ask, features, label,
            asks_max=self._replica.limits.explain_max, in_time=lambda: worked_s < _MORE_S,
        )  # fmt: skip
        next(steps)
        while True:
            begun_s = clock_s()
            try:
                steps.send(self._size)
            except StopIteration as done:
                return answer, self._told(done.value, label)
            except NotExplained as error:
                raise _refused(error) from None
            took_s = clock_s() - begun_s
            worked_s += took_s
            fitting = int(asked * _TURN_S / max(took_s, 1e-9))
            self._size = max(min(fitting, 2 * self._size), 1)
            await asyncio.sleep(0)
            if learner.serving is not model or learner.stamp != stamp:
                return None

    def _label(self, answer: Prediction) -> Label | None:
        """Return the label to be explained; None: a number is.  Raises RequestError."""
        if self._replica.settings.task == "regression":
            return None
        if answer.label is None:
            raise _refused(NotExplained("it knows no label yet"))
        return answer.label

    def _told(self, contributions: Contributions, label: Label | None) -> Explanation:
        """Return the explanation as it is sent, the largest contribution first."""
        added = sorted(contributions.added.items(), key=lambda item: -abs(item[1]))
        of = None if label is None else self._validator.show(label)
        return Explanation(
            of, contributions.base, contributions.output, dict(added), contributions.exact
        )


def _refused(error: NotExplained) -> RequestError:
    hint = "Ask without explain, or serve a model that answers rows with features left out"
    return RequestError(422, "not_explainable", str(error), "explain", hint)
