"""Requests on one model: converts decoded bodies into answers, independent of HTTP and Ray."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from online.errors import RequestError, invalid
from online.messages.bodies import UnreadEvent
from online.messages.structs import (
    Event,
    Explanation,
    FeedbackRequest,
    Prediction,
    Predictions,
    PredictRequest,
    Receipt,
    Receipts,
)
from online.messages.structs import Row as AnswerRow
from online.models.base import Prediction as Answer
from online.replica.replica import ModelReplica
from online.rows.prediction_ids import Tokens
from online.rows.schema import Schema
from online.rows.validator import Validator
from online.serving import anomalies
from online.serving.answer_ids import AnswerIds
from online.serving.explained import Explained
from online.serving.feedback.event_batcher import SingleEvents
from online.serving.feedback.events import Events, is_join_id
from online.serving.feedback.ordinary import EventRow
from online.serving.feedback.receipts import ReceiptMaker, refused
from online.settings.limits import Limits
from online.sure.views import confidence_in
from replay.example import Features

_READ_EVENTS = 16  # one by one, in one turn of the loop
_RECEIPTS = 256  # in one turn
_Names = tuple[list[str] | msgspec.UnsetType, list[str] | msgspec.UnsetType]
_UNNAMED: _Names = (msgspec.UNSET, msgspec.UNSET)
_Sure = tuple[list[Any] | msgspec.UnsetType | None, list[float] | msgspec.UnsetType | None]
_Shares = dict[str, float] | msgspec.UnsetType
_Facts = tuple[str, int, float | None, int | None, bool | msgspec.UnsetType, bool]


def _by_field(request: PredictRequest, most: int) -> dict[str, Any]:
    """Return the first rows of a request by their names in it."""
    if request.instances is None:
        return {"features": request.features or {}}
    return {f"instances[{i}]": row for i, row in enumerate(request.instances[:most])}


class Serving:
    """Predict and feedback of one model.

    Attributes:
        single_events: Records the events of requests with one event.
    """

    def __init__(
        self,
        replica: ModelReplica,
        validator: Validator,
        tokens: Tokens,
        limits: Limits,
        spec: str,
        askers: Collection[str] = (),
    ) -> None:
        self.replica = replica
        self.name = replica.settings.name
        self._validator, self._limits, self._now_s = validator, limits, replica.now_s
        self._sure = confidence_in(replica.learner.tally.views)
        self._reader = Events(replica, validator, tokens, limits, spec, replica.now_s, askers)
        self._explained = Explained(replica, validator)
        self._receipts = ReceiptMaker(replica, validator)
        self.single_events = SingleEvents(replica, self._reader, self._receipts)

    @property
    def answer_ids(self) -> AnswerIds:
        """Makes the ids of answers."""
        return self._reader.answer_ids

    @property
    def reader(self) -> Events:
        """Converts events into rows to append."""
        return self._reader

    def keys_of(self, own: str, source: str) -> tuple[bytes, ...]:
        """Keys of predictions with an own id that events of the source may be about."""
        return self._reader.keys_of(own, source)

    @property
    def schema(self) -> Schema | None:
        """The declared features; None: none are declared."""
        return self._validator.schema

    # -- predict -----------------------------------------------------------------------------

    def predict(self, request: PredictRequest) -> Prediction | Predictions:
        """Answer one row or many, all by the same model.  No I/O, and no explanation."""
        facts = self._facts(request)
        if request.features is not None:
            features = self._validator.features(request.features, "features")
            return self._one(request, features, facts, *self._answer(features))
        if request.explain:
            hint = "Ask one row at a time: explain with features"
            raise invalid("explain", "many rows are not explained together", hint)
        rows = self._many(request.instances or [], give_ids=request.ids)
        if request.details:
            for row, sent in zip(rows, request.instances or [], strict=True):
                row.missing, row.unknown = self._named(sent)
        self.replica.counts["predictions"] += len(rows)
        return Predictions(rows, self.name, *facts)

    @property
    def waits(self) -> bool:
        """Whether predictions may wait for rows of the model's table."""
        cache = self.replica.settings.cache
        return cache.rows is not None and cache.wait_ms > 0

    async def answered(self, request: PredictRequest) -> Prediction | Predictions:
        """Answer as :meth:`predict`, after rows that are not held have come or were waited for."""
        if self.waits:
            self._facts(request)  # nobody waits, and no row is requested, for what is refused
            given = _by_field(request, self._limits.rows_max)
            rows = [self._validator.features(row, field) for field, row in given.items()]
            await self.replica.arrivals.for_answer(rows)
        return self.predict(request)

    async def explained(self, request: PredictRequest) -> Prediction | Predictions:
        """Answer one row with each feature's contribution, letting other requests run meanwhile."""
        self._facts(request)
        if request.features is None:
            return self.predict(request)
        features = self._validator.features(request.features, "features")
        self._explained.check(features)
        near = await self._explained.nearest(features, request.nearest)
        if (explained := self._explained.at_once(features)) is not None:
            answer, explanation = explained
            facts, explanation.nearest = self._facts(request), near
            return self._one(request, features, facts, answer, self._shares(answer), explanation)
        async with self._explained.in_turns(features) as (answer, explanation):
            facts, shown, explanation.nearest = self._facts(request), self._shares(answer), near
            return self._one(request, features, facts, answer, shown, explanation)

    def _facts(self, request: PredictRequest) -> _Facts:
        """Return the state of the answering model.  Raises RequestError for invalid requests."""
        replica = self.replica
        self.check_age(request.max_age_ms)
        includes: bool | msgspec.UnsetType = msgspec.UNSET
        if request.after is not None:
            includes = replica.learner.includes(*_seen(request.after))
        age = replica.age_ms
        age = None if age is None else round(age, 1)
        version, own, behind = replica.version, replica.learner.own, replica.updates_behind
        from_peer = replica.exchange.peer is not None
        if (request.features is None) == (request.instances is None):
            raise invalid("features", "one of features and instances is needed", "Send one of them")
        if request.id is not None:
            check_own_id(request.id, one=request.features is not None)
        if request.nearest and not request.explain:
            raise invalid("nearest", "rows are shown beside an explanation", "Send explain, too")
        return version, own, age, behind, includes, from_peer

    def _one(
        self,
        request: PredictRequest,
        features: Features,
        facts: _Facts,
        answer: Answer,
        shown: _Shares,
        explanation: Explanation | msgspec.UnsetType = msgspec.UNSET,
    ) -> Prediction:
        """Return the answer to one row as it is sent, and count it."""
        replica = self.replica
        if replica.judge is not None:
            replica.judge.asked(answer)
        replica.counts["predictions"] += 1
        named = self._named(request.features or {}) if request.details else _UNNAMED
        version, own, age, behind, includes, from_peer = facts
        return Prediction(
            self._reader.answer_ids.prediction_id(features, answer, request.id),
            self._validator.show(answer.label),
            self.name,
            version,
            own,
            age,
            behind,
            shown,
            includes,
            from_peer,
            *named,
            *self._around(answer, features),
            explanation,
            anomalies.score_of(replica, answer),
            _lacking(replica, features),
        )

    def _many(self, instances: list[dict[str, Any]], *, give_ids: bool) -> list[AnswerRow]:
        if not 1 <= len(instances) <= self._limits.rows_max:
            hint = f"Send 1 to {self._limits.rows_max}, or raise limits.rows_max"
            raise invalid("instances", f"{len(instances)} rows", hint)
        features = self._validator.many(instances)
        answers = self.replica.learner.predict_many(features)
        show, shares = self._validator.show, self._validator.shares
        rows = []
        for features_of, answer in zip(features, answers, strict=True):
            row = AnswerRow(show(answer.label))
            if answer.probabilities is None:
                _check_finite(answer.label)
            else:
                _check_finite(sum(answer.probabilities.values()))
                row.score = anomalies.score_of(self.replica, answer)
                if row.score is msgspec.UNSET:
                    row.probabilities = shares(answer.probabilities)
            if give_ids and self.replica.judge is not None:  # a label may arrive
                self.replica.judge.asked(answer)
            row.missing_rows = _lacking(self.replica, features_of)
            if self._sure is not None:
                row.label_set, row.interval = self._around(answer, features_of)
            rows.append(row)
        ids = self._reader.answer_ids.prediction_ids(features, answers) if give_ids else []
        for row, id_ in zip(rows, ids, strict=False):
            row.id = id_
        return rows

    def _around(self, answer: Answer, features: Features) -> _Sure:
        """Return the label set, or the interval, that accompanies the answer."""
        if (sure := self._sure) is None:
            return msgspec.UNSET, msgspec.UNSET
        stamp = sure.stamp(features)
        if isinstance(answer.label, float) and answer.probabilities is None:
            ends = sure.interval(stamp, answer.label)
            return msgspec.UNSET, None if ends is None else list(ends)
        shares = answer.probabilities
        if shares is None and answer.label is not None:
            shares = {answer.label: 1.0}
        labels = sure.labels(stamp, shares)
        show = self._validator.show
        return None if labels is None else [show(label) for label in labels], msgspec.UNSET

    def _named(self, sent: Features) -> _Names:
        """Return the declared names that a row lacks, and the names in it that are unknown.

        Unknown names are undeclared ones or, without a declaration, those nothing was learned of.
        """
        if (schema := self.schema) is None:
            return msgspec.UNSET, self.replica.learner.vocabulary.fresh(sent)
        return schema.missing(sent), schema.unknown(sent)

    def check_age(self, max_age_ms: float | None) -> None:
        """Raise RequestError if the local model is older than the caller allows."""
        if max_age_ms is None:
            return
        age = self.replica.age_ms
        if age is None or age > max_age_ms:
            shown = "never synchronised" if age is None else f"{age:.0f} ms old"
            message = f"the model here is {shown}, asked for {max_age_ms:g} ms"
            hint = "Allow more, or ask another replica"
            raise RequestError(503, "too_old", message, "max_age_ms", hint, 1)

    def _answer(self, features: Features) -> tuple[Answer, _Shares]:
        answer = self.replica.learner.predict(features)
        return answer, self._shares(answer)

    def _shares(self, answer: Answer) -> _Shares:
        """Return the probabilities as sent.  Raises RequestError if they are not finite."""
        if answer.probabilities is None:
            _check_finite(answer.label)
            return msgspec.UNSET
        _check_finite(sum(answer.probabilities.values()))
        if self.replica.settings.purpose.unlabelled:  # an anomaly score is no probability
            return msgspec.UNSET
        return self._validator.shares(answer.probabilities)

    def score(self, value: Any, field: str) -> tuple[str | None, float, str]:
        """Label (None in regression), score and version of one row, as offline scoring has them."""
        answer, shown = self._answer(self._validator.features(value, field))
        replica = self.replica
        version = f"{replica.version}+{replica.learner.own}"
        if replica.settings.task == "regression" or answer.label is None:
            number = answer.label if isinstance(answer.label, float) else math.nan
            _check_finite(number)
            return None, number, version
        text = self._validator.text(answer.label)
        if isinstance(shown, msgspec.UnsetType):
            score = anomalies.score_of(replica, answer)
            certain = float(answer.label is not False)
            return text, certain if isinstance(score, msgspec.UnsetType) else score, version
        wanted = True if replica.settings.task == "binary" else answer.label
        return text, (answer.probabilities or {}).get(wanted, 0.0), version

    # -- feedback ----------------------------------------------------------------------------

    async def feedback(self, request: FeedbackRequest) -> tuple[int, Receipt | Receipts]:
        """Record one event or many; return the HTTP status and the receipt or receipts."""
        if request.events is not None:
            return 200, await self._events(request)
        return await self.single_events.feedback(request)

    async def _events(self, request: FeedbackRequest) -> Receipts:
        events = request.events or []
        if request != FeedbackRequest(events=events):
            raise invalid("events", "one event and many in one body", "Put all of them into events")
        if not 1 <= len(events) <= self._limits.rows_max:
            hint = f"Send 1 to {self._limits.rows_max}, or raise limits.rows_max"
            raise invalid("events", f"{len(events)} events", hint)
        return Receipts(await self.record(events), self.name)

    async def record(self, events: Sequence[Event]) -> list[Receipt]:
        """Record 1 to ``limits.rows_max`` events in one commit; return a receipt for each."""
        receipts: list[Receipt | None] = [None] * len(events)
        rows: list[tuple[int, EventRow]] = []
        size = self._reader.ordinary.together
        for start in range(0, len(events), size):
            if len(events) > size:  # decoding this many took as long as reading one slice
                await asyncio.sleep(0)  # lets predictions run
            some = events[start : start + size]
            for i, ordinary in enumerate(self._reader.ordinary.read(some), start):
                asked = ordinary if ordinary is not None else await self._read(events[i], i)
                if isinstance(asked, RequestError):
                    receipts[i] = refused(asked)
                elif isinstance(asked, Receipt):
                    receipts[i] = asked
                else:
                    rows.append((i, asked))
        if rows:
            recorded = await self.replica.writer.record(
                [asked.row for _, asked in rows], [asked.example for _, asked in rows]
            )
            for n, ((i, asked), result) in enumerate(zip(rows, recorded, strict=True), 1):
                if n % _RECEIPTS == 0:
                    await asyncio.sleep(0)
                receipts[i] = self._receipts.among(i, asked, result)
            for i, asked, late in await anomalies.late(self.replica, receipts, rows, recorded):
                receipts[i] = self._receipts.among(i, asked, late)
        out = [receipt for receipt in receipts if receipt is not None]
        for status, n in Counter([receipt.status for receipt in out]).items():
            self.replica.counts[f"feedback_{status}"] += n
        return out

    async def _read(self, event: Event, i: int) -> EventRow | Receipt | RequestError:
        """Read the ``i``-th event of a body by itself."""
        if isinstance(event, UnreadEvent):
            return event.error
        if i % _READ_EVENTS == 0:
            await asyncio.sleep(0)  # lets predictions run
        try:
            return await self._reader.read(event, f"events[{i}].")
        except RequestError as error:
            return error


def _check_finite(value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise RequestError(503, "not_finite", "the model's answer is not finite")


def check_own_id(text: str, *, one: bool) -> None:
    """Raise RequestError if this is no valid own id, or there is not ``one`` row for it."""
    if not one:
        hint = "Send one prediction with its own id, or `ids: true` for tokens"
        raise invalid("id", f"an own id {text[:80]!r} for many rows", hint)
    if not is_join_id(text):
        hint = "Send 1 to 64 letters, digits, dots, colons, hyphens and underscores, or no id"
        raise invalid("id", f"not an id: {text[:80]!r}", hint)


def _seen(text: str) -> tuple[int, int]:
    try:
        partition, offset = text.split(":")
        return int(partition), int(offset)
    except ValueError:
        raise invalid(
            "after", f"not a `seen`: {text[:80]!r}", "Send it as feedback gave it"
        ) from None


def _lacking(replica: ModelReplica, features: Features) -> int | msgspec.UnsetType:
    """Return how many rows of the model's table the answer lacks, if not all are held."""
    if (cache := replica.learner.cache) is None:
        return msgspec.UNSET
    return len(cache.use(cache.ids_of(features))) or msgspec.UNSET
