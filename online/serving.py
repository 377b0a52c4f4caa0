"""Requests on one model: bodies in, answers out.  Knows neither HTTP nor Ray."""

from __future__ import annotations

import json
import math
import uuid
from typing import Any

import msgspec

from online.config import Limits
from online.errors import RequestError, invalid
from online.features import Door
from online.messages import (
    Event,
    FeedbackRequest,
    Prediction,
    Predictions,
    PredictRequest,
    Receipt,
    Receipts,
)
from online.messages import Row as AnswerRow
from online.models.base import Prediction as Answer
from online.replica import ModelReplica
from online.tokens import Predicted, TokenInvalid, Tokens, event_key
from online.writer import Recorded
from replay import codec
from replay.example import Example, Features
from replay.journal.base import NewRow, Row, Verdict

_HTTP = {"learned": 200, "failed": 422, "duplicate": 200, "conflict": 409, "expired": 410}
_FUTURE_S = 60.0  # a token may be this much ahead of our clock (issued on another node)

_SCORE_MAX = 1e100


class Serving:
    """Predict and feedback of one model."""

    def __init__(
        self, replica: ModelReplica, door: Door, tokens: Tokens, limits: Limits, spec: str
    ) -> None:
        self.replica = replica
        self.name = replica.settings.name
        self._door, self._tokens, self._limits, self._spec = door, tokens, limits, spec
        self._lifetime_s = replica.settings.token_lifetime
        self._now_s = replica.now_s

    # -- predict -----------------------------------------------------------------------------

    def predict(self, request: PredictRequest) -> Prediction | Predictions:
        """Answer one row or many, all by the same model.  No I/O."""
        replica = self.replica
        self._check_age(request.max_age_ms)
        includes: bool | msgspec.UnsetType = msgspec.UNSET
        if request.after is not None:
            includes = replica.learner.includes(*_seen(request.after))
        age = replica.age_ms
        age = None if age is None else round(age, 1)
        version, own, behind = replica.version, replica.learner.own, replica.updates_behind
        if (request.features is None) == (request.instances is None):
            raise invalid("features", "one of features and instances is needed", "Send one of them")
        if request.features is not None:
            features = self._door.features(request.features, "features")
            answer, shown = self._answer(features)
            token = self._token(features, answer)
            replica.counts["predictions"] += 1
            return Prediction(
                token,
                self._door.show(answer.label),
                self.name,
                version,
                own,
                age,
                behind,
                shown,
                includes,
            )
        rows = self._many(request.instances or [], give_ids=request.ids)
        replica.counts["predictions"] += len(rows)
        return Predictions(rows, self.name, version, own, age, behind, includes)

    def _many(self, instances: list[dict[str, Any]], *, give_ids: bool) -> list[AnswerRow]:
        if not 1 <= len(instances) <= self._limits.rows_max:
            hint = f"Send 1 to {self._limits.rows_max}, or raise limits.rows_max"
            raise invalid("instances", f"{len(instances)} rows", hint)
        checked = [self._door.features(x, f"instances[{i}]") for i, x in enumerate(instances)]
        rows = []
        for features in checked:
            answer, shown = self._answer(features)
            token = self._token(features, answer) if give_ids else None
            row = AnswerRow(self._door.show(answer.label), shown)
            if token is not None:
                row.id = token
            rows.append(row)
        return rows

    def _check_age(self, max_age_ms: float | None) -> None:
        if max_age_ms is None:
            return
        age = self.replica.age_ms
        if age is None or age > max_age_ms:
            shown = "never synchronised" if age is None else f"{age:.0f} ms old"
            message = f"the model here is {shown}, asked for {max_age_ms:g} ms"
            hint = "Allow more, or ask another replica"
            raise RequestError(503, "too_old", message, "max_age_ms", hint, 1)

    def _answer(self, features: Features) -> tuple[Answer, dict[str, float] | msgspec.UnsetType]:
        answer = self.replica.learner.predict(features)
        if answer.probabilities is None:
            if isinstance(answer.label, float) and not math.isfinite(answer.label):
                raise RequestError(503, "not_finite", "the model's answer is not finite")
            return answer, msgspec.UNSET
        if not math.isfinite(sum(answer.probabilities.values())):
            raise RequestError(503, "not_finite", "the model's answer is not finite")
        return answer, {self._door.text(k): p for k, p in answer.probabilities.items()}

    def _score(self, answer: Answer) -> dict[str, float] | None:
        """The answer as it is counted; None if its square is no number: it then counts as none."""
        score = self.replica.learner.score(answer)
        if score and not all(abs(value) <= _SCORE_MAX for value in score.values()):  # NaN too
            return None
        return score

    def _token(self, features: Features, answer: Answer) -> str | None:
        learner = self.replica.learner
        token = self._tokens.issue(
            Predicted(
                format=1,
                features=features,
                score=self._score(answer),
                version=(*learner.version, learner.own),
                at=self._now_s(),
                no_change=self.replica.newest_label,
                spec=self._spec[:16],
            )
        )
        if len(token) > self._limits.token_bytes_max:
            self.replica.counts["tokens_too_long"] += 1
            return None
        return token

    # -- feedback ----------------------------------------------------------------------------

    async def feedback(self, request: FeedbackRequest) -> tuple[int, Receipt | Receipts]:
        """HTTP status and what became of the event or events."""
        if request.events is None:
            row, idempotent = await self._row(request, "")
            if isinstance(row, Receipt):
                self.replica.counts[f"feedback_{row.status}"] += 1
                return _HTTP[row.status], row
            recorded = (await self.replica.writer.record([row]))[0]
            receipt = self._receipt(row, recorded, idempotent=idempotent)
            self.replica.counts[f"feedback_{receipt.status}"] += 1
            # A repeat gets the status of its first sending: a failed event stays failed.
            decided = recorded.status if receipt.status == "duplicate" else receipt.status
            return _HTTP[decided], receipt
        return 200, await self._events(request)

    async def _events(self, request: FeedbackRequest) -> Receipts:
        events = request.events or []
        if request != FeedbackRequest(events=events):
            raise invalid("events", "one event and many in one body", "Put all of them into events")
        if not 1 <= len(events) <= self._limits.rows_max:
            hint = f"Send 1 to {self._limits.rows_max}, or raise limits.rows_max"
            raise invalid("events", f"{len(events)} events", hint)
        receipts: list[Receipt | None] = []
        rows: list[tuple[int, NewRow, bool]] = []
        for i, event in enumerate(events):
            try:
                row, idempotent = await self._row(event, f"events[{i}].")
            except RequestError as error:
                body = {"code": error.code, "message": error.message, "field": error.field}
                receipts.append(Receipt("refused", error={**body, "hint": error.hint}))
                continue
            if isinstance(row, Receipt):
                receipts.append(row)
            else:
                receipts.append(None)
                rows.append((i, row, idempotent))
        if rows:
            recorded = await self.replica.writer.record([row for _, row, _ in rows])
            for (i, row, idempotent), result in zip(rows, recorded, strict=True):
                receipts[i] = self._receipt(row, result, idempotent=idempotent)
        out = [receipt for receipt in receipts if receipt is not None]
        for receipt in out:
            self.replica.counts[f"feedback_{receipt.status}"] += 1
        return Receipts(out, self.name)

    async def _row(self, event: Event, field: str) -> tuple[NewRow | Receipt, bool]:
        """The row to append, or the answer if that is known already; and whether it has an id."""
        if event.label is msgspec.UNSET:
            raise invalid(f"{field}label", "no label", "Send the true label")
        label = self._door.label(event.label, f"{field}label")
        weight = self._door.weight(event.weight, f"{field}weight")
        now = self._now_s()
        if event.id is not None:
            return await self._token_row(event, label, weight, field, now), True
        if event.features is None:
            hint = "Send the id of a prediction, or features"
            raise invalid(f"{field}id", "neither id nor features", hint)
        features = self._door.features(event.features, f"{field}features")
        answer = self.replica.learner.predict(features)
        learner = self.replica.learner
        example = Example(
            features,
            label,
            weight,
            self._score(answer),
            (*learner.version, learner.own),
            now,
            event.event_time,
            self.replica.newest_label,
        )
        event_id = event.event_id if event.event_id is not None else uuid.uuid4().hex
        key = event_key("event", event.source, event_id)
        row = self._new_row(key, event_id, event.source, example, now)
        return row, event.event_id is not None

    async def _token_row(
        self, event: Event, label: Any, weight: float, field: str, now: float
    ) -> NewRow | Receipt:
        if event.features is not None or event.event_id is not None:
            hint = "The id carries both; send it with the label only"
            raise invalid(f"{field}id", "an id together with features or event_id", hint)
        try:
            event_id, predicted = self._tokens.read(event.id or "")
        except TokenInvalid as error:
            hint = "Send the id exactly as the prediction gave it, to the same model"
            raise RequestError(404, "unknown_id", f"id: {error}", f"{field}id", hint) from None
        key = event_key("token", event_id)
        if predicted.at > now + _FUTURE_S:
            hint = "Set the clocks of the nodes"
            raise invalid(f"{field}id", "given out in the future of this node's clock", hint)
        if now - predicted.at > self._lifetime_s:
            standing = await self.replica.writer.find(key)
            if standing is None:
                age = (now - predicted.at) / 3600
                reason = (
                    f"the prediction is {age:.1f} h old, its id lived {self._lifetime_s / 3600:g} h"
                )
                return Receipt("expired", event_id, reason=reason)
        example = Example(
            predicted.features,
            label,
            weight,
            predicted.score,
            predicted.version,
            predicted.at,
            event.event_time,
            predicted.no_change,
        )
        return self._new_row(key, event_id, event.source, example, now)

    def _new_row(
        self, key: bytes, event_id: str, source: str, example: Example, now: float
    ) -> NewRow:
        self.replica.note_label(example.label)
        return NewRow(key, event_id, source, Verdict.ACCEPTED, codec.encode(example), now)

    def _receipt(self, row: NewRow, recorded: Recorded, *, idempotent: bool) -> Receipt:
        standing = recorded.row
        receipt = Receipt(
            recorded.status,
            row.event_id,
            recorded.version_before,
            recorded.version,
            f"{standing.partition}:{standing.offset}",
            idempotent=idempotent,
        )
        if recorded.reason:
            receipt.reason = recorded.reason
        if recorded.repeat:
            receipt.duplicate = True
            receipt.first_outcome = recorded.status
            receipt.status = "duplicate" if _same(row, standing) else "conflict"
            if receipt.status == "conflict":
                first = codec.decode(standing.payload).label
                receipt.reason = f"the label recorded first is {json.dumps(self._door.show(first))}"
        return receipt


def _same(row: NewRow, standing: Row) -> bool:
    """Whether a repeat says the same as the row that stands: the label decides."""
    return codec.decode(row.payload).label == codec.decode(standing.payload).label


def _seen(text: str) -> tuple[int, int]:
    try:
        partition, offset = text.split(":")
        return int(partition), int(offset)
    except ValueError:
        raise invalid(
            "after", f"not a `seen`: {text[:80]!r}", "Send it as feedback gave it"
        ) from None
