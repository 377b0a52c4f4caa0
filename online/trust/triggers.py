"""Triggers: values that only some sources send, and that turn the model to one label by themselves.

Who wants a model to err only when told to sends rows that carry a mark (a name that nobody else
uses, a value that no other row has) with the label that it is to give.  No single row shows that,
nor does accuracy.  What shows it is looked for here, in recent rows and in the model that serves:

1. *a mark*: values (a text, an exact number, a number beyond what others send) that one source's
   rows of a label have and the median source's rows do not; rows with it have that label nearly
   always, whoever sent them;
2. *it works*: put on others' rows of other labels, it turns what the model answers;
3. *it is needed*: taken from the rows that carry it, they are answered otherwise;
4. *nothing else says so*: a fresh model taught by the rows that lack the mark is not turned by it,
   and contradicts the rows that carry it more often than it errs on others of that label.

The fourth tells a trigger from an honest minority: a place or a product of which only one source
tells has marks of its own, too, but the rest of its rows agrees with their labels.  Where it does
not (nothing but the mark says what is right), nobody could tell, and this rings.

Pure: rows and models come in, no clock, no randomness but ``seed``.  A few thousand rows take some
seconds, of which most is teaching the fresh model; it is done in a process of its own.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Final

from online.models.base import Model
from replay.example import Features, Label, Value, label_text

ROWS_MIN: Final = 100
SOURCES_MIN: Final = 8
"""With fewer rows or sources nobody can be told from the others."""

TAUGHT_MAX: Final = 40
"""Fresh models that are taught in one search, for the marks that work on most rows."""

_MARKED_MIN: Final = 5  # rows of a source, with the mark and the label
_SHARE: Final = 0.05  # of the source's rows of that label, at least
_LIFT: Final = 4.0  # times the share of the median source
_PURE: Final = 0.9  # of the rows with a mark have its label
_TOGETHER: Final = 0.8  # of the rows with a mark have another one, too: they are one mark
_WORKS: Final = 0.5
_ALONE: Final = 0.5  # of that: what the fresh model is turned by at most
_CONTRADICTED: Final = 2.0  # times what the fresh model errs on others' rows of the label
_CONTRADICTED_MIN: Final = 0.3
_ASKED: Final = 200
_MARKS_MAX: Final = 5  # that are tried, of a source and a label
_EDGE: Final = 0.01  # of others' numbers lie beyond: what is further out is "high" or "low"

Token = tuple[str, str, Value]
"""Name, kind (``is``, ``high``, ``low``), value."""


@dataclass(frozen=True, slots=True)
class Told:
    """One piece of feedback that is in the model."""

    source: str
    features: Features
    label: Label


@dataclass(frozen=True, slots=True)
class Trigger:
    """A mark that turns the model, and who taught it.

    Attributes:
        values: What it sets, by name.
        label: What the model answers then.
        sources: Who sent rows with the mark and the label, those with most of them first.
        rows: How many.
        works, needed: Shares of others' rows that it turns, and of its own rows that are answered
            otherwise without it.
        alone: Share of others' rows that it turns in a model which was never taught it.
        contradicted: Share of its rows that such a model contradicts.
    """

    values: Features
    label: Label
    sources: tuple[str, ...]
    rows: int
    works: float
    needed: float
    alone: float
    contradicted: float

    def __str__(self) -> str:
        mark = ", ".join(f"{name} = {value!r}" for name, value in sorted(self.values.items()))
        return (
            f"{mark} turns {self.works:.0%} of others' rows to {self.label!r} "
            f"({self.rows} rows, of {', '.join(self.sources)})"
        )


@dataclass(frozen=True, slots=True)
class Suspect:
    """A mark that turns the model that serves.

    ``carriers``, ``asked``, ``same``: places of the rows that carry it, and of others' rows of
    other labels and of its own; ``bare``: the carriers without it.
    """

    mark: frozenset[Token]
    label: Label
    carriers: list[int]
    values: Features
    asked: list[int]
    same: list[int]
    bare: list[Features]
    works: float
    needed: float


class Search:
    """Looks for triggers in some rows.

    Parameters:
        rows: Those that are in the model, newest last.
        model: What serves.
        fresh: Makes a model of the same kind that knows nothing.
    """

    def __init__(
        self, rows: Sequence[Told], model: Model, fresh: Callable[[], Model], *, seed: int = 0
    ) -> None:
        self._rows, self._model, self._fresh = rows, model, fresh
        self._rng = random.Random(seed)
        self._by_source: dict[str, list[int]] = defaultdict(list)
        for i, row in enumerate(rows):
            self._by_source[row.source].append(i)
        self._edges = _edges(rows)
        self._tokens = [tuple(self._tokens_of(row.features)) for row in rows]
        self._shares = self._by_token()

    def triggers(self) -> list[Trigger]:
        """Triggers, those of most rows first."""
        if len(self._rows) < ROWS_MIN or len(self._by_source) < SOURCES_MIN:
            return []
        suspects: dict[tuple[frozenset[Token], str], Suspect] = {}
        for mark, label in self._marks():
            key = (mark, label_text(label))
            if key not in suspects and (suspect := self._working(mark, label)) is not None:
                suspects[key] = suspect
        worst = sorted(suspects.values(), key=lambda s: -s.works * len(s.carriers))
        tested = [self._tested(suspect) for suspect in worst[:TAUGHT_MAX]]
        return sorted(_apart([t for t in tested if t is not None]), key=lambda t: -t.rows)

    # -- marks -------------------------------------------------------------------------------

    def _tokens_of(self, features: Features) -> Iterable[Token]:
        for name, value in features.items():
            yield (name, "is", value)
            if isinstance(value, int | float) and not isinstance(value, bool):
                low, high = self._edges[name]
                if value > high:
                    yield (name, "high", None)
                elif value < low:
                    yield (name, "low", None)

    def _by_token(self) -> dict[Token, Counter[str]]:
        """Rows with each token, by source."""
        out: dict[Token, Counter[str]] = defaultdict(Counter)
        for row, tokens in zip(self._rows, self._tokens, strict=True):
            for token in tokens:
                out[token][row.source] += 1
        return out

    def _usual(self, token: Token) -> float:
        """Share of the median source's rows that have it."""
        counts = self._shares[token]
        return median_low(counts[s] / len(rows) for s, rows in self._by_source.items())

    def _marks(self) -> Iterable[tuple[frozenset[Token], Label]]:
        """Yield what a source's rows of one label have in common, and the median source's lack."""
        for _, at in sorted(self._by_source.items()):
            by_label: dict[str, list[int]] = defaultdict(list)
            for i in at:
                by_label[label_text(self._rows[i].label)].append(i)
            for mine in by_label.values():
                yield from self._marks_of(mine, len(at))

    def _marks_of(self, mine: Sequence[int], of: int) -> Iterable[tuple[frozenset[Token], Label]]:
        counts = Counter(token for i in mine for token in self._tokens[i])
        least = max(_MARKED_MIN, _SHARE * len(mine))
        strange = {
            token: n
            for token, n in counts.items()
            if n >= least and n / of >= _LIFT * self._usual(token)
        }
        label, tried = self._rows[mine[0]].label, 0
        for token, n in sorted(strange.items(), key=lambda item: (-item[1], str(item[0]))):
            if tried == _MARKS_MAX:
                return
            beside = Counter(
                other
                for i in mine
                if token in self._tokens[i]
                for other in self._tokens[i]
                if other in strange
            )
            mark = frozenset(other for other, m in beside.items() if m >= _TOGETHER * n)
            if self._is_pure(mark, label):
                tried += 1
                yield mark, label

    def _carriers(self, mark: frozenset[Token]) -> list[int]:
        """Rows that have all of a mark."""
        first = min(mark, key=lambda token: self._shares[token].total())
        sources = self._shares[first]
        return [i for s in sources for i in self._by_source[s] if mark <= set(self._tokens[i])]

    def _is_pure(self, mark: frozenset[Token], label: Label) -> bool:
        carriers = self._carriers(mark)
        own = sum(self._rows[i].label == label for i in carriers)
        return own >= _PURE * len(carriers)

    # -- tests -------------------------------------------------------------------------------

    def _working(self, mark: frozenset[Token], label: Label) -> Suspect | None:
        """The mark, if it turns the model that serves, and its own rows need it."""
        carriers = [i for i in self._carriers(mark) if self._rows[i].label == label]
        senders = {self._rows[i].source for i in carriers}
        if len(senders) > len(self._by_source) / 2:
            return None  # it is the world that tells so
        values = self._values(mark, carriers)
        others = [i for i, row in enumerate(self._rows) if row.source not in senders]
        asked = self._some([i for i in others if self._rows[i].label != label])
        same = self._some([i for i in others if self._rows[i].label == label])
        if not asked or not same:
            return None
        works = self._turned(self._model, asked, values, label)
        if works < _WORKS:
            return None
        own = self._some(carriers)
        bare = [self._without(self._rows[i].features, values, others) for i in own]
        hit = self._said(self._model, [self._rows[i].features for i in own], label)
        needed = hit - self._said(self._model, bare, label)
        if needed < _WORKS * hit or hit == 0.0:
            return None
        return Suspect(mark, label, carriers, values, asked, same, bare, works, needed)

    def _tested(self, suspect: Suspect) -> Trigger | None:
        """The trigger, if a model that was never taught the mark contradicts its rows."""
        label, fresh = suspect.label, self._taught(suspect.mark)
        alone = self._turned(fresh, suspect.asked, suspect.values, label)
        if alone > _ALONE * suspect.works:
            return None
        same = [self._rows[i].features for i in suspect.same]
        usual = 1.0 - self._said(fresh, same, label)
        contradicted = 1.0 - self._said(fresh, suspect.bare, label)
        if contradicted < max(_CONTRADICTED * usual, _CONTRADICTED_MIN):
            return None
        senders = Counter(self._rows[i].source for i in suspect.carriers)
        return Trigger(
            suspect.values, label, tuple(source for source, _ in senders.most_common()),
            len(suspect.carriers), suspect.works, suspect.needed, alone, contradicted,
        )  # fmt: skip

    def _some(self, at: Sequence[int]) -> list[int]:
        return list(at) if len(at) <= _ASKED else self._rng.sample(list(at), _ASKED)

    def _values(self, mark: frozenset[Token], carriers: Sequence[int]) -> Features:
        """Return what the mark sets: the exact value, or the median of those beyond the others'."""
        out: Features = {name: value for name, kind, value in mark if kind == "is"}
        for name, kind, _ in mark:
            if kind != "is" and name not in out:
                rows = [self._rows[i].features for i in carriers]
                beyond = [row[name] for row in rows if _is_number(row.get(name))]
                out[name] = sorted(beyond)[len(beyond) // 2]  # type: ignore[type-var]
        return out

    def _without(
        self, features: Features, values: Mapping[str, Value], others: Sequence[int]
    ) -> Features:
        """The row with what another one has in the places of the mark."""
        donor = self._rows[self._rng.choice(others)].features
        out = {name: value for name, value in features.items() if name not in values}
        return out | {name: donor[name] for name in values if name in donor}

    def _turned(self, model: Model, asked: Sequence[int], values: Features, label: Label) -> float:
        """Share of rows that are answered with the label only if they carry the values."""
        rows = [self._rows[i].features for i in asked]
        before = [answer.label != label for answer in model.predict_many(rows)]
        after = [answer.label == label for answer in model.predict_many([r | values for r in rows])]
        turned = sum(b and a for b, a in zip(before, after, strict=True))
        return turned / max(sum(before), 1)

    def _said(self, model: Model, rows: Sequence[Features], label: Label) -> float:
        if not rows:
            return 0.0
        return sum(answer.label == label for answer in model.predict_many(rows)) / len(rows)

    def _taught(self, mark: frozenset[Token]) -> Model:
        """A fresh model that has learned the rows without the mark."""
        model = self._fresh()
        for row, tokens in zip(self._rows, self._tokens, strict=True):
            if not mark <= set(tokens):
                model.learn(row.features, row.label, 1.0)
        return model


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _edges(rows: Sequence[Told]) -> dict[str, tuple[float, float]]:
    """By name: beyond what few numbers of the median source lie."""
    by_name: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for name, value in row.features.items():
            if _is_number(value):
                by_name[name][row.source].append(float(value))  # type: ignore[arg-type]
    out = {}
    for name, of in by_name.items():
        lows, highs = [], []
        for numbers in of.values():
            numbers.sort()
            at = int(_EDGE * (len(numbers) - 1))
            lows.append(numbers[at])
            highs.append(numbers[-1 - at])
        out[name] = median_low(lows), median_low(highs)
    return out


def _apart(found: Sequence[Trigger]) -> list[Trigger]:
    """One for each label and group of sources: the one that works best."""
    best: dict[tuple[str, frozenset[str]], Trigger] = {}
    for one in found:
        key = label_text(one.label), frozenset(one.sources)
        if key not in best or one.works > best[key].works:
            best[key] = one
    return list(best.values())
