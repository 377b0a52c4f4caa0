"""Ordinary events, many in one pass: numbers of known names, and nothing to be looked up.

What :meth:`online.serving.events.Events.read` finds out about one event after the other is found
out here by column, for events with features that have the same names: their numbers are put into
one array, which is compared with the ranges of the names and given to the model.  An event about
which there is anything to say (a value that is bounded, a new name, a weight, an id, an error) is
left to whoever reads events one by one, so each rule has one place where it is written.
"""

from __future__ import annotations

import struct
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from online.errors import RequestError
from online.messages.sender import sender
from online.messages.structs import Event
from online.models.base import Prediction as Answer
from online.replica.replica import ModelReplica
from online.rows.door import INTEGER_MAX, NUMBER_MAX, Door
from replay import codec
from replay.example import NOTES_BYTES_MAX, Example, Label, label_text
from replay.journal.base import NewRow, Verdict

SLICE: Final = 48
"""Events that are read in one turn of the loop."""

_KNOWN: Final = 256  # sets of names, and sources, that were looked at before
_FLOATS: Final = frozenset({float})


class Asked(msgspec.Struct, frozen=True, gc=False):
    """A row to append, its label as the door has it, and whether a repeat of it is known.

    ``example`` is what the row says; None: only its payload does.  ``unknown`` are names that were
    sent and are not declared: the row is without them.
    """

    row: NewRow
    label: Label
    idempotent: bool = True
    example: Example | None = None
    unknown: tuple[str, ...] = ()


class Ordinary:
    """Reads the ordinary ones of some events.

    Parameters
    ----------
    known
        What the model here has learned, for a challenger to be asked as of then.
    refusal
        Why the filters let no row hold this; None: one may.
    now_s
        The wall clock, in POSIX seconds.
    """

    def __init__(
        self,
        replica: ModelReplica,
        door: Door,
        known: Callable[[], dict[int, int] | None],
        refusal: Callable[[NewRow, Example | None], RequestError | None],
        now_s: Callable[[], float],
    ) -> None:
        self._replica, self._door, self._known, self._now_s = replica, door, known, now_s
        self._refusal = refusal
        self._names: OrderedDict[tuple[str, ...], bool] = OrderedDict()
        self._sources: OrderedDict[str, Any] = OrderedDict()

    def read(self, events: Sequence[Event]) -> list[Asked | RequestError | None]:
        """Rows of the ordinary events among these, or why one can't be taken.

        None stands for each of the others.
        """
        out: list[Asked | RequestError | None] = [None] * len(events)
        own = sender.get().source
        if self._door.weight_max < 1.0:
            return out
        groups: dict[tuple[str, ...], list[int]] = {}
        for i, event in enumerate(events):
            features = event.features
            if features and event.id is None and (own is None or event.source == own):
                groups.setdefault(tuple(features), []).append(i)
        for names, places in groups.items():
            if self._are_known(names):
                self._read_alike(names, places, events, out)
        return out

    def _are_known(self, names: tuple[str, ...]) -> bool:
        """Whether the door takes these names, and the model has learned them all."""
        good = self._names.get(names)
        if good is None:
            good = self._names[names] = self._door.takes(names)
            if len(self._names) > _KNOWN:
                self._names.popitem(last=False)
        return good and self._replica.learner.vocabulary.knows([dict.fromkeys(names, 0.0)])

    def _read_alike(
        self,
        names: tuple[str, ...],
        places: list[int],
        events: Sequence[Event],
        out: list[Asked | RequestError | None],
    ) -> None:
        rows, numeric = [], []
        for i in places:
            values = (events[i].features or {}).values()
            kinds = set(map(type, values))
            if kinds == _FLOATS or (
                kinds <= self._door.numbers and max(map(abs, values)) <= INTEGER_MAX
            ):
                rows.append(list(values))
                numeric.append(i)
        if not rows:
            return
        places, x = numeric, np.array(rows, dtype=np.float64)
        learner = self._replica.learner
        fit = (np.abs(x) <= NUMBER_MAX).all(axis=1)
        fit &= learner.bounds.inside(names, x)
        places = [i for i, good in zip(places, fit.tolist(), strict=True) if good]
        if not places:
            return
        if len(places) < len(x):
            x = x[fit]
        answers = self._answers(names, x, [events[i].features or {} for i in places])
        version = (*learner.version, learner.own)
        now_s, known = self._now_s(), self._known()
        for i, answer in zip(places, answers, strict=True):
            out[i] = self._asked(events[i], answer, version, now_s, known)

    def _answers(
        self, names: tuple[str, ...], x: npt.NDArray[np.float64], rows: list[dict[str, Any]]
    ) -> list[Answer]:
        """Ask the model about rows whose numbers are all within their ranges."""
        model = self._replica.learner.serving
        if (by_column := getattr(model, "predict_columns", None)) is not None:
            answers: list[Answer] = by_column(list(names), x)
            return answers
        return [model.predict(row) for row in rows]

    def _asked(
        self,
        event: Event,
        answer: Answer,
        version: tuple[int, int, int],
        now_s: float,
        known: dict[int, int] | None,
    ) -> Asked | RequestError | None:
        """The event's row, or why none may have it; None if it is not ordinary."""
        source, event_id, features = event.source, event.event_id, event.features
        hashed = self._sources.get(source) or self._source(source)
        label, weight = self._label(event.label), event.weight
        if label is None or hashed is None or features is None:
            return None
        if type(weight) is not float or weight != 1.0:
            return None
        replica = self._replica
        if event_id is None:
            name = uuid.uuid4().hex
        elif event_id.isprintable():
            name = event_id
        else:
            return None
        begun_s = now_s - replica.settings.dedupe_window
        if event.event_time is not None and event_id is not None and event.event_time < begun_s:
            return None
        probabilities = answer.probabilities
        if probabilities is not None and len(probabilities) == 2 and True in probabilities:
            p, q = probabilities[True], probabilities[False]
            if not (0.0 <= p <= 1.0 and 0.0 <= q <= 1.0):
                return None
            score: dict[str, float] | None = {"false": q, "true": p}
        else:
            score = replica.learner.score(answer)
            if score and not all(abs(value) <= NUMBER_MAX for value in score.values()):
                return None
        notes = answer.notes
        if notes is not None and (score is None or len(notes) > NOTES_BYTES_MAX):
            notes = None
        example = Example(
            features, label, 1.0, score, version, now_s, event.event_time,
            replica.newest_label, notes, known=known,
        )  # fmt: skip
        digest, data = hashed.copy(), name.encode()
        digest.update(_LENGTH(len(data)) + data)
        payload = codec.encode(example)
        replica.note_label(label)
        row = NewRow(digest.digest(), name, source, Verdict.ACCEPTED, payload, now_s)
        refused = self._refusal(row, example)
        return Asked(row, label, event_id is not None, example) if refused is None else refused

    def _label(self, value: Any) -> Label | None:
        """The label in its canonical form; None if that is not easily said."""
        try:
            label = self._door.label(value, "")
        except RequestError:
            return None
        if self._replica.settings.task != "multiclass":
            return label
        return label if label_text(label) in self._replica.learner.tally.seen else None

    def _source(self, source: str) -> Any:
        """Begin the hash that makes the keys of a source's events; None: a doubtful name."""
        hashed = None
        if source.isprintable():
            data = source.encode()
            hashed = blake2b(_LENGTH(len(data)) + data, digest_size=16, person=b"event")
        self._sources[source] = hashed
        if len(self._sources) > _KNOWN:
            self._sources.popitem(last=False)
        return hashed


_LENGTH: Final = struct.Struct(">I").pack
