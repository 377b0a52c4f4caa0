"""The names that a model stores something for, and their bound.

Each new name takes memory in every replica, in the server and in snapshots for the life of the
model, and text brings new words for ever.  So a model has room for :attr:`Vocabulary.most` names,
and one source may bring only a share of them.  Beyond the bound a row is learned without its new
names.  The row keeps both what is learned and what was sent, so replaying it drops nothing anew.

A *name* is a key of the model's state: the name of a numeric feature or, in models that hash text,
each hash bucket of a text or of a word in a bag of words.

The set of names is a view of the learned rows and adds up over replicas: its blocks are pushed with
the rows' range.  Names of rows that are decided but not learned yet are *promised* (reserved), so
that many rows at once cannot exceed the bound together; an unused promise expires.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from online.models.features.hashed import Words
from paramserver.core.array_maps import ArrayMap, expect
from paramserver.core.blocks import COUNT, Block, Blocks, Touched
from replay.example import SENT_LABEL, Example, Features, Label, Value, label_text

NAMES: Final = "names.known"
BROUGHT: Final = "names.brought"
NAMED: Final[Touched] = {NAMES: None, BROUGHT: None}
"""The blocks, all keys of each: new names, counted once a replica; and new names by source."""

FULL: Final = "names_full"
"""Prefix of the reason given to the sender of a row that was learned without some names."""

MOST: Final = 100_000
SHARE: Final = 0.5
A_SECOND: Final = 5_000.0
_REST_S: Final = 0.005  # shorter rests are accumulated
_SHOWN: Final = 5  # names in a reason


class _Known(set[str]):
    """Known names; very many are in arrays below, until each is first asked for."""

    __slots__ = ("_below", "_found")

    def __init__(self) -> None:
        super().__init__()
        self._below: ArrayMap | None = None
        self._found = 0  # of those below

    @property
    def count(self) -> int:
        """The number of known names."""
        return len(self) if self._below is None else len(self) - self._found + len(self._below)

    def has(self, names: Collection[str]) -> bool:
        """Whether all of these names are known; those that are, are in the set from then on."""
        if self.issuperset(names):
            return True
        if (below := self._below) is None:
            return False
        fresh = [name for name in names if name not in self]
        expect(below, fresh)
        found = {name for name in fresh if name in below}
        self._found += len(found)
        self.update(found)
        return self.issuperset(names)

    def take(self, names: Mapping[str, object]) -> None:
        """Add the names of values to the known ones."""
        if not self and self._below is None and isinstance(names, ArrayMap):
            self._below = names
        else:
            self.has(names.keys())
            self.update(names)


class Vocabulary:
    """The names of one model, with an open delta; has the methods of a tally.

    Parameters:
        words: How the model makes names from values; None: it uses feature names only.

    Attributes:
        most: Largest number of names.
        share: Share of them that one source may bring, above 0 and at most 1.
        a_second: New names that may be learned in a second: see :meth:`rest_s`.
    """

    def __init__(self, words: Words | None = None) -> None:
        self.most, self.share, self.a_second = MOST, SHARE, A_SECOND
        self._grown = 0  # names learned since the last rest
        self._words = words
        self._known = _Known()
        self._brought: Counter[str] = Counter()
        # Promised names with their expiry and source, by the time for which they are held.
        self._promised: dict[float, dict[str, tuple[float, str]]] = {}
        self._promised_to: Counter[str] = Counter()
        self._open_known: dict[str, int] = {}
        self._open_brought: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._known.count

    # -- bounding rows ------------------------------------------------------------------------

    def taught(
        self, features: Features, source: str, now_s: float, hold_s: float
    ) -> tuple[Features, dict[str, Value] | None]:
        """Return the row as it is to be learned, and what was sent under names left out.

        Returns the same row, and None, if there is room for all of its names.  They are promised
        for ``hold_s`` seconds from ``now_s``, in POSIX seconds.
        """
        keys = self._keys(features)
        if self._known.issuperset(keys) or self._known.has(keys):
            return features, None
        self._end_promises(now_s)
        held = self._promised.setdefault(hold_s, {})
        fresh = [key for key in keys if key not in self._known]
        for promised in self._promised.values():
            fresh = [key for key in fresh if key not in promised]
        room = self._room(source)
        for key in fresh[:room]:
            held[key] = (now_s + hold_s, source)
            self._promised_to[source] += 1
        absent = frozenset(fresh[room:])
        return self._without(features, absent) if absent else (features, None)

    def _room(self, source: str) -> int:
        """Number of new names that the source may bring."""
        left = self.most - len(self) - self._promised_to.total()
        own = int(self.most * self.share) - self._brought[source] - self._promised_to[source]
        return max(min(left, own), 0)

    def _keys(self, features: Features) -> Collection[str]:
        if (words := self._words) is None:
            return features.keys()
        keys: list[str] = []
        ids = words.ids
        for name, value in features.items():
            if (type(value) is float or type(value) is int) and name not in ids:
                keys.append(name)
            else:
                keys.extend(words.keys(name, value))
        return keys

    def _without(
        self, features: Features, absent: Collection[str]
    ) -> tuple[Features, dict[str, Value]]:
        out, left = {}, {}
        for name, value in features.items():
            keys = (name,) if self._words is None else self._words.keys(name, value)
            if absent.isdisjoint(keys):  # type: ignore[attr-defined]
                out[name] = value
                continue
            left[name] = value
            if self._words is not None:
                rest = self._words.without(name, value, absent)
                if rest is not None:
                    out[name] = rest
        return out, left

    # -- promises ----------------------------------------------------------------------------

    def _end_promises(self, now_s: float) -> None:
        for held in self._promised.values():
            while held:
                key = next(iter(held))  # all are held equally long, so the oldest is first
                until, source = held[key]
                if until > now_s:
                    break
                self._end_promise(held, key, source)

    def _end_promise(self, held: dict[str, tuple[float, str]], key: str, source: str) -> None:
        del held[key]
        self._promised_to[source] -= 1
        if not self._promised_to[source]:
            del self._promised_to[source]

    # -- learning ----------------------------------------------------------------------------

    def add(self, example: Example, source: str) -> None:
        """Count the names of one learned row of the source."""
        keys = self._keys(example.features)
        if self._known.issuperset(keys) or self._known.has(keys):
            return
        for key in keys:
            if key in self._known:
                continue
            self._known.add(key)
            self._grown += 1
            self._open_known[key] = 1
            self._brought[source] += 1
            self._open_brought[source] += 1
            for held in self._promised.values():
                if (promise := held.get(key)) is not None:
                    self._end_promise(held, key, promise[1])

    def knows(self, rows: Sequence[Features]) -> bool:
        """Whether rows that have the same names bring no new ones."""
        if self._words is None:
            return self._known.has(rows[0])
        return all(self._known.has(self._keys(x)) for x in rows)

    def knows_numbers(self, names: Sequence[str]) -> bool:
        """Whether rows with any numbers under these names bring no new ones."""
        words, known = self._words, self._known
        if words is None or words.ids.isdisjoint(names):
            return known.has(names)
        known.has([*names])
        return all(not words.keys(n, 0.0) if n in words.ids else n in known for n in names)

    def fresh(self, features: Features) -> list[str]:
        """Names of the row, in its order, for whose values nothing was learned yet."""
        known = self._known
        known.has(self._keys(features))
        return [
            name
            for name, value in features.items()
            if (keys := self._keys({name: value})) and known.isdisjoint(keys)
        ]

    def rest_s(self) -> float:
        """Return how many seconds learning has to pause now, for other models on the same loop.

        New names are work in one piece: they are learned, cut into a delta, and put into every
        other replica.  So a few are learned at a time, and predictions run in between.
        """
        due_s = self._grown / self.a_second
        if due_s < _REST_S:
            return 0.0
        self._grown = 0
        return due_s

    # -- the methods of a tally ----------------------------------------------------------------

    def cut(self) -> Blocks:
        """Return the open delta, and reset it."""
        out: Blocks = {}
        if self._open_known:
            out[NAMES] = Block(COUNT, self._open_known)
        if self._open_brought:
            out[BROUGHT] = Block(COUNT, dict(self._open_brought))
        self._open_known, self._open_brought = {}, Counter()
        return out

    def rebase(self, values: Blocks) -> None:
        """Replace the values of the given keys, and apply the open delta on top."""
        if NAMES in values:
            self._known.take(values[NAMES].data)
        if BROUGHT in values:
            for source, n in values[BROUGHT].data.items():
                self._brought[source] = n + self._open_brought[source]

    def reset(self, values: Blocks) -> None:
        """Replace the state by exactly ``values``, with an empty open delta."""
        self._known, self._brought = _Known(), Counter()
        self._open_known, self._open_brought = {}, Counter()
        self.rebase(values)

    def touched(self) -> Touched:
        """Return the blocks and keys that rows since the last cut may have changed."""
        return {NAMES: dict.fromkeys(self._open_known), BROUGHT: dict.fromkeys(self._open_brought)}

    def mend(self, values: Blocks) -> None:
        """Restore the state from the ``touched`` values; otherwise as ``reset``."""
        self._known.difference_update(self._open_known)
        for source in self._open_brought:
            self._brought[source] = 0
        self._open_known, self._open_brought = {}, Counter()
        self.rebase(values)


class Classes:
    """Bounds the number of a model's labels.  Those it has are known from its learned rows."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._promised: dict[str, float] = {}

    def spelled(self, label: Label, known: Collection[str]) -> Label:
        """The class as it was first sent: 3 and "3" are one class.  ``known``: JSON texts."""
        twin: Label | None = str(label) if isinstance(label, int) else _whole(label)
        if twin is None or (text := label_text(label)) in known or text in self._promised:
            return label
        return twin if label_text(twin) in known or label_text(twin) in self._promised else label

    def admit(self, label: str, known: Collection[str], now_s: float, hold_s: float) -> bool:
        """Whether the label (its JSON text) is known or there is room, in which case it is held."""
        if label in known or label in self._promised:
            return True
        if len(known) + len(self._promised) >= self.most:
            self._promised = {
                text: until
                for text, until in self._promised.items()
                if until > now_s and text not in known
            }
        if len(known) + len(self._promised) >= self.most:
            return False
        self._promised[label] = now_s + hold_s
        return True


def _whole(label: Label) -> int | None:
    """The whole number that a class is the text of; None: of none."""
    if not isinstance(label, str) or not label.removeprefix("-").isdecimal():
        return None
    return number if str(number := int(label[:20])) == label else None


def words_of(model: object) -> Words | None:
    """Return how a model makes names from values; None: from feature names only."""
    words: Words | None = getattr(model, "words", None)
    return words


def left_out(example: Example) -> Mapping[str, Value]:
    """Return what was sent under names that the row is learned without, or with part of a text."""
    if example.raw is None:
        return {}
    features = example.features
    sent = ((n, v) for n, v in example.raw.items() if n != SENT_LABEL)
    return {n: v for n, v in sent if n not in features or isinstance(v, str)}


def full_reason(left: Collection[str]) -> str:
    """Return the reason that the sender of a ``clipped`` row is given."""
    shown = ", ".join(list(left)[:_SHOWN])
    more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    return f"{FULL}: learned without what is new in {shown}{more}: there is no room for it"
