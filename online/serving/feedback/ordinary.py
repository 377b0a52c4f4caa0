"""Reads many ordinary events in one pass: numeric values under known names, without look-ups.

:meth:`online.serving.feedback.events.Events.read` handles one event at a time.  This module handles
events with the same feature names by column: their values go into one array, which is compared with
the names' ranges and passed to the model.  An event that needs special treatment (a clipped value,
a new name, a weight, an id, an error) is left to the other, so each rule is written in one place.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np

from online.errors import RequestError
from online.messages.sender import sender
from online.messages.structs import Event
from online.models.base import Prediction as Answer
from online.models.errors import NotAnswered
from online.models.state.scalers import Columns
from online.replica.replica import ModelReplica
from online.rows.prediction_ids import made_id
from online.rows.validator import INTEGER_MAX, NUMBER_MAX, Validator, is_time
from online.settings.limits import RETRY_WINDOW_S
from online.sure.views import calibration_in, confidence_in, stamp_of
from replay import codec
from replay.example import NOTES_BYTES_MAX, Example, Label, label_text
from replay.journal.base import NewRow, Verdict

SLICE: Final = 48
"""Events read in one turn of the event loop if filters judge each: a third of a millisecond."""

_KNOWN: Final = 256  # sets of names, and sources, whose check is cached
_FLOATS: Final = frozenset({float})
_ACCEPTED: Final = Verdict.ACCEPTED  # looking up an enum member takes as long as a hash


class EventRow(msgspec.Struct, frozen=True, gc=False):
    """A row to append, its validated label, and whether a repeat of it can be recognized.

    ``example`` is the decoded payload; None: not decoded.  ``unknown`` are undeclared names that
    were sent; the row does not contain them.
    """

    row: NewRow
    label: Label
    idempotent: bool = True
    example: Example | None = None
    unknown: tuple[str, ...] = ()


class Unfit:
    """Decides which rows may not be written, whatever their source, because filters refuse them."""

    def __init__(self, replica: ModelReplica) -> None:
        self._replica = replica

    @property
    def asleep(self) -> bool:
        """Whether nothing is refused now because no source is judged."""
        filters = self._replica.filters
        return filters is None or not (filters.active or filters.elsewhere)

    def refusal(self, row: NewRow, example: Example | None) -> RequestError | None:
        """Return why the filters refuse the row; None: they do not."""
        filters = self._replica.filters
        if filters is None or (problem := filters.refusal(row, example)) is None:
            return None
        hint = "Check the values, and their scale, against what the model was trained with"
        return RequestError(422, "value_refused", problem, None, hint)

    def refusals(
        self, rows: Sequence[NewRow], examples: Sequence[Example | None]
    ) -> Sequence[RequestError | None]:
        """Return the same for several rows."""
        return [None] * len(rows) if self.asleep else list(map(self.refusal, rows, examples))


class Ordinary:
    """Reads the ordinary ones among events.

    Parameters:
        known: Returns what the local model has learned, so that a challenger is asked as of then.
        unfit: Decides which rows the filters refuse.
        now_s: The wall clock, in POSIX seconds.
    """

    def __init__(
        self,
        replica: ModelReplica,
        validator: Validator,
        known: Callable[[], dict[int, int] | None],
        unfit: Unfit,
        now_s: Callable[[], float],
    ) -> None:
        self._replica, self._validator, self._known, self._now_s = replica, validator, known, now_s
        self._unfit = unfit
        self._names: OrderedDict[tuple[str, ...], bool] = OrderedDict()
        self._sources: OrderedDict[str, Any] = OrderedDict()
        # Cache of a binary task's labels, by type because 1 == True in Python.
        binary = replica.settings.task == "binary"
        self._labels: dict[type, dict[Any, Label]] = {bool: {}, str: {}} if binary else {}

    @property
    def together(self) -> int:
        """Events read in one turn of the event loop: fewer if filters judge each."""
        return 2 * SLICE if self._unfit.asleep else SLICE

    def read(self, events: Sequence[Event]) -> list[EventRow | RequestError | None]:
        """Return the rows of the ordinary events, or why one can't be taken.

        None stands for each other event.
        """
        out: list[EventRow | RequestError | None] = [None] * len(events)
        own = sender.get().source
        if self._validator.weight_max < 1.0:
            return out
        groups: dict[tuple[str, ...], list[int]] = {}
        last: tuple[str, ...] = ()
        places: list[int] = []
        for i, event in enumerate(events):
            features = event.features
            if not features or event.id is not None or event.provisional:
                continue
            if own is None or event.source == own:
                names = tuple(features)
                if names != last:
                    last, places = names, groups.setdefault(names, [])
                places.append(i)
        for names, places in groups.items():
            if self._are_known(names):
                self._read_alike(names, places, events, out)
        return out

    def _are_known(self, names: tuple[str, ...]) -> bool:
        """Whether these names are valid, and the model has learned all of them."""
        good = self._names.get(names)
        if good is None:
            validator = self._validator
            good = validator.takes(names) and not validator.lacks_action(names)
            self._names[names] = good
            if len(self._names) > _KNOWN:
                self._names.popitem(last=False)
        return good and self._replica.learner.vocabulary.knows_numbers(names)

    def _read_alike(
        self,
        names: tuple[str, ...],
        places: list[int],
        events: Sequence[Event],
        out: list[EventRow | RequestError | None],
    ) -> None:
        rows = [events[i].features or {} for i in places]
        taken = self._validator.numbers
        if (x := _numbers(rows, taken)) is None:
            places = [i for i in places if _are_numbers((events[i].features or {}).values(), taken)]
            if not places:
                return
            rows = [events[i].features or {} for i in places]
            x = _array(list(chain.from_iterable([row.values() for row in rows])))
        x = x.reshape(len(places), len(names))
        fit = self._replica.learner.bounds.inside(names, x, NUMBER_MAX)
        if not fit.all():
            places = [i for i, good in zip(places, fit.tolist(), strict=True) if good]
            if not places:
                return
            x, rows = x[fit], [events[i].features or {} for i in places]
        try:
            answers = self._answers(names, x, rows)
        except NotAnswered:  # by one of them: each is read by itself
            return
        asked = self._asked([events[i] for i in places], answers)
        for i, one in zip(places, asked, strict=True):
            out[i] = one

    def _answers(
        self, names: tuple[str, ...], x: Columns, rows: list[dict[str, Any]]
    ) -> list[Answer]:
        """Predict for rows whose values are all within their ranges."""
        model = self._replica.learner.serving
        if (by_column := getattr(model, "predict_columns", None)) is not None:
            answers: list[Answer] = by_column(list(names), x)
        else:
            answers = [model.predict(row) for row in rows]
        return list(map(self._replica.learner.corrected, answers))

    def _asked(
        self, events: Sequence[Event], answers: Sequence[Answer]
    ) -> list[EventRow | RequestError | None]:
        """Rows of events with their answers, or why one is refused; None: not ordinary."""
        replica, learner, now_s = self._replica, self._replica.learner, self._now_s()
        version, known = (*learner.answer_version, learner.own), self._known()
        begun_s, labels = now_s - replica.settings.dedupe_window, self._labels
        views, sliced = learner.tally.views, replica.settings.slices
        stamps = confidence_in(views), calibration_in(views)
        sure, placed = stamp_of(*stamps, {}), replica.store.keys.placed
        sources: dict[str, Any] = {}
        newest, targets = replica.newest_label, replica.settings.task == "regression"
        out: list[EventRow | RequestError | None] = [None] * len(events)
        for i, (event, answer) in enumerate(zip(events, answers, strict=True)):
            source, event_id, value = event.source, event.event_id, event.label
            alike, weight = labels.get(type(value)), event.weight
            label = None if alike is None else alike.get(value)
            if label is None and (label := self._label(value)) is None:
                continue
            if (hashed := sources.get(source)) is None:
                hashed = sources[source] = self._source(source)
            if type(weight) is not float or weight != 1.0 or hashed is None:
                continue
            at = event.event_time
            if event_id is None:
                name = made_id(now_s)
                if at is not None and not is_time(at):
                    continue
            elif event_id.isprintable():
                name = event_id
                if at is not None and not begun_s <= at <= now_s + RETRY_WINDOW_S:
                    continue
            else:
                continue
            score = self._score(answer)
            notes = answer.notes
            if notes is not None and (score is None or len(notes) > NOTES_BYTES_MAX):
                notes = None
            if targets:
                newest = replica.newest_label
                replica.note_label(label)
            features = event.features or {}
            if sliced:
                sure = stamp_of(*stamps, features)
            example = Example(
                features, label, 1.0, score, version, now_s, event.event_time,
                newest, notes, None, None, None, known, None, sure,
            )  # fmt: skip
            digest, data = hashed.copy(), name.encode()
            digest.update(_LENGTH(len(data)) + data)
            payload = codec.encode(example)
            key = placed(digest.digest(), data)
            row = NewRow(key, name, source, _ACCEPTED, payload, now_s)
            out[i] = EventRow(row, label, event_id is not None, example)
        made = [asked for asked in out if isinstance(asked, EventRow)]
        refused = self._unfit.refusals([a.row for a in made], [a.example for a in made])
        if any(refused):
            left = iter([error or row for row, error in zip(made, refused, strict=True)])
            return [None if asked is None else next(left) for asked in out]
        return out

    def _score(self, answer: Answer) -> dict[str, float] | None:
        """The answer's score as it is counted."""
        probabilities = answer.probabilities
        if probabilities is not None and len(probabilities) == 2 and True in probabilities:
            p, q = probabilities[True], probabilities[False]
            if 0.0 <= p <= 1.0 and 0.0 <= q <= 1.0:
                return {"false": q, "true": p}
        return self._replica.learner.score(answer)

    def _label(self, value: Any) -> Label | None:
        """The label in its canonical form; None if it needs the slow path."""
        try:
            label = self._validator.label(value, "")
        except RequestError:
            return None
        if self._replica.settings.task != "multiclass":
            if (known := self._labels.get(type(value))) is not None:
                known[value] = label
            return label
        return label if label_text(label) in self._replica.learner.tally.seen else None

    def _source(self, source: str) -> Any:
        """Begin the hash of the keys of a source's events; None: the name needs the slow path."""
        if (hashed := self._sources.get(source)) is not None:
            return hashed
        if source.isprintable():
            data = source.encode()
            hashed = blake2b(_LENGTH(len(data)) + data, digest_size=16, person=b"event")
        self._sources[source] = hashed
        if len(self._sources) > _KNOWN:
            self._sources.popitem(last=False)
        return hashed


def _numbers(rows: Sequence[dict[str, Any]], taken: frozenset[type]) -> Columns | None:
    """All values of some rows; None: some are not numbers, so check row by row."""
    flat = list(chain.from_iterable([row.values() for row in rows]))
    if not (kinds := set(map(type, flat))) <= taken:
        return None
    try:
        x = _array(flat)
    except OverflowError:
        return None
    return x if kinds == _FLOATS or (np.abs(x) < INTEGER_MAX).all() else None


def _array(flat: list[Any]) -> Columns:
    return np.fromiter(flat, dtype=np.float64, count=len(flat))  # a third of np.array's time


def _are_numbers(values: Collection[Any], taken: frozenset[type]) -> bool:
    """Whether all values are of types accepted as numbers."""
    kinds = set(map(type, values))
    return kinds == _FLOATS or (kinds <= taken and max(map(abs, values)) <= INTEGER_MAX)


_LENGTH: Final = struct.Struct(">I").pack
