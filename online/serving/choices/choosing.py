"""Choices of one model: makes an answer from the body of a request.

A reward is an ordinary event: the features of its row are the context and the chosen action, its
label is the reward, and all rules of feedback apply.  This module covers what comes before.

An action is chosen once: its id carries the choice, the alternatives and their probabilities.
Under a caller's own id, or if the id would be too long, the choice is written before it is
answered; a repeated request with that id gets the stored choice.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import msgspec
import numpy as np

from online.decide import Decision, Policy, draw, row, uniform
from online.decide.record import Choice, pack
from online.decide.scoring import score_many
from online.errors import RequestError, damaged, not_answered
from online.messages.choices import Action, ChooseRequest, Chosen, Ranked
from online.models.base import Prediction as Answer
from online.models.choices.interactions import Alike
from online.models.choices.scores import Scores
from online.models.errors import NotAnswered
from online.replica.pending import Recorded
from online.rows.validator import Validator
from online.serving.apprentice import CALLER, answering
from online.serving.choices.batcher import Batcher
from online.serving.choices.default_rewards import DefaultRewards
from online.serving.choices.reading import RESERVED, ChoiceReader, Offered
from online.serving.choices.rewarding import RewardHandler
from online.serving.choices.stored import choice_of
from online.serving.defaults import Defaults
from online.serving.serving import Serving, check_own_id
from online.settings.choose import Choose
from online.settings.limits import Limits
from replay import codec
from replay.errors import PayloadFormat, PayloadInvalid
from replay.example import Example, Features, PredictionHalf, Value
from replay.journal.base import NewRow

_TOGETHER_MAX: Final = 512
"""Largest number of values in a choice that is batched with others; larger ones run alone."""

_Version = tuple[int, int, int]


class Asked(NamedTuple):
    """A checked request, the nonce of its draw, its actions as an array, and the caller's id.

    ``apprentice``: the caller's own choice is answered.
    """

    choice: Choice
    nonce: bytes
    table: Alike | None
    own: str | None
    apprentice: bool


class _Unwritten(NamedTuple):
    """A choice that is not written yet, and the model version it is from.

    ``behind``: it is written behind its answer, otherwise before.
    """

    own: str
    choice: Choice
    half: NewRow
    version: _Version
    behind: bool = False


class Choosing:
    """Handles choices of one model.

    Parameters:
        serving: Takes the rewards, as labels.
        settings: How the model chooses.

    Attributes:
        rewards: Handles the rewards of the choices.
        defaults: Gives default rewards to choices that get no other.
    """

    def __init__(
        self, serving: Serving, validator: Validator, limits: Limits, settings: Choose
    ) -> None:
        self.serving = serving
        self._replica, self._answer_ids = serving.replica, serving.answer_ids
        self._settings = settings
        replica = serving.replica
        rule = DefaultRewards(settings)
        self.defaults = Defaults(replica, rule, time.time, time.monotonic)
        self.rewards = RewardHandler(serving, validator, limits, settings)
        self._reader = ChoiceReader(validator, limits)
        self._policy = Policy(**settings.policy_parts())
        self._batcher = Batcher(self._decide, self._made)
        about = msgspec.json.encode(settings.policy_parts(), order="sorted")
        self._called = f"{settings.policy}:{hashlib.sha256(about).hexdigest()[:8]}"

    @property
    def watches(self) -> bool:
        """Whether it learns, or has learned, from the caller's own choices."""
        return self._settings.apprentice

    @property
    def plain(self) -> bool:
        """Whether it answers by itself and learns a reward of 0 or 1 at once."""
        asked, (low, high) = self._settings, self._settings.reward_range
        alone = asked.aggregate == "earliest" and not (asked.rewards or self.apprentice)
        return alone and low <= 0.0 and high >= 1.0

    @property
    def apprentice(self) -> bool:
        """Whether answers contain the caller's own choice."""
        return answering(self._replica) == CALLER

    # -- choosing ----------------------------------------------------------------------------

    def offered(self, actions: Sequence[Action]) -> Offered:
        """Check the actions of a request.  Raises RequestError."""
        return self._reader.offered(actions)

    def asked(self, request: ChooseRequest, offered: Offered) -> Asked:
        """Check all other fields of a request.  Raises RequestError."""
        self.serving.check_age(request.max_age_ms)
        if request.id is not None:
            check_own_id(request.id, one=True)
        apprentice, nonce = self.apprentice, self._answer_ids.tokens.nonce()
        choice = self._reader.choice(request, offered, self._called, apprentice=apprentice)
        return Asked(choice, nonce, offered.table, request.id, apprentice)

    async def choose(self, request: ChooseRequest) -> Chosen:
        """Choose one of the actions; with a caller's own id the choice is written first."""
        return await self.answer(self.asked(request, self.offered(request.actions)))

    async def answer(self, one: Asked, behind: list[NewRow] | None = None) -> Chosen:
        """Answer a checked request.  Raises RequestError.

        If ``behind`` is given, a half to be written behind the answer is added to it, for
        :meth:`keep`.
        """
        actions, context = one.choice.actions, one.choice.context
        small = len(actions) * (len(context) + len(actions[0][1])) <= _TOGETHER_MAX
        made = await self._batcher.ask(one) if small else self._made(one, *self._decide([one]))
        if isinstance(made, Chosen):
            return made
        if not made.behind:
            return await self._written(made)
        if behind is None:
            self.keep([made.half])
        else:
            behind.append(made.half)
        return self._answer(made.own, made.choice, made.version)

    def keep(self, halves: Sequence[NewRow]) -> None:
        """Queue halves that are written behind their answers: all or none.  Raises RequestError."""
        self._answer_ids.keep(halves, "choice that may need a default reward")

    def _made(self, one: Asked, decided: tuple[Scores, Decision]) -> Chosen | _Unwritten:
        """Make the answer, or the choice that has to be written before or behind it."""
        choice, answer = self._chosen(one, *decided)
        features = row(choice.context, *choice.actions[choice.chosen])
        packed = pack(choice, columns_of(one.table))
        if one.own is None and not choice.deferred:
            token = self._answer_ids.token(features, answer, choice=packed, nonce=one.nonce)
            if token is not None:
                version = self._answer_ids.version()
                if not self._settings.waits:
                    return self._answer(token, choice, version)
                half = self._half(one.nonce.hex(), features, answer, packed)
                behind = self._settings.record != "before"
                return _Unwritten(token, choice, half, version, behind)
        own = f"choice-{uuid.uuid4().hex}" if one.own is None else one.own
        half = self._answer_ids.half(own, features, answer, choice=packed)
        return _Unwritten(own, choice, half, self._answer_ids.version())

    def _half(self, named: str, features: Features, answer: Answer, packed: bytes) -> NewRow:
        """Make the half of a choice with a token, under the key of its reward."""
        key = self._replica.store.keys.token(named)
        return self._answer_ids.half(named, features, answer, choice=packed, key=key)

    async def _written(self, made: _Unwritten) -> Chosen:
        """Write the choice under its id and answer with it, or with the one already stored."""
        own, choice, half, version, _ = made
        recorded = (await self._replica.writer.record([half]))[0]
        self._replica.counts["choices_written"] += 1
        if (stored := self._stored(recorded)) is None:
            return self._answer(own, choice, version)
        standing, version = stored
        if not standing.asks_as(choice):
            raise _another(own)
        repeated = recorded.met is not None or recorded.repeat
        self._replica.counts["choices_repeated"] += repeated
        return self._answer(own, standing, version, repeated=repeated)

    def _decide(self, several: Sequence[Asked]) -> list[tuple[Scores, Decision]]:
        """Return the estimates of each choice's actions, and the probability of each action.

        RequestError 422: a model of the user's raises.
        """
        questions, allowed = [], list[Sequence[bool] | None]()
        for asked, _, table, *_ in several:
            if table is not None and not self._inside(table):
                table = None
            questions.append((*self._bounded(asked, table), table))
            excluded = asked.excluded
            allowed.append(
                [i not in excluded for i in range(len(asked.actions))] if excluded else None
            )
        model = self._replica.learner.serving
        try:
            scores = score_many(model, questions, *self._settings.reward_range)
        except NotAnswered as error:  # of several choices each is then scored by itself
            raise not_answered(str(error), "actions") from None
        return list(zip(scores, self._policy.decide_many(scores, allowed), strict=True))

    def _chosen(self, one: Asked, scores: Scores, decision: Decision) -> tuple[Choice, Answer]:
        """Draw one of the actions; return the choice, and the model's answer about it."""
        asked = one.choice
        u = uniform(self._answer_ids.tokens.drawing_key, one.nonce, 0)
        chosen = draw(decision.probabilities, u)
        estimates = tuple(scores.means.tolist())
        drawn = None
        if one.apprentice:  # the caller's action is certain, whatever is drawn
            assert asked.baseline is not None
            drawn, chosen = chosen, asked.baseline
            alone = np.zeros(len(asked.actions))
            alone[chosen] = 1.0
            decision = replace(decision, probabilities=alone)
        probabilities = tuple(decision.probabilities.tolist())
        choice = msgspec.structs.replace(
            asked, chosen=chosen, probabilities=probabilities, estimates=estimates, drawn=drawn
        )
        return choice, Answer(estimates[chosen], None, decision.notes(scores, chosen))

    def _inside(self, table: Alike) -> bool:
        """Whether no value of the actions needs clipping."""
        ends = self._replica.learner.bounds.ends([RESERVED + name for name in table.names])
        for name, least, most in zip(table.names, table.least, table.most, strict=True):
            known = ends.get(RESERVED + name)
            if known is not None and (least < known[0] or most > known[1]):
                return False
        return True

    def _bounded(
        self, asked: Choice, inside: Alike | None
    ) -> tuple[Features, tuple[tuple[str, Features], ...]]:
        """The context and actions as the model gets them, with outlying values clipped."""
        bounds = self._replica.learner.bounds
        context = bounds.answered(asked.context)
        if inside is not None or all(
            bounds.answered(ends) is ends for ends in _ends(asked.actions)
        ):
            return context, asked.actions
        actions = []
        for action, features in asked.actions:
            sent = {RESERVED + name: value for name, value in features.items()}
            taken = bounds.answered(sent)
            if taken is not sent:
                features = {name[1:]: value for name, value in taken.items()}
            actions.append((action, features))
        return context, tuple(actions)

    def _stored(self, recorded: Recorded) -> tuple[Choice, _Version] | None:
        """Return the choice stored under the id and its model version; None: none was stored.

        Raises RequestError if it is damaged or not a choice, or there is no room.
        """
        if recorded.status == "damaged":
            raise damaged(recorded.reason or "", "id")
        stored: PredictionHalf | Example | None = None
        try:
            if recorded.met is not None:
                stored = codec.decode_prediction(recorded.met.payload)
            elif recorded.row is not None:
                stored = codec.decode(recorded.row.payload)
        except (PayloadFormat, PayloadInvalid) as error:
            raise damaged(str(error), "id") from None
        if stored is not None:
            return choice_of(stored.choice, _in_use()), stored.version or (0, 0, 0)
        if recorded.since is None:
            self._replica.counts["joins_refused"] += 1
            hint = "Send it again after Retry-After, or without an id; nothing was recorded"
            message = "no room for another choice that waits for its reward"
            raise RequestError(429, "joins_full", message, "id", hint, 1)
        return None

    def _answer(
        self, id: str, choice: Choice, version: _Version, *, repeated: bool = False
    ) -> Chosen:
        replica, age = self._replica, self._replica.age_ms
        replica.counts["choices"] += 1
        ranking = [
            Ranked(choice.actions[i][0], choice.probabilities[i], choice.estimates[i])
            for i in choice.ranking()
        ]
        agreed: bool | msgspec.UnsetType = msgspec.UNSET
        if choice.drawn is not None:
            agreed = choice.drawn == choice.chosen
            replica.counts["choices_agreed"] += agreed
        epoch, count, own = version
        return Chosen(
            id, choice.action, choice.propensity, ranking, self.serving.name, f"{epoch}.{count}",
            own, None if age is None else round(age, 1), replica.updates_behind,
            replica.exchange.peer is not None, repeated, agreed,
        )  # fmt: skip


def columns_of(table: Alike | None) -> tuple[tuple[str, ...], bytes] | None:
    """The features of actions as a choice record stores them; None: they need individual checks."""
    if table is None or table.whole:
        return None
    return table.names, table.numbers.astype("<f8", copy=False).tobytes()


def _ends(actions: tuple[tuple[str, Features], ...]) -> tuple[Features, Features]:
    """The smallest and the largest value of each action feature, under the names used in rows."""
    least: dict[str, Value] = {}
    most: dict[str, Value] = {}
    for _, features in actions:
        for name, value in features.items():
            if type(value) is not float and type(value) is not int:
                continue
            if name not in most:
                least[name] = most[name] = value
            elif value > most[name]:  # type: ignore[operator]
                most[name] = value
            elif value < least[name]:  # type: ignore[operator]
                least[name] = value
    return (
        {RESERVED + name: value for name, value in least.items()},
        {RESERVED + name: value for name, value in most.items()},
    )


def _another(own: str) -> RequestError:
    message = f"under the id {own!r} another question was asked"
    hint = "Send the body of the first time, or another id"
    return RequestError(409, "id_in_use", message, "id", hint)


def _in_use() -> RequestError:
    hint = "Send another id, or none"
    return RequestError(409, "id_in_use", "a prediction has this id", "id", hint)
