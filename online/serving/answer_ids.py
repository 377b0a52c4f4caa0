"""Makes the ids of answers, by which labels refer to them: tokens, or ids of stored joins."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Final

from online.errors import RequestError
from online.messages.sender import sender
from online.models.base import Prediction as Answer
from online.replica.replica import ModelReplica
from online.rows.prediction_ids import Predicted, Tokens
from online.settings.limits import Limits
from online.sure.views import calibration_in, confidence_in, stamp_of
from replay import codec
from replay.example import NOTES_BYTES_MAX, Features, PredictionHalf, Value
from replay.journal.base import Half, NewRow, Verdict

KNOWN_MAX: Final = 64
"""Largest number of partition offsets in an id (about five bytes each), with a challenger."""


class AnswerIds:
    """Makes the ids of one model's answers, and what is stored under them."""

    def __init__(
        self,
        replica: ModelReplica,
        tokens: Tokens,
        limits: Limits,
        spec: str,
        now_s: Callable[[], float],
    ) -> None:
        self.tokens = tokens
        self._replica, self._limits, self._spec, self._now_s = replica, limits, spec, now_s
        views = replica.learner.tally.views
        self._sure, self._calibration = confidence_in(views), calibration_in(views)

    def prediction_id(self, features: Features, answer: Answer, own: str | None = None) -> str:
        """Return the id of an answer: the caller's own, a token, or a short generated one.

        All but a token need a stored join: the prediction is written after it is answered.
        """
        if self._replica.settings.conversion_window is not None:
            return self.waiting_ids([(features, answer)], own)[0]
        if own is None:
            if (token := self.token(features, answer)) is not None:
                return token
            own = f"join-{uuid.uuid4().hex}"
        if not self._replica.writer.keep(self.half(own, features, answer)):
            self._replica.counts["joins_dropped"] += 1
        return own

    def prediction_ids(self, rows: Sequence[Features], answers: Sequence[Answer]) -> list[str]:
        """The ids of many answers, none the caller's own; raises as :meth:`waiting_ids` does."""
        given = list(zip(rows, answers, strict=True))
        if self._replica.settings.conversion_window is not None:
            return self.waiting_ids(given)
        return [self.prediction_id(features, answer) for features, answer in given]

    def waiting_ids(
        self, rows: Sequence[tuple[Features, Answer]], own: str | None = None
    ) -> list[str]:
        """Ids of answers that may get a default label: every prediction is written behind.

        Raises as :meth:`keep` does; then none was queued.
        """
        ids, halves = [], []
        for features, answer in rows:
            nonce, token = self.tokens.nonce(), None
            if own is None:
                token = self.token(features, answer, nonce=nonce)
            id_ = token or own or f"join-{uuid.uuid4().hex}"
            named, key = id_, None
            if token is not None:  # the key that a label by this token will have
                named = nonce.hex()
                key = self._replica.store.keys.token(named)
            ids.append(id_)
            halves.append(self.half(named, features, answer, key=key))
        self.keep(halves, "prediction that gets a label by default")
        return ids

    def keep(self, halves: Sequence[NewRow], what: str) -> None:
        """Queue halves that need a default if no label replaces them, to be written behind.

        A half that is lost on the way gets no default.  Raises RequestError: 429 ``joins_full``, or
        422 if there would be no room even in an empty queue.
        """
        writer, most = self._replica.writer, self._limits.joins_queue_max
        if writer.keep(*halves):
            return
        self._replica.counts["joins_refused"] += 1
        if len(halves) > most or not writer.halves:
            message = (
                f"{len(halves)} rows at once, and no more than {most} may wait to be written, of "
                f"{self._limits.token_bytes_max} bytes in the mean"
            )
            hint = "Send fewer, or raise limits.joins_queue_max; nothing was recorded"
            raise RequestError(422, "invalid_value", message, None, hint)
        message = f"no room for another {what}: {writer.halves} wait to be written"
        if own := writer.beyond_share(*halves):
            message += f"; {own} of yours wait, and a source has at most half of what others leave"
        hint = "Send it again after Retry-After, or raise limits.joins_queue_max; "
        raise RequestError(429, "joins_full", message, None, hint + "nothing was recorded", 1)

    def token(
        self,
        features: Features,
        answer: Answer,
        *,
        choice: bytes | None = None,
        nonce: bytes | None = None,
    ) -> str | None:
        """A token with everything that a label needs; None: it would be too long."""
        score, version, now = self._replica.learner.score(answer), self.version(), self._now_s()
        newest, spec = self._replica.newest_label, self._spec[:16]
        notes, asker, known = notes_of(answer, score), sender.get().source, self.known()
        predicted = Predicted(
            1, features, score, version, now, newest, spec, notes, asker, known, choice,
            self.stamp(features),
        )  # fmt: skip
        token = self.tokens.issue(predicted, nonce)
        if len(token) <= self._limits.token_bytes_max:
            return token
        self._replica.counts["tokens_too_long"] += 1
        return None

    def half(
        self,
        own: str,
        features: Features,
        answer: Answer,
        *,
        choice: bytes | None = None,
        key: bytes | None = None,
    ) -> NewRow:
        """The answer as one half of a stored join, under an id of the caller's own.

        ``key``: its journal key, if not the key of that id.
        """
        learner, settings, now = self._replica.learner, self._replica.settings, self._now_s()
        score, asker, stamp = learner.score(answer), sender.get().source, self.stamp(features)
        features, left = learner.vocabulary.taught(features, asker or "", now, settings.label_wait)
        features, far = learner.bounds.taught(features)
        predicted = PredictionHalf(
            features,
            score,
            self.version(),
            now,
            self._replica.newest_label,
            notes_of(answer, score),
            as_sent(left, far),
            self.known(),
            choice,
            stamp,
        )
        payload = codec.encode_prediction(predicted)
        key = self._replica.store.keys.join(asker, own) if key is None else key
        return NewRow(key, own, asker or "", Verdict.ACCEPTED, payload, now, half=Half.PREDICTION)

    def stamp(self, features: Features) -> bytes | None:
        """Return the confidence stamp of a row's answer, as ids and rows store it; None: none."""
        return stamp_of(self._sure, self._calibration, features)

    def known(self) -> dict[int, int] | None:
        """Return what the local model has learned, at which a challenger is compared.

        None: there is no challenger.  Empty if an id has no room for so many partitions.
        """
        if self._replica.settings.challenger is None:
            return None
        known = self._replica.learner.known()
        return known if len(known) <= KNOWN_MAX else {}

    def version(self) -> tuple[int, int, int]:
        """Version of the model that answers now: epoch, count, own rows."""
        learner = self._replica.learner
        return (*learner.answer_version, learner.own)


def notes_of(answer: Answer, score: dict[str, float] | None) -> bytes | None:
    """The answer's notes; none without a score, or if they are too long."""
    if answer.notes is None or score is None or len(answer.notes) > NOTES_BYTES_MAX:
        return None
    return answer.notes


def as_sent(left: dict[str, Value] | None, far: dict[str, Value] | None) -> dict[str, Value] | None:
    """Return the sent values of names that are clipped in the row or missing from it."""
    return None if left is None and far is None else {**(left or {}), **(far or {})}
