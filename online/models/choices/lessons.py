"""Steps of the linear experts for rewarded rows, each based on the rows before it.

What does not depend on the table is computed for all rows at once, so that several rows take less
time than each alone, and the result is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from online.models.choices.interactions import Context, Hashes, Places, Vector, right, settled
from online.models.experts.linear import ADAGRAD, EXPERTS, NORMALISED, Floats
from paramserver.core.tables.pages import Floats32

HEADS: Final = 5
_SALTS: Final[Hashes] = np.array(
    [0xD6E8FEB86659FD93 * i % 2**64 for i in range(HEADS)], dtype=np.uint64
)
_BY_FORM: Final[Hashes] = _SALTS[: HEADS - 1].reshape(2, 2, 1)
"""Salts by form of the context (as it is, on knots) and by head (own, rival)."""

SALT_SHARED: Final = _SALTS[HEADS - 1]
_ADAGRAD: Final[Floats] = np.array(ADAGRAD)[:, None]
_NORMALISED: Final[Floats] = np.array(NORMALISED)
_NUMBERS: Final = 6
_UNTAUGHT: Final = 0.2
"""How much worse a rival's answer counts than the own head's, in a row that teaches it nothing."""


class Ids(NamedTuple):
    """Hashes of the actions' ids for products: (2 forms, 2 heads, ids), and for ``shared``."""

    formed: Hashes
    shared: Hashes


@lru_cache(maxsize=64)
def ids_of(hashes: tuple[int, ...]) -> Ids:
    """Return the hashes for products; cached, so callers must not change them."""
    ids = np.array(hashes, np.uint64)
    return Ids(right(ids ^ _BY_FORM), right(ids ^ SALT_SHARED))


@lru_cache(maxsize=64)
def _columns_of(rivals: tuple[int, ...], chosen: int) -> Ids:
    """Return the hashes of the columns of a row: the action's own, and one of each rival."""
    formed, shared = ids_of(rivals)
    columns = formed[:, 0, chosen : chosen + 1]
    if len(rivals) > 1:
        columns = np.concatenate((columns, formed[:, 1]), axis=1)
    return Ids(columns, shared[chosen : chosen + 1])


class Rewarded(NamedTuple):
    """The lesson of one row: the chosen action, its rivals, the reward, and the weights.

    Attributes:
        rivals: Hashes of the allowed actions' ids; only the chosen one's if they are not known.
        chosen: Index of the chosen one.
        y: Reward in [0, 1].
        weight: Weight of the row for the experts of the chosen action alone.
        of_rivals: Its weight for the rivals.
    """

    rivals: tuple[int, ...]
    chosen: int
    y: float
    weight: float
    of_rivals: float


@dataclass(frozen=True, slots=True)
class Lessons:
    """Rewarded rows of the same shape, in the order in which they are learned.

    Attributes:
        rows: What each says.
        places: Slots of each row: by column (the action's own, then one of each rival) the features
            of the context in both forms; then, if the action has features, by feature of it the
            plain ones of the context, and the offset of its id.  If a row has a slot twice, the
            later step counts.
        forms: The context's values: (rows, 2, features).
        products: Values of the action's features times the context's, and of the offset.
    """

    rows: Sequence[Rewarded]
    places: Places
    forms: Floats
    products: Floats

    @classmethod
    def of(cls, rows: Sequence[Rewarded], x: Context, a: Vector, bits: int) -> Lessons:
        """Make the lessons of rows with these contexts and chosen actions: one each a row.

        All rows must have equally many rivals.
        """
        ids = [_columns_of(row.rivals, row.chosen) for row in rows]
        formed = np.array([one.formed for one in ids])[..., None]
        k, plain, features, columns = len(rows), x.plain, x.sides.shape[1], formed.shape[2]
        size, described = features * columns, a.numbers.shape[1]
        more = described * plain + 1 if described > 1 else 0
        mixed, products = np.empty((k, size + more), np.uint64), np.empty((k, more))
        by_id, sides = mixed[:, :size].reshape(k, columns, features), x.sides[:, None]
        np.bitwise_xor(sides[:, :, :plain], formed[:, 0], out=by_id[:, :, :plain])
        np.bitwise_xor(sides[:, :, plain:], formed[:, 1], out=by_id[:, :, plain:])
        if more:
            crossed = right(a.hashes ^ SALT_SHARED)[:, :, None]
            numbers, ones = a.numbers[:, :, None], x.plain_numbers[:, None]
            shape = k, described, plain
            np.bitwise_xor(sides[:, :, :plain], crossed, out=mixed[:, size:-1].reshape(shape))
            mixed[:, -1] = x.sides[:, 0] ^ np.concatenate([one.shared for one in ids])
            np.multiply(numbers, ones, out=products[:, :-1].reshape(shape))
            products[:, -1] = x.plain_numbers[:, 0]
        return cls(rows, settled(mixed, bits), x.forms, products)

    def teach(self, held: Floats32, at: Places) -> Floats:
        """Learn the rows one after the other; return each expert's answer before each.

        Parameters:
            held: Numbers of the slots, shape (6, slots); they are changed.
            at: By row, the index in ``held`` of each of its slots.

        Returns:
            Expected rewards of the chosen actions: shape (rows, experts).  A row whose rivals are
            not known teaches the rivals nothing, so they must not share in the own heads' success.
        """
        k, features = len(self.rows), self.forms.shape[2]
        size = at.shape[1] - self.products.shape[1]
        columns, crossed = size // features, size < at.shape[1]
        answers = np.empty((k, HEADS, EXPERTS))
        rates = _NORMALISED[:, None] / (1.0 + np.add.reduce(self.forms**2, axis=2))[:, None, :]
        of_products = _NORMALISED / (1.0 + np.add.reduce(self.products**2, axis=1))[:, None]
        index = at[:, None, :] + np.arange(_NUMBERS)[:, None] * held.shape[1]
        flat = held.reshape(-1)  # a view
        steps = np.empty((EXPERTS, at.shape[1]))
        by_id = steps[:, :size].reshape(EXPERTS, columns, features)
        mine = np.empty((EXPERTS, 3))
        for i, (rivals, chosen, y, weight, of_rivals) in enumerate(self.rows):
            now, x = flat.take(index[i]).astype(np.float64), self.forms[i]
            weights = now[:EXPERTS, :size].reshape(EXPERTS, columns, features)
            slopes = x @ weights.transpose(0, 2, 1)  # (experts, forms, columns)
            mine[:, :2] = slopes[:, :, 0]
            mine[:, 2] = now[:EXPERTS, size:] @ self.products[i] if crossed else mine[:, 0]
            to_shares(mine)
            told = answers[i]
            told[0:5:2] = mine.T
            mine -= y
            told[1:4:2] = told[0:4:2] + np.copysign(_UNTAUGHT, mine[:, :2].T)
            mine *= weight
            slopes[:, :, 0] = mine[:, :2]
            if len(rivals) > 1:
                shares = np.ascontiguousarray(slopes[:, :, 1:])
                compete(shares)
                p = shares[:, :, chosen].copy()
                told[1:4:2] = p.T
                shares *= (of_rivals * (1.0 - (1.0 - y) / np.maximum(1.0 - p, 1e-9)))[:, :, None]
                shares[:, :, chosen] = of_rivals * (p - y)
                slopes[:, :, 1:] = shares
            slopes[2:] *= rates[i][:, :, None]
            np.matmul(slopes.transpose(0, 2, 1), x, out=by_id)
            if crossed:
                mine[2:, 2] *= of_products[i]
                np.multiply.outer(mine[:, 2], self.products[i], out=steps[:, size:])
            adagrad = steps[:2]
            squares = now[EXPERTS:]
            squares += adagrad * adagrad
            root = np.sqrt(squares)
            root += 1.0
            adagrad *= _ADAGRAD
            adagrad /= root
            now[:EXPERTS] -= steps
            flat[index[i]] = now.astype(np.float32)
        return answers.reshape(k, -1)


def to_shares(outputs: Floats) -> None:
    """Apply the logistic function in place, by tanh, which does not overflow."""
    outputs *= 0.5
    np.tanh(outputs, out=outputs)
    outputs *= 0.5
    outputs += 0.5


def compete(outputs: Floats) -> None:
    """Apply the softmax over the last axis, in place."""
    outputs -= np.maximum.reduce(outputs, axis=-1, keepdims=True)
    np.exp(outputs, out=outputs)
    outputs /= np.add.reduce(outputs, axis=-1, keepdims=True)
