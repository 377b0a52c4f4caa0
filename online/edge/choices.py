"""Exports the greedy policy of a model of choices: expected rewards of actions, on a device.

A device has a context and actions, and computes the expected reward of each action, as in the
ranking of a choice, also for actions that have never been seen.  The file therefore contains the
model's hash table by index, and its reader hashes names as the service does
(:mod:`online.models.choices.interactions`).  The container is that of an edgepack, with the body
``choices``:

=========== ================================================================================
columns     names of numbers, those of actions prefixed by ``@``, with center, factor, limit, ends
places      indices of the table's non-zero entries, ascending; weights: one row per index
votes       one row for each case: no context and actions without features, these with features, a
            context and actions without, with features
arms        both mean rewards of each action's id by its hash; ``prior``: of any other action
=========== ================================================================================

:class:`Choices` is the reference reader, which does not use the model; files are verified with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from itertools import islice
from typing import Any, Final

import mmh3
import numpy as np

from online.edge import manifest
from online.edge.errors import PackCorrupt, ParityFailed
from online.edge.export import Exported
from online.edge.lowering.ir import Array, Floats, Tokens
from online.edge.lowering.rows import place, spell
from online.edge.targets import pack
from online.edge.targets.golden import TEXTS
from online.edge.targets.runners import runtime_js
from online.models.choices.interactions import ACTION, split
from online.models.choices.lessons import HEADS
from online.models.experts.linear import EXPERTS
from online.models.limited import LIMIT
from online.models.rewards import ALL, Action, RewardModel
from replay.example import Features

BODY: Final = "choices"
TARGET: Final = "choices"
BOUND: Final = 1e-9
"""Largest error of a file's prediction, as a share of the reward's range."""

ACTIONS_MAX: Final = 20
"""Most actions of a golden choice, taken from the newest rows."""

_TOKEN_BITS: Final = 31
_ID_SEED: Final = 31
_BIAS: Final = 0x9E3779B9
_MASK: Final = 2**64 - 1
_LEFT: Final = 0x9E3779B97F4A7C15
_RIGHT: Final = 0xC2B2AE3D27D4EB4F
_KNOT: Final = 0xA0761D6478BD642F
_SALT: Final = 0xD6E8FEB86659FD93
_KNOTS: Final = 13

Ends = Mapping[str, tuple[float, float, float, float]]
_NO_ENDS: Final = (-math.inf, math.inf, -math.inf, math.inf)


def encode(model: RewardModel, ends: Ends) -> bytes:
    """Encode the model's present state; ``ends`` as in :func:`online.edge.export.export`."""
    recipe, scalers = model._recipe, model._crossing._parts
    moments = {name: scaler.affine(name) for scaler in scalers for name in scaler.known}
    names = sorted(moments)
    table = model._table._now[:, :EXPERTS]
    places = np.flatnonzero(table.any(axis=1))
    sums = model._arms
    ids = sorted(sums._each)
    prior = sums.of((0,)).prior
    means = sums.of(tuple(ids)).means.T if ids else np.zeros((0, 2))
    kinds = [(context, described) for context in (False, True) for described in (False, True)]
    structure = {
        "body": BODY, "columns": names, "text": sorted(recipe.text), "seed": recipe.seed,
        "bits": recipe.bits, "limit": LIMIT, "low": recipe.low, "range": recipe.high - recipe.low,
    }  # fmt: skip
    tables: dict[str, Array] = {
        "center": np.array([moments[name][0] for name in names], "<f8"),
        "factor": np.array([moments[name][1] for name in names], "<f8"),
        "ends": np.array([ends.get(name, _NO_ENDS) for name in names], "<f8").reshape(-1, 4),
        "votes": np.array([model._votes(context=c, described=d) for c, d in kinds], "<f8"),
        "prior": np.array([prior], "<f8"),
        "arms": np.array(means, "<f8").reshape(-1, 2),
        "ids": np.array(ids, "<u4"),
        "places": places.astype("<u4"),
        "weights": table[places].astype("<f4"),
    }
    return pack.contained(structure, tables)


@dataclass(frozen=True, slots=True)
class _Side:
    """Hashed features of a context or action: words with counts, the bias first; and numbers."""

    words: list[int]
    counts: list[float]
    names: list[int]
    z: list[float]

    @property
    def hashes(self) -> Array:
        return np.array([*self.words, *self.names], np.uint64)

    @property
    def numbers(self) -> Floats:
        return np.array([*self.counts, *self.z])


class Choices:
    """Reference reader of a file of choices.  Raises PackCorrupt."""

    def __init__(self, data: bytes) -> None:
        header, tables = pack.parts_of(data)
        try:
            if header["body"] != BODY:
                raise ValueError(f"its body is {header['body']!r}")
            self._read(header, tables)
        except (LookupError, ValueError, TypeError) as error:
            raise PackCorrupt(f"its parts do not fit: {error!r:.200}") from error

    def _read(self, header: Mapping[str, Any], tables: Mapping[str, Array]) -> None:
        n, wide = len(header["columns"]), len(tables["places"])
        shapes = {
            "center": (n,), "factor": (n,), "ends": (n, 4), "votes": (4, ALL), "prior": (1,),
            "arms": (len(tables["ids"]), 2), "weights": (wide, EXPERTS),
        }  # fmt: skip
        if wrong := [name for name, shape in shapes.items() if tables[name].shape != shape]:
            raise ValueError(f"{wrong[0]} has another shape")
        self._header, self._tables = header, tables
        self._column = {name: i for i, name in enumerate(header["columns"])}
        self._arms = dict(zip(tables["ids"].tolist(), tables["arms"].tolist(), strict=True))
        self._prior = [float(tables["prior"][0])] * 2
        self._tokens = Tokens(
            "service", tuple(header["text"]), 1 << _TOKEN_BITS, int(header["seed"])
        )

    def expected(self, context: Mapping[str, Any], actions: Sequence[Action]) -> Floats:
        """The expected reward of each action."""
        x = self._side(context, "")
        forms = [(x.hashes * np.uint64(_LEFT), x.numbers), self._on_knots(x)]
        ids = [mmh3.hash(name, _ID_SEED, signed=False) for name, _ in actions]
        sides = [self._side(features, ACTION) for _, features in actions]
        answers = np.empty((ALL, len(actions)))
        heads = answers[: HEADS * EXPERTS].reshape(HEADS, EXPERTS, -1)
        for i, (hashes, numbers) in enumerate(forms):
            for rival in (0, 1):
                heads[2 * i + rival] = self._sums(hashes, numbers, ids, 2 * i + rival)
        described = any(len(side.numbers) > 1 for side in sides)
        heads[4] = heads[0]
        if described:
            heads[4] = self._crossed(forms[0], sides, ids)
        for head in heads if len(ids) == 1 else heads[::2]:
            head[:] = 1.0 / (1.0 + np.exp(-head))
        for i in (1, 3):
            heads[i] = heads[i - 1] if len(ids) == 1 else _rivals(heads[i])
        answers[HEADS * EXPERTS :] = np.array([self._arms.get(i, self._prior) for i in ids]).T
        kind = 2 * bool(context) + any(features for _, features in actions)
        shares = self._tables["votes"][kind] @ answers
        expected: Floats = self._header["low"] + self._header["range"] * shares
        return expected

    def _side(self, features: Mapping[str, Any], before: str) -> _Side:
        side = _Side([_BIAS], [1.0], [], [])
        numbers: dict[int, float] = {}
        for sent, value in features.items():
            name = before + sent
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if (at := self._column.get(name)) is not None and not math.isnan(value):
                    side.names.append(mmh3.hash(name, self._tokens.seed, signed=False))
                    side.z.append(self._scaled(at, float(value)))
                continue
            for text, number in spell(self._tokens, name, value):
                key, _ = place(self._tokens, text)
                numbers[key] = numbers.get(key, 0.0) + number
        side.words.extend(numbers)
        side.counts.extend(numbers.values())
        return side

    def _scaled(self, at: int, value: float) -> float:
        low, high, least, most = self._tables["ends"][at].tolist()
        value = least if value < low else most if value > high else value
        z = (value - float(self._tables["center"][at])) * float(self._tables["factor"][at])
        limit = float(self._header["limit"])
        return min(max(z, -limit), limit)

    def _on_knots(self, x: _Side) -> tuple[Array, Floats]:
        """Represent each number of the context by its shares of the two nearest knots."""
        hashes = [h * _LEFT & _MASK for h in x.words]
        numbers = list(x.counts)
        for name, z in zip(x.names, x.z, strict=True):
            u = (min(max(z, -3.0), 3.0) + 3.0) / 0.5
            at = min(int(u), _KNOTS - 2)
            for knot, share in ((at, 1.0 - (u - at)), (at + 1, u - at)):
                hashes.append((name * _LEFT + (knot + 1) * _KNOT * _LEFT) & _MASK)
                numbers.append(share)
        return np.array(hashes, np.uint64), np.array(numbers)

    def _sums(self, left: Array, numbers: Floats, ids: Sequence[int], head: int) -> Floats:
        """Sum each expert's weights over the features for each id: shape (EXPERTS, ids)."""
        right = _right(ids, head)
        sums: Floats = np.einsum("f,fie->ei", numbers, self._weights(left[:, None] ^ right))
        return sums

    def _crossed(
        self, x: tuple[Array, Floats], sides: Sequence[_Side], ids: Sequence[int]
    ) -> Floats:
        """Sum each expert's weights over products of context features with action features."""
        (left, told), offsets = x, _right(ids, HEADS - 1)
        outputs = np.empty((EXPERTS, len(ids)))
        for i, side in enumerate(sides):
            right = _right(side.hashes.tolist(), HEADS - 1)
            held = self._weights(left[:, None] ^ right)
            offset = self._weights(left[:1] ^ offsets[i : i + 1])
            outputs[:, i] = np.einsum("f,j,fje->e", told, side.numbers, held) + offset[0]
        return outputs

    def _weights(self, mixed: Array) -> Floats:
        """The weights of each product, by its hash: shape (…, EXPERTS)."""
        mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(_RIGHT)
        wanted = mixed >> np.uint64(64 - self._header["bits"])
        places, weights = self._tables["places"], self._tables["weights"]
        if not len(places):
            return np.zeros((*mixed.shape, EXPERTS))
        at = np.minimum(np.searchsorted(places, wanted), len(places) - 1)
        there = (places[at] == wanted)[..., None]
        held: Floats = np.where(there, weights[at].astype(np.float64), 0.0)
        return held


def _right(hashes: Sequence[int], head: int) -> Array:
    salt = _SALT * head & _MASK
    return np.array([(h ^ salt) * _RIGHT & _MASK for h in hashes], np.uint64)


def _rivals(outputs: Floats) -> Floats:
    powers = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return shares


@dataclass(frozen=True)
class Asked:
    """A golden choice: a context, actions, and the reward that the service expects of each."""

    context: Features
    actions: Sequence[Action]
    expected: Sequence[float]


def golden(model: RewardModel, ends: Ends, rows: Sequence[Features]) -> list[Asked]:
    """Choices from recent rows and generated edge cases, with the model's expected rewards.

    Parameters:
        rows: Contexts with the chosen action, as the journal has them; the newest come last.
    """
    split_rows = [split(row) for row in rows]
    known = {name: features for _, name, features in split_rows if name}
    actions = [*islice(reversed(known.items()), ACTIONS_MAX)] or [("a", {}), ("b", {})]
    contexts = [context for context, _, _ in split_rows] or [{}]
    questions: list[tuple[Features, Sequence[Action]]] = [
        (context, actions) for context in contexts
    ]
    questions += [(context, actions) for context in _odd(model, contexts)]
    questions += [(contexts[-1], some) for some in _odd_actions(actions)]
    return [
        Asked(context, some, model.score(*_within(context, some, ends)).means.tolist())
        for context, some in questions
    ]


def _within(
    context: Features, actions: Sequence[Action], ends: Ends
) -> tuple[Features, list[Action]]:
    """The choice as the service passes it to its model: numbers clipped to their bounds."""

    def bounded(features: Features, before: str) -> Features:
        out = dict(features)
        for name, value in features.items():
            low, high, least, most = ends.get(before + name, _NO_ENDS)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                out[name] = least if value < low else most if value > high else value
        return out

    return bounded(context, ""), [(name, bounded(of, ACTION)) for name, of in actions]


def _odd(model: RewardModel, contexts: Sequence[Features]) -> Iterator[Features]:
    """Contexts with numbers at knots, far off and missing, and with texts never seen."""
    context = contexts[-1]
    yield {}
    for name, held in islice(model._crossing._parts[0]._now.items(), 16):
        spread = 1.0 / held[3] if held[3] else 1.0
        for off in (-1e6, -9.0, -3.0, -0.5, 0.0, 0.5, 2.75, 3.0, 9.0, 1e6):
            yield {**context, name: held[1] + off * spread}
    for name in islice(context, 16):
        yield {key: value for key, value in context.items() if key != name}
    for text in TEXTS:
        for name in (*model._recipe.text[:4], "kind", "名前"):
            if not name.startswith(ACTION):
                yield {**context, name: text}
    yield {**context, "flag": True, "gone": None, "other": False, "a name never seen": 7.5}


def _odd_actions(actions: Sequence[Action]) -> Iterator[Sequence[Action]]:
    """One action alone, one never seen, and actions without features or with others."""
    yield actions[:1]
    yield [*actions, ("never seen", {})]
    yield [(name, {}) for name, _ in actions]
    yield [(name, {**features, "kind": "naïve", "far": 1e30}) for name, features in actions]
    name, features = actions[0]
    for key, value in islice(features.items(), 16):
        yield [(name, {k: v for k, v in features.items() if k != key}), *actions[1:]]
        if isinstance(value, float):
            yield [(name, {**features, key: 1e6 * (1.0 + abs(value))}), *actions[1:]]


def export(
    model: RewardModel, ends: Ends, rows: Sequence[Features], about: Mapping[str, Any]
) -> Exported:
    """A file of choices with golden ones, proved; as of :func:`online.edge.export.export`.

    Raises ParityFailed.
    """
    data = encode(model, ends)
    asked = golden(model, ends, rows)
    exported = Choices(data)
    off = [
        float(np.abs(exported.expected(one.context, one.actions) - one.expected).max())
        / model._range
        for one in asked
    ]
    worst = int(np.argmax(off))
    if not off[worst] <= BOUND:
        raise ParityFailed(TARGET, off[worst], BOUND, worst)
    proof = json.dumps(
        [{"context": a.context, "actions": a.actions, "expected": a.expected} for a in asked],
        sort_keys=True, separators=(",", ":"),
    ).encode()  # fmt: skip
    file, gold = (
        f"{about['model']}.choices.edgepack",
        f"golden-{sha256(proof).hexdigest()[:32]}.json",
    )
    described = {
        "file": file, "size": len(data), "sha256": sha256(data).hexdigest(), "dtype": "float32",
        "runtime": {"name": "choices.js", "min": "ES2020"},
        "parity": {
            "golden": gold, "size": len(proof), "sha256": sha256(proof).hexdigest(),
            "rows": len(asked), "max_abs": off[worst],
        },
    }  # fmt: skip
    whole = {
        "spec": manifest.SPEC, **about, "task": "choose", "classes": [],
        "features": sorted({name for scaler in model._crossing._parts for name in scaler.known}),
        "targets": {TARGET: described},
    }  # fmt: skip
    beside = {"choices.js": (files("online.edge") / "choices.js").read_bytes()}
    return Exported({file: data, gold: proof, "edge.js": runtime_js(), **beside}, whole, {})
