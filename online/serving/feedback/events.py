"""Converts feedback events into rows: by token, by a stored join's id, or with features."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Final

import msgspec

from online.errors import RequestError, damaged, invalid
from online.learning.vocabulary import Classes
from online.messages.sender import sender
from online.messages.structs import Event, Receipt
from online.models.base import Prediction, why_not_revised
from online.replica.replica import ModelReplica
from online.rows.finals import final_key, has_provisional
from online.rows.prediction_ids import TokenInvalid, Tokens, made_id
from online.rows.validator import Validator, is_time, not_plain
from online.serving.answer_ids import AnswerIds, as_sent, notes_of
from online.serving.feedback.ordinary import EventRow, Ordinary, Unfit
from online.settings.limits import RETRY_WINDOW_S, Limits
from replay import codec
from replay.errors import JournalDamaged
from replay.example import Example, Features, Label, WaitingLabel, label_text
from replay.journal.base import Half, NewRow, Row, Verdict
from replay.plain import is_plain, plain

_JOIN_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_HOLDS: Final = 2.0  # a row's names are reserved for this multiple of its longest wait


class Events:
    """Makes rows of one model from the events in bodies.

    A token is longer than 64 characters and an id of a stored join never is, so the length tells
    them apart.

    ``askers``: sources that prediction tokens may stand for, which may be replaced.  ``ordinary``
    reads many events at a time, ``answer_ids`` makes the ids of answers.
    """

    def __init__(
        self,
        replica: ModelReplica,
        validator: Validator,
        tokens: Tokens,
        limits: Limits,
        spec: str,
        now_s: Callable[[], float],
        askers: Collection[str] = (),
    ) -> None:
        self._replica, self._validator, self._tokens = replica, validator, tokens
        self._limits, self._now_s = limits, now_s
        self.answer_ids = AnswerIds(replica, tokens, limits, spec, now_s)
        self._classes = Classes(limits.classes_max)
        self.askers = frozenset(askers)
        self._unfit = Unfit(replica)
        self.ordinary = Ordinary(replica, validator, self.answer_ids.known, self._unfit, now_s)

    async def read(self, event: Event, field: str) -> EventRow | Receipt:
        """Return the row to append, or the receipt if the answer is known already.

        ``field`` is the event's path in the body, with a trailing dot.  Raises RequestError.
        """
        event = _of_sender(event, field)
        if event.label is msgspec.UNSET and not self._replica.settings.purpose.unlabelled:
            raise invalid(f"{field}label", "no label", "Send the true label")
        label = self._validator.label(event.label, f"{field}label", recorded=True)
        if self._replica.settings.task == "multiclass":
            label = self._classes.spelled(label, self._replica.learner.tally.seen)
        weight = self._validator.weight(event.weight, f"{field}weight")
        if event.provisional:
            self._check_provisional(event, field)
        if event.id is None:
            return await self._with_features(event, label, weight, field)
        if event.features is not None or event.event_id is not None:
            hint = "The id carries both; send it with the label only"
            raise invalid(f"{field}id", "an id together with features or event_id", hint)
        if is_join_id(event.id):
            return await self._with_own_id(event, event.id, label, weight, field)
        return await self._with_token(event, event.id, label, weight, field)

    def _check_provisional(self, event: Event, field: str) -> None:
        """Raise RequestError 422 if a later label could not take this provisional one back."""
        if (why := why_not_revised(self._replica.learner.serving)) is not None:
            message = f"this model takes no lesson back: {why}"
            hint = "Send the label when it is final, without provisional"
            raise RequestError(422, "not_revised", message, f"{field}provisional", hint)
        if event.id is not None and is_join_id(event.id):
            hint = "Predict without an id and label the token, or send features and an event_id"
            message = "a provisional label for an id of your own"
            raise invalid(f"{field}provisional", message, hint)
        if event.id is None and event.event_id is None:
            hint = "Send an event_id, and the same one with the final label"
            raise invalid(f"{field}event_id", "a provisional label without an id", hint)

    def keys_of(self, own: str, source: str) -> tuple[bytes, ...]:
        """Keys of predictions with an own id that events of the source may be about."""
        askers = [asker for asker in labels_for(source) if asker in self.askers]
        keys = self._replica.store.keys
        return tuple(keys.join(asker, own) for asker in (*askers, None))

    async def _with_own_id(
        self, event: Event, own: str, label: Label, weight: float, field: str
    ) -> EventRow:
        keys = self.keys_of(own, event.source)
        keys = tuple(await self._check_new(event, label, weight, keys, field))
        now, source = self._now_s(), event.source
        waiting = WaitingLabel(label, weight, event.event_time, source, own, now, keys)
        payload = codec.encode_labels([waiting])
        return self._asked(keys[0], own, source, payload, label, half=Half.LABEL, at=now)

    async def _with_features(
        self, event: Event, label: Label, weight: float, field: str
    ) -> EventRow | Receipt:
        if event.features is None:
            hint = "Send the id of a prediction, or features"
            raise invalid(f"{field}id", "neither id nor features", hint)
        event_id = event.event_id if event.event_id is not None else made_id(self._now_s())
        key = self._replica.store.keys.event(event.source, event_id)
        await self._check_new(event, label, weight, [key], field)
        features = self._validator.features(event.features, f"{field}features", recorded=True)
        try:
            answer = self._replica.learner.predict(features)
        except RequestError:  # it can't answer the row, which may teach it nevertheless
            answer = Prediction(None, None)
        version, asked_at, known = self.answer_ids.version(), self._now_s(), self.answer_ids.known()
        if event.event_id is not None and event.event_time is not None:
            age_s, window_s = self._now_s() - event.event_time, self._replica.settings.dedupe_window
            if age_s > window_s and await self._find(key, f"{field}event_id") is None:
                reason = f"the event is {age_s / 3600:.1f} h old; ids are known for "
                return Receipt("expired", event_id, reason=f"{reason}{window_s / 3600:g} h")
            if -age_s > RETRY_WINDOW_S and await self._find(key, f"{field}event_id") is None:
                raise _ahead(-age_s, f"{field}event_time")
        score = self._replica.learner.score(answer)
        example = Example(
            features,
            label,
            weight,
            score,
            version,
            asked_at,
            event.event_time,
            self._replica.newest_label,
            notes_of(answer, score),
            known=known,
            sure=self.answer_ids.stamp(features),
            provisional=event.provisional,
        )
        idempotent = event.event_id is not None
        made = self._whole(key, event_id, event.source, example, field, idempotent=idempotent)
        return _naming(await made, event.features, features)

    async def _with_token(
        self, event: Event, token: str, label: Label, weight: float, field: str
    ) -> EventRow | Receipt:
        try:
            event_id, predicted = self._tokens.read(token)
        except TokenInvalid as error:
            hint = "Send the id exactly as the prediction gave it, to the same model"
            raise RequestError(404, "unknown_id", f"id: {error}", f"{field}id", hint) from None
        if (asker := predicted.asker) is not None and not may_label(asker, event.source):
            message = "the prediction is of a source that the token sent may not label"
            hint = "Send it with that source's token, or name it in the token's labels_for"
            raise RequestError(403, "not_yours", message, f"{field}id", hint)
        key, age_s = self._replica.store.keys.token(event_id), self._now_s() - predicted.at
        if age_s < 0:
            await self._check_ahead(-age_s, key, f"{field}id")
        await self._check_new(event, label, weight, [key], field)
        lifetime_s = self._replica.settings.token_lifetime
        if age_s > lifetime_s and await self._find(key, f"{field}id") is None:
            reason = f"the prediction is {age_s / 3600:.1f} h old, its id lived "
            return Receipt("expired", event_id, reason=f"{reason}{lifetime_s / 3600:g} h")
        example = Example(
            predicted.features,
            label,
            weight,
            predicted.score,
            predicted.version,
            predicted.at,
            event.event_time,
            predicted.no_change,
            predicted.notes,
            known=predicted.known,
            sure=predicted.sure,
            choice=predicted.choice,
            provisional=event.provisional,
        )
        return await self._whole(key, event_id, event.source, example, field)

    async def _check_new(
        self, event: Event, label: Label, weight: float, keys: Sequence[bytes], field: str
    ) -> Sequence[bytes]:
        """Check the bounds that apply to new rows only; repeats get their first outcome.

        Returns the keys under which the event may be written: within the bounds, all of them;
        otherwise those of which it is a repeat.  Raises RequestError 422 if there are none.
        """
        problem = self._problem(event, weight, field) or self._crowded(label, field)
        if problem is None:
            return keys
        known = [key for key in keys if await self._is_repeat(event, key, f"{field}id")]
        if not known:
            raise problem
        return known

    async def _is_repeat(self, event: Event, key: bytes, field: str) -> bool:
        """Whether the event makes no new row; the final label after a provisional one does."""
        row = await self._find(key, field)
        if row is None or event.provisional or not has_provisional(row):
            return row is not None
        return await self._find(final_key(row.key), field) is not None

    def _problem(self, event: Event, weight: float, field: str) -> RequestError | None:
        """Check the bounds of weight and time, and all texts for terminal control characters."""
        most = self._validator.weight_max
        if weight > most:
            message = f"a weight of {weight:.15g}, at most {most:.15g} is taken"
            hint = "Send less, or raise limits.weight_max or the token's weight_max"
            return RequestError(422, "weight_over", message, f"{field}weight", hint)
        if not is_plain(event.source):
            return not_plain(f"{field}source", "a source", event.source)
        if event.event_id is not None and not is_plain(event.event_id):
            return not_plain(f"{field}event_id", "an id", event.event_id)
        if isinstance(event.label, str) and not is_plain(event.label):
            return not_plain(f"{field}label", "a class", event.label)
        if (odd := self._validator.odd_name(event.features)) is not None:
            return not_plain(f"{field}features", "a name", odd)
        if event.event_time is not None and not is_time(event.event_time):
            hint = "Send POSIX seconds, or no event_time"
            return invalid(f"{field}event_time", f"not a time: {event.event_time:g}", hint)
        return self._validator.undeclared(event.features, f"{field}features")

    def _crowded(self, label: Label, field: str) -> RequestError | None:
        """Check the bound on classes; each costs parameters for each name, and time in each row."""
        if self._replica.settings.task != "multiclass":
            return None
        known, now_s = self._replica.learner.tally.seen, self._now_s()
        hold_s = _HOLDS * self._limits.feedback_wait_s
        if self._classes.admit(label_text(label), known, now_s, hold_s):
            return None
        message = f"a new class, and the model has {self._classes.most} already"
        hint = f"Send one of those (limits.classes_max is {self._classes.most}), or raise it"
        return RequestError(422, "classes_full", message, f"{field}label", hint)

    async def _find(self, key: bytes, field: str) -> Row | None:
        """The row with this key, for repeats of expired events.  Raises RequestError if damaged."""
        store = self._replica.store
        try:
            row: Row | None = await store.read(store.journal.find, self._replica.settings.name, key)
        except JournalDamaged as error:
            raise damaged(str(error), field) from None
        return row

    async def _check_ahead(self, ahead_s: float, key: bytes, field: str) -> None:
        """Check a token from the future, whose clock may have been set back since.

        Labels of such predictions are accepted within ``limits.clock_skew_s``; beyond it only
        repeats are, which get their first outcome.
        """
        if ahead_s <= self._limits.clock_skew_s:
            self._replica.counts["ids_from_the_future"] += 1
        elif await self._find(key, field) is None:
            hint = "Set the clocks of the nodes, or raise limits.clock_skew_s"
            message = f"given out {ahead_s:.0f} s in the future of this node's clock"
            raise invalid(field, message, hint)

    async def _whole(
        self,
        key: bytes,
        event_id: str,
        source: str,
        example: Example,
        field: str,
        *,
        idempotent: bool = True,
    ) -> EventRow:
        """Make the row of an event whose features are known; they are clipped before judging."""
        verdict, learner, counts = Verdict.ACCEPTED, self._replica.learner, self._replica.counts
        hold_s = _HOLDS * self._limits.feedback_wait_s
        features, left = learner.vocabulary.taught(example.features, source, self._now_s(), hold_s)
        if left is not None:
            counts["names_left_out"] += len(left)
            if not features and await self._find(key, f"{field}event_id") is None:
                raise _names_full(left, source, self._limits, f"{field}features")
        features, far = learner.bounds.taught(features)
        if (sent := as_sent(left, far)) is not None:
            verdict = Verdict.CLIPPED
            example = msgspec.structs.replace(example, features=features, raw=sent)
            counts["values_clipped"] += len(far or ())
        payload, label = codec.encode(example), example.label
        return self._asked(
            key, event_id, source, payload, label,
            verdict=verdict, idempotent=idempotent, example=example,
        )  # fmt: skip

    def _asked(
        self,
        key: bytes,
        event_id: str,
        source: str,
        payload: bytes,
        label: Label,
        *,
        half: Half | None = None,
        verdict: Verdict = Verdict.ACCEPTED,
        idempotent: bool = True,
        at: float | None = None,
        example: Example | None = None,
    ) -> EventRow:
        self._replica.note_label(label)
        at = self._now_s() if at is None else at
        row = NewRow(key, event_id, source, verdict, payload, at, half=half)
        if (refused := self._unfit.refusal(row, example)) is not None:
            raise refused
        return EventRow(row, label, idempotent, example)


def _ahead(ahead_s: float, field: str) -> RequestError:
    """Refuse an event whose repeats would never expire, although its id is forgotten one day."""
    hint = "Send POSIX seconds, no milliseconds; or set the clock of this node"
    return invalid(field, f"{ahead_s / 3600:.1f} h ahead of this node's clock", hint)


def _naming(row: EventRow, sent: Features, taken: Features) -> EventRow:
    """Add the names that were sent but dropped as undeclared."""
    if taken is sent:
        return row
    return msgspec.structs.replace(row, unknown=tuple(n for n in sent if n not in taken))


def _names_full(left: Collection[str], source: str, limits: Limits, field: str) -> RequestError:
    names = ", ".join(plain(name) for name in list(left)[:3])
    message = (
        f"no room for new names ({names}), and the row has no other: a model has "
        f"{limits.names_max}, of which source {plain(source)} may bring "
        f"{int(limits.names_max * limits.names_share)}"
    )
    hint = "Send names that were learned before, or raise limits.names_max or limits.names_share"
    return RequestError(422, "names_full", message, field, hint)


def _of_sender(event: Event, field: str) -> Event:
    """The event with the source that its token stands for; 403 if it names another."""
    source = sender.get().source
    if source is None or event.source == source:
        return event
    if event.source != Event().source:
        message = (
            f"the token sent is that of source {source}, the event names {event.source[:80]!r}"
        )
        hint = "Leave source out, or send it with a token for admin"
        raise RequestError(403, "source_fixed", message, f"{field}source", hint)
    return msgspec.structs.replace(event, source=source)


def labels_for(source: str) -> tuple[str, ...]:
    """Sources whose predictions the request's sender may label with events of ``source``.

    Predictions of tokens without a source may always be labelled.  An admin's labels count as those
    of the source that its event names.
    """
    grant = sender.get()
    if grant.trusted:
        return (source,)
    if grant.labels_for is not None:
        return grant.labels_for
    return () if grant.source is None else (grant.source,)


def may_label(asker: str, source: str) -> bool:
    """Whether the request's sender may label a token that was issued to ``asker``."""
    return sender.get().trusted or asker in labels_for(source)


def is_join_id(text: str) -> bool:
    """Whether the text can be the id of a stored join: 1 to 64 of letters, digits and ``._:-``."""
    return _JOIN_ID.fullmatch(text) is not None
