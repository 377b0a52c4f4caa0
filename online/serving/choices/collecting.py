"""Collects rewards of a choice that are learned as one, when its wait ends.

Until then a choice is one half of a joined row, and its rewards are stored in that half.  Each
reward is added by a compare-and-set on the half last read; if another write came first, the half is
read again.  So each reward is counted once, whichever replica takes it, and a repeat with the same
``reward_id`` is recognized.  The result is one ordinary row (:mod:`.default_rewards`) of one
source: a choice takes rewards of one source only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from online.decide.record import Given, RecordInvalid, pack, unpack
from online.errors import RequestError, damaged
from online.messages.structs import Event, Receipt
from online.replica.pending import Recorded
from online.rows.joins import NO_HALF, ROUNDS_MAX, question
from online.serving.choices.stored import choice_of, read_half
from online.serving.feedback.ordinary import EventRow
from online.serving.feedback.receipts import refused
from online.serving.serving import Serving
from online.settings.choose import Choose
from replay import codec
from replay.errors import PayloadFormat, PayloadInvalid
from replay.example import Example, PredictionHalf
from replay.journal.base import Half, NewRow, Stored, Verdict

_TURN: Final = 16
"""After this many rewards, or choices with rewards, other tasks get a turn of the event loop."""

_Results = list[Receipt | RequestError | None]
"""The answers to the rewards of a body; None where not known yet."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One reward as sent: its values by name, and the label event that it amounts to.

    Attributes:
        named: Its own id, if it has one.
        nonce: Different for each time it is sent.
    """

    event: Event
    values: dict[str, float]
    named: str | None
    nonce: str


@dataclass(slots=True)
class _One:
    """The rewards of one body for one choice, on their way into its half.

    Attributes:
        keys: Keys under which the choice may be stored, in the order of trying.
        made: The half according to its token; None: the choice has an id of the caller's own.
        seen: The half to be replaced, decoded and as stored.
    """

    event_id: str
    keys: list[bytes]
    sent: list[tuple[int, Sent]]
    made: PredictionHalf | None
    seen: tuple[PredictionHalf, Stored] | None = None
    new: list[tuple[int, Sent]] = field(default_factory=list)


class RewardCollector:
    """Takes the rewards of one model that sums them, or keeps the last."""

    def __init__(self, serving: Serving, settings: Choose) -> None:
        self._replica, self._read = serving.replica, serving.reader.read
        self._settings = settings

    async def take(self, sent: Sequence[Sent], *, many: bool) -> list[Receipt]:
        """Store rewards of choices; return a receipt for each.

        Raises RequestError for a single reward; if there are ``many``, its receipt has the error.
        """
        results: _Results = [None] * len(sent)
        open_: dict[str, _One] = {}
        for i, reward in enumerate(sent):
            if i % _TURN == _TURN - 1:
                await asyncio.sleep(0)
            try:
                asked = await self._read(reward.event, f"rewards[{i}]." if many else "")
                if isinstance(asked, Receipt):
                    results[i] = asked
                else:
                    name = asked.row.key.hex()
                    open_.setdefault(name, _one(asked)).sent.append((i, _of(asked, reward)))
            except RequestError as error:
                results[i] = error
        left = list(open_.values())
        for _ in range(ROUNDS_MAX):
            made = []
            for i, one in enumerate(left):
                if i % _TURN == _TURN - 1:
                    await asyncio.sleep(0)
                if (row := self._row(one, results)) is not None:
                    made.append((one, row))
            if not made:
                left = []
                break
            written = await self._replica.writer.record([row for _, row in made])
            left = []
            for i, ((one, _), outcome) in enumerate(zip(made, written, strict=True)):
                if i % _TURN == _TURN - 1:
                    await asyncio.sleep(0)
                if not self._took(one, outcome, results):
                    left.append(one)
        for crowded in left:
            _fail(crowded, results, _crowded())
        if not many and isinstance(results[0], RequestError):
            raise results[0]
        receipts = [
            refused(one) if isinstance(one, RequestError) else one
            for one in results
            if one is not None
        ]
        for receipt in receipts:
            self._replica.counts[f"rewards_{receipt.status}"] += 1
        return receipts

    def _row(self, one: _One, results: _Results) -> NewRow | None:
        """Return the row to be written next for a choice; None: all its rewards are answered."""
        key, now = one.keys[0], self._replica.now_s()
        if one.seen is None:
            return question(key, one.event_id, now)
        made, over = one.seen
        choice = choice_of(made.choice, _no_choice())
        rewards = list(choice.rewards)
        one.new = []
        for i, sent in one.sent:
            if (receipt := self._known(one, rewards, sent)) is not None:
                results[i] = receipt
                continue
            one.new.append((i, sent))
            rewards.append(_given(sent))
        if not one.new:
            return None
        packed = pack(msgspec.structs.replace(choice, rewards=tuple(rewards)))
        payload = codec.encode_prediction(msgspec.structs.replace(made, choice=packed))
        return NewRow(
            key, one.event_id, over.source, Verdict.ACCEPTED, payload, over.at,
            half=Half.PREDICTION, over=None if over.payload == NO_HALF else over.payload,
        )  # fmt: skip

    def _known(
        self, one: _One, rewards: Sequence[Given], sent: Sent
    ) -> Receipt | RequestError | None:
        """Return the receipt of a reward that is not to be added to these; None: add it."""
        for other in rewards:
            if other.nonce == sent.nonce:  # written before; the store's answer was lost
                return self._waiting(one, sent)
            if sent.named is not None and other.named == sent.named:
                return _again(one.event_id, other, sent, "waiting")
        if rewards and rewards[0].source != sent.event.source:
            message = "this choice has rewards of another source"
            hint = "Send all rewards of a choice as one source"
            return RequestError(409, "another_source", message, "source", hint)
        if len(rewards) >= self._settings.rewards_max:
            message = f"this choice has {len(rewards)} rewards"
            hint = "Send fewer, larger ones, or raise choose.rewards_max"
            return RequestError(422, "rewards_full", message, "id", hint)
        return None

    def _took(self, one: _One, recorded: Recorded, results: _Results) -> bool:
        """Process the store's answer; return whether all rewards of the choice are answered."""
        if recorded.status == "damaged":
            _fail(one, results, damaged(recorded.reason or "", "id"))
            return True
        if recorded.row is not None:
            self._settled(one, recorded, results)
            return True
        if recorded.met is not None:
            if recorded.met.half is not Half.PREDICTION:  # a label that arrived before its choice
                _fail(one, results, _unknown())
                return True
            try:
                made, _ = read_half(recorded.met, _no_choice())
            except RequestError as error:
                _fail(one, results, error)
                return True
            one.seen = made, recorded.met
            return False
        if one.seen is not None and recorded.since is not None:
            for i, sent in one.new:
                results[i] = self._waiting(one, sent)
            return True
        if one.seen is not None and one.seen[1].payload == NO_HALF:
            self._replica.counts["joins_refused"] += 1
            _fail(one, results, _no_room())
            return True
        return self._elsewhere(one, results)

    def _waiting(self, one: _One, sent: Sent) -> Receipt:
        return Receipt(
            "waiting", one.event_id, idempotent=sent.named is not None,
            reason=f"learned once, {self._settings.reward_wait:g} s after the choice",
        )  # fmt: skip

    def _elsewhere(self, one: _One, results: _Results) -> bool:
        """Handle an empty key: try the next one, or make the half that was not written."""
        if one.made is not None:  # it was lost in a kill, or is not written yet
            one.seen = one.made, _nothing(one.event_id, self._replica.now_s())
            return False
        if len(one.keys) > 1:
            one.keys, one.seen = one.keys[1:], None
            return False
        _fail(one, results, _unknown())
        return True

    def _settled(self, one: _One, recorded: Recorded, results: _Results) -> None:
        """Answer for a choice that was learned: known rewards are repeats, others are expired."""
        assert recorded.row is not None
        try:
            packed = codec.decode(recorded.row.payload).choice
            rewards = () if packed is None else unpack(packed).rewards
        except (PayloadFormat, PayloadInvalid, RecordInvalid):
            rewards = ()
        for i, sent in one.sent:
            if any(x.nonce == sent.nonce for x in rewards):
                results[i] = self._waiting(one, sent)
                continue
            known = (x for x in rewards if sent.named is not None and x.named == sent.named)
            if (other := next(known, None)) is not None:
                results[i] = _again(one.event_id, other, sent, recorded.status)
            else:
                reason = f"the choice was learned {self._settings.reward_wait:g} s after it"
                results[i] = Receipt(
                    "expired", one.event_id, reason=f"{reason}, or with a label of its own"
                )


def _of(asked: EventRow, sent: Sent) -> Sent:
    """Replace the source by that of the sender's access token, where that has its own."""
    if sent.event.source == asked.row.source:
        return sent
    event = msgspec.structs.replace(sent.event, source=asked.row.source)
    return replace(sent, event=event)


def _one(asked: EventRow) -> _One:
    """Return the choice of a reward.  Raises RequestError if it is the id of a prediction."""
    row, example = asked.row, asked.example
    if row.half is Half.LABEL:
        (label,) = codec.decode_labels(row.payload)
        return _One(row.event_id, list(label.keys), [], None)
    assert example is not None
    if example.choice is None:
        raise _no_choice()
    return _One(row.event_id, [row.key], [], _half_of(example))


def _nothing(event_id: str, at: float) -> Stored:
    return Stored(Half.PREDICTION, event_id, "", NO_HALF, at)


def _half_of(example: Example) -> PredictionHalf:
    return PredictionHalf(
        example.features, example.score, example.version, example.predicted_at, example.no_change,
        example.notes, example.raw, example.known, example.choice, example.sure,
    )  # fmt: skip


def _no_choice() -> RequestError:
    hint = "Send the id of a choice"
    return RequestError(404, "unknown_id", "no choice has this id", "id", hint)


def _given(sent: Sent) -> Given:
    return Given(sent.named, sent.event.source, sent.values, sent.event.event_time, sent.nonce)


def _again(event_id: str, other: Given, sent: Sent, first: str) -> Receipt:
    """The receipt of a reward whose ``reward_id`` is already known."""
    if other.values == sent.values:
        return Receipt("duplicate", event_id, duplicate=True, first_outcome=first)
    reason = "under this reward_id another reward came first"
    return Receipt("conflict", event_id, duplicate=True, first_outcome=first, reason=reason)


def _fail(one: _One, results: _Results, error: RequestError) -> None:
    """Answer all unanswered rewards of a choice with an error."""
    for i, _ in one.sent:
        if results[i] is None:
            results[i] = error


def _unknown() -> RequestError:
    hint = "Send rewards after their choice, with the id that it was answered with"
    return RequestError(404, "unknown_id", "no choice has this id", "id", hint)


def _no_room() -> RequestError:
    message = "no room for another choice that waits for its rewards"
    hint = "Send it again after Retry-After; nothing was recorded"
    return RequestError(429, "joins_full", message, "id", hint, 1)


def _crowded() -> RequestError:
    message = f"others were faster {ROUNDS_MAX} times"
    hint = "Send it again; with a reward_id it counts once"
    return RequestError(503, "journal_unavailable", message, "id", hint, 1)
