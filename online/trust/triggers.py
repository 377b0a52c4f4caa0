"""Detection of backdoor triggers: values from few sources that force the model to one label.

An attacker who wants the model to err on demand sends rows with a *mark* (a feature name or value
that no other source uses) and the label that the mark should cause.  Neither a single row nor the
accuracy reveals this.  The search looks at recent rows and the serving model for:

1. *a mark*: values (a text, an exact number, a number beyond the usual range) that are frequent in
   one source's rows of a label and rare in the median source's rows; nearly all rows with the mark
   have that label;
2. *effect*: added to other sources' rows of other labels, the mark changes the model's answers to
   the label;
3. *necessity*: without the mark, the answers to its own rows change;
4. *no other cause*: a fresh model trained on the rows without the mark is not affected by it, and
   contradicts the labels of the rows with the mark twice as often as it errs on other rows of that
   label, or is right half as often.

The fourth test distinguishes a trigger from an honest minority: a site or product that only one
source reports has marks, too, but its other features agree with the labels.  If they do not, so
that the mark alone explains the label, the two can't be distinguished, and an alarm is raised.

The search is pure: no clock, and no randomness but ``seed``.  For a few thousand rows it takes some
seconds, most of it for training fresh models, so it runs in its own process.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Final

from online.models.base import Model
from replay.example import Features, Label, Value, label_text

ROWS_MIN: Final = 100
SOURCES_MIN: Final = 8
"""With fewer rows or sources they can't be compared, and nothing is searched."""

TAUGHT_MAX: Final = 40
"""Most fresh models trained in one search, for the marks that affect most rows."""

_MARKED_MIN: Final = 5  # least rows of a source with the mark and the label
_SHARE: Final = 0.05  # least share of them in the source's rows of that label
_LIFT: Final = 4.0  # least ratio of the mark's share to that of the median source
_PURE: Final = 0.9  # least share of the label among the rows with the mark
_TOGETHER: Final = 0.8  # least share of rows with another token for both to be one mark
_WORKS: Final = 0.5  # least share of changed answers, for effect and for necessity
_ALONE: Final = 0.5  # largest effect on the fresh model, relative to that on the serving model
_CONTRADICTED: Final = 2.0  # least ratio of contradictions to the fresh model's usual errors
_CONTRADICTED_MIN: Final = 0.3  # least share of contradicted rows
_SURE: Final = 3.0  # standard errors, where twice the usual errors would be nearly all rows
_ASKED: Final = 200  # most rows on which an effect is measured
_MARKS_MAX: Final = 5  # most marks tried for a source and a label
_EDGE: Final = 0.01  # quantile beyond which a number is "low" or, at the other end, "high"

Token = tuple[str, str, Value]
"""Feature name, kind (``is``, ``high``, ``low``) and value."""


@dataclass(frozen=True, slots=True)
class LearnedRow:
    """A row that the model has learned."""

    source: str
    features: Features
    label: Label


@dataclass(frozen=True, slots=True)
class Trigger:
    """A mark that changes the model's answers, with the sources that sent it.

    Attributes:
        values: The mark's values by feature name.
        label: The answer that it causes.
        sources: Sources of rows with the mark and the label, the most frequent first.
        rows: Number of these rows.
        works: Effect: share of other sources' rows whose answer it changes to the label.
        needed: Necessity: share of its own rows whose answer changes without it.
        alone: The effect on a fresh model that never learned the mark.
        contradicted: Share of its rows whose label such a model contradicts.
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
    """A mark with an effect on the serving model, before the test with a fresh model.

    Attributes:
        carriers: Indices of the rows with the mark and the label.
        asked, same: Indices of other sources' rows with other labels, and with the same label.
        bare: Features of some carriers without the mark.
        values, works, needed: See :class:`Trigger`.
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
    """A search for triggers in learned rows.

    Parameters:
        rows: Learned rows, newest last.
        model: The serving model.
        fresh: Makes an untrained model of the same kind.
        seed: Seed of the random choices of rows.
    """

    def __init__(
        self, rows: Sequence[LearnedRow], model: Model, fresh: Callable[[], Model], *, seed: int = 0
    ) -> None:
        self._rows, self._model, self._fresh = rows, model, fresh
        self._rng = random.Random(seed)
        self._by_source: dict[str, list[int]] = defaultdict(list)
        for i, row in enumerate(rows):
            self._by_source[row.source].append(i)
        self._edges = _edges(rows)
        self._tokens = [tuple(self._tokens_of(row.features)) for row in rows]
        self._shares = self._by_token()
        self._peculiar: dict[str, dict[str, None]] = {}

    def triggers(self) -> list[Trigger]:
        """Return the triggers that were found, those with most rows first."""
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
        """Count the rows with each token, by source."""
        out: dict[Token, Counter[str]] = defaultdict(Counter)
        for row, tokens in zip(self._rows, self._tokens, strict=True):
            for token in tokens:
                out[token][row.source] += 1
        return out

    def _usual(self, token: Token) -> float:
        """Return the share of the median source's rows that have the token."""
        counts = self._shares[token]
        return median_low(counts[s] / len(rows) for s, rows in self._by_source.items())

    def _marks(self) -> Iterable[tuple[frozenset[Token], Label]]:
        """Yield candidate marks: token sets frequent in a source's rows of one label only."""
        for _, at in sorted(self._by_source.items()):
            by_label: dict[str, list[int]] = defaultdict(list)
            for i in at:
                by_label[label_text(self._rows[i].label)].append(i)
            for mine in by_label.values():
                yield from self._marks_of(mine, len(at))

    def _marks_of(self, mine: Sequence[int], of: int) -> Iterable[tuple[frozenset[Token], Label]]:
        counts = Counter(token for i in mine for token in self._tokens[i])
        least = max(_MARKED_MIN, _SHARE * len(mine))
        strange = {t: n for t, n in counts.items() if n >= least and self._is_strange(t, n, of)}
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
        """Return the indices of the rows that have all tokens of a mark."""
        first = min(mark, key=lambda token: self._shares[token].total())
        sources = self._shares[first]
        return [i for s in sources for i in self._by_source[s] if mark <= set(self._tokens[i])]

    def _is_pure(self, mark: frozenset[Token], label: Label) -> bool:
        carriers = self._carriers(mark)
        own = sum(self._rows[i].label == label for i in carriers)
        return own >= _PURE * len(carriers)

    # -- tests -------------------------------------------------------------------------------

    def _working(self, mark: frozenset[Token], label: Label) -> Suspect | None:
        """Test effect and necessity of a mark on the serving model; None if it fails."""
        carriers = [i for i in self._carriers(mark) if self._rows[i].label == label]
        senders = {self._rows[i].source for i in carriers}
        if len(senders) > len(self._by_source) / 2:
            return None  # most sources have it, so it is a property of the data
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
        hit = self._answered_share(self._model, [self._rows[i].features for i in own], label)
        needed = hit - self._answered_share(self._model, bare, label)
        if needed < _WORKS * hit or hit == 0.0:
            return None
        return Suspect(mark, label, carriers, values, asked, same, bare, works, needed)

    def _tested(self, suspect: Suspect) -> Trigger | None:
        """Test a suspect with a fresh model that never learned its mark; None if it passes."""
        label, fresh = suspect.label, self._taught(suspect.mark)
        alone = self._turned(fresh, suspect.asked, suspect.values, label)
        if alone > _ALONE * suspect.works:
            return None
        same = [self._without_peculiar(i) for i in suspect.same]
        usual = 1.0 - self._answered_share(fresh, same, label)
        contradicted = 1.0 - self._answered_share(fresh, suspect.bare, label)
        if not _is_contradicted(contradicted, usual, len(suspect.bare), len(same)):
            return None
        senders = Counter(self._rows[i].source for i in suspect.carriers)
        return Trigger(
            suspect.values, label, tuple(source for source, _ in senders.most_common()),
            len(suspect.carriers), suspect.works, suspect.needed, alone, contradicted,
        )  # fmt: skip

    def _some(self, at: Sequence[int]) -> list[int]:
        return list(at) if len(at) <= _ASKED else self._rng.sample(list(at), _ASKED)

    def _values(self, mark: frozenset[Token], carriers: Sequence[int]) -> Features:
        """Return the mark's values: exact ones, or the median of its "high" or "low" numbers."""
        out: Features = {name: value for name, kind, value in mark if kind == "is"}
        for name, kind, _ in mark:
            if kind != "is" and name not in out:
                rows = [self._rows[i].features for i in carriers]
                beyond = [row[name] for row in rows if _is_number(row.get(name))]
                out[name] = sorted(beyond)[len(beyond) // 2]  # type: ignore[type-var]
        return out

    def _without(
        self, features: Features, values: Collection[str], others: Sequence[int]
    ) -> Features:
        """Return the row, its features of these names replaced by those of a random other row."""
        donor = self._rows[self._rng.choice(others)].features
        out = {name: value for name, value in features.items() if name not in values}
        return out | {name: donor[name] for name in values if name in donor}

    def _without_peculiar(self, i: int) -> Features:
        """Return a row without what only its source often has, as its place has no mark, either.

        A model that knows the places of all other sources would seem to err less than it does.
        """
        row = self._rows[i]
        names = self._peculiar_names(row.source)
        return self._without(row.features, names, range(len(self._rows))) if names else row.features

    def _peculiar_names(self, source: str) -> dict[str, None]:
        if source not in self._peculiar:
            at = self._by_source[source]
            counts = Counter(token for i in at for token in self._tokens[i])
            least = max(_MARKED_MIN, _SHARE * len(at))
            found = [t for t, n in counts.items() if n >= least and self._is_strange(t, n, len(at))]
            self._peculiar[source] = dict.fromkeys(name for name, _, _ in found)
        return self._peculiar[source]

    def _is_strange(self, token: Token, n: int, of: int) -> bool:
        return n / of >= _LIFT * self._usual(token)

    def _turned(self, model: Model, asked: Sequence[int], values: Features, label: Label) -> float:
        """Return the share of rows whose answer changes to the label if the values are set."""
        rows = [self._rows[i].features for i in asked]
        before = [answer.label != label for answer in model.predict_many(rows)]
        after = [answer.label == label for answer in model.predict_many([r | values for r in rows])]
        turned = sum(b and a for b, a in zip(before, after, strict=True))
        return turned / max(sum(before), 1)

    def _answered_share(self, model: Model, rows: Sequence[Features], label: Label) -> float:
        if not rows:
            return 0.0
        return sum(answer.label == label for answer in model.predict_many(rows)) / len(rows)

    def _taught(self, mark: frozenset[Token]) -> Model:
        """Train a fresh model on the rows without the mark."""
        model = self._fresh()
        for row, tokens in zip(self._rows, self._tokens, strict=True):
            if not mark <= set(tokens):
                model.learn(row.features, row.label, 1.0)
        return model


def _is_contradicted(contradicted: float, usual: float, marked: int, same: int) -> bool:
    """Return whether a fresh model contradicts marked rows more often than it usually errs.

    It contradicts them at least twice as often, or, of a label that it often misses, is right half
    as often, and that by more than chance.

    Parameters:
        contradicted, usual: Shares of ``marked`` rows, and of ``same`` other rows of the label.
    """
    twice, half = _CONTRADICTED * usual, 1.0 - (1.0 - usual) / _CONTRADICTED
    if contradicted < max(min(twice, half), _CONTRADICTED_MIN):
        return False
    chance = math.sqrt(usual * (1.0 - usual) * (1.0 / marked + 1.0 / same))
    return contradicted >= twice or contradicted - usual >= _SURE * chance


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _edges(rows: Sequence[LearnedRow]) -> dict[str, tuple[float, float]]:
    """Return the low and high quantile of each numeric feature in the median source."""
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
    """Keep the trigger with the greatest effect for each label and group of sources."""
    best: dict[tuple[str, frozenset[str]], Trigger] = {}
    for one in found:
        key = label_text(one.label), frozenset(one.sources)
        if key not in best or one.works > best[key].works:
            best[key] = one
    return list(best.values())
