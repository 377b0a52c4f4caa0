"""Predicts many rows at once with river's Hoeffding trees and adaptive random forests.

Rows descend a tree together: at a branch their indices are divided by one comparison of a column.
The statistics of a naive Bayes leaf (means, variances, log priors) are read from its Python objects
once.  Sums are in river's order, so results are river's bit for bit, except for ``exp`` and a
square that the C library may round differently; rows where this could matter are marked as
doubtful, and are predicted one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from river import forest, tree
from river.tree.nodes import branch as branches
from river.tree.nodes import htc_nodes
from river.tree.nodes.arf_htc_nodes import (
    RandomLeafMajorityClass,
    RandomLeafNaiveBayes,
    RandomLeafNaiveBayesAdaptive,
)
from river.tree.nodes.htc_nodes import LeafMajorityClass, LeafNaiveBayes, LeafNaiveBayesAdaptive
from river.tree.splitter import GaussianSplitter
from river.tree.splitter.nominal_splitter_classif import NominalSplitterClassif

from online.errors import OnlineError
from online.tables.columns import ABSENT, Floats, Index, Mask, Numbers, Rows, Text

_HALF_LOG_TAU: Final = 0.5 * math.log(math.tau)
_ADAPTIVE: Final = (LeafNaiveBayesAdaptive, RandomLeafNaiveBayesAdaptive)
_BAYES: Final = (LeafNaiveBayes, RandomLeafNaiveBayes)
_MAJORITY: Final = (LeafMajorityClass, RandomLeafMajorityClass)
_LARGE: Final = 1e3  # log likelihoods whose last bit may be visible in a probability
Leaf = Callable[[Rows, Index, Floats, Mask], None]


class Unlowerable(OnlineError):
    """A model or a table must be predicted row by row; the argument is the reason."""


def lower(estimator: Any) -> Forest:
    """Convert a tree or forest to arrays.  Raises Unlowerable."""
    if type(estimator) is tree.HoeffdingTreeClassifier:
        return Forest([(estimator, 1.0)], normal=False)
    if type(estimator) is forest.ARFClassifier and len(estimator):
        weighted = not estimator.disable_weighted_vote
        metrics = [metric.get() for metric in estimator._metrics]
        votes = [m if weighted and m > 0.0 else 1.0 for m in metrics]
        return Forest(list(zip(estimator, votes, strict=True)), normal=True)
    raise Unlowerable(f"{type(estimator).__name__} is not among what is lowered")


class Forest:
    """Trees with their votes.

    Attributes:
        labels: Labels of the columns of :meth:`shares`, in the order of river's answer.
    """

    def __init__(self, trees: Sequence[tuple[Any, float]], *, normal: bool) -> None:
        if any(one._root is None for one, _ in trees):
            raise Unlowerable("a tree has learned nothing")
        labels = (label for one, _ in trees for label in sorted(one.classes))
        self.labels = list(dict.fromkeys(labels))
        place = {label: i for i, label in enumerate(self.labels)}
        self._trees = [(_node(one._root, one, place), vote) for one, vote in trees]
        self._normal = normal

    def shares(self, rows: Rows) -> tuple[Floats, Mask]:
        """Probabilities of shape (n, labels), and a mask of doubtful rows.

        Raises Unlowerable if a column does not have the type that a branch compares.
        """
        total = np.zeros((rows.n, len(self.labels)))
        doubt = np.zeros(rows.n, dtype=np.bool_)
        everything = np.arange(rows.n)
        for top, vote in self._trees:
            one = np.zeros_like(total) if self._normal else total
            top(rows, everything, one, doubt)
            if self._normal:
                total += one * vote
        if self._normal:
            sums = np.zeros(rows.n)
            for j in range(len(self.labels)):  # in river's order
                sums += total[:, j]
            np.divide(total, sums[:, None], out=total, where=sums[:, None] > 0)
        return total, doubt


def _node(node: Any, owner: Any, place: dict[Any, int]) -> Leaf:
    """Make a function that fills in the answers of the rows that reach the node."""
    kind = type(node)
    if kind in (*_ADAPTIVE, *_BAYES, *_MAJORITY):
        return _leaf(node, owner, place)
    if kind not in (
        branches.NumericBinaryBranch, branches.NominalBinaryBranch, branches.NominalMultiwayBranch
    ):  # fmt: skip
        raise Unlowerable(f"{kind.__name__} is not among the nodes that are lowered")
    children = [_node(child, owner, place) for child in node.children]
    usual = node.most_common_path()[0]  # the child of rows without the feature
    test = _test(node, usual)

    def divide(rows: Rows, at: Index, out: Floats, doubt: Mask) -> None:
        ways = test(rows, at)
        for i, child in enumerate(children):
            if len(taken := at[ways == i]):
                child(rows, taken, out, doubt)

    return divide


def _test(node: Any, usual: int) -> Callable[[Rows, Index], npt.NDArray[np.int64]]:
    """Make a function that returns the index of the child for each row."""
    feature = node.feature

    def numeric(rows: Rows, at: Index) -> npt.NDArray[np.int64]:
        column = rows.columns.get(feature)
        if column is None:
            return np.full(len(at), usual)
        if isinstance(column, Text):
            raise Unlowerable(f"column {feature} holds text, and a branch compares numbers")
        ways = np.where(column.values[at] <= node.threshold, 0, 1)
        if column.present is not None:
            ways[~column.present[at]] = usual
        return ways

    def nominal(rows: Rows, at: Index) -> npt.NDArray[np.int64]:
        column = rows.columns.get(feature)
        if column is None:
            return np.full(len(at), usual)
        if isinstance(column, Numbers):
            raise Unlowerable(f"column {feature} holds numbers, and a branch compares text")
        if type(node) is branches.NominalBinaryBranch:
            table = [0 if value == node.value else 1 for value in column.values]
        else:
            table = [node._mapping.get(value, usual) for value in column.values]
        return np.array([*table, usual])[column.codes[at]]  # ABSENT is index -1: the last entry

    return numeric if type(node) is branches.NumericBinaryBranch else nominal


def _leaf(node: Any, owner: Any, place: dict[Any, int]) -> Leaf:
    bayes = type(node) in _BAYES and node.total_weight >= owner.nb_threshold
    if type(node) in _ADAPTIVE:
        bayes = node._nb_correct_weight >= node._mc_correct_weight
    if not (bayes and node.is_active()):
        return _constant(htc_nodes.normalize_values_in_dict(node.stats, inplace=False), place)
    total = sum(node.stats.values())
    if not node.stats or total == 0:
        return _constant({}, place)
    for splitter in node.splitters.values():
        if type(splitter) not in (GaussianSplitter, NominalSplitterClassif):
            raise Unlowerable(f"{type(splitter).__name__} is not among what is lowered")
    return _Bayes(node, total, place)


def _constant(answer: dict[Any, float], place: dict[Any, int]) -> Leaf:
    row = np.zeros(len(place))
    for label, share in answer.items():
        row[place[label]] = share

    def fill(rows: Rows, at: Index, out: Floats, doubt: Mask) -> None:
        out[at] = row

    return fill


class _Bayes:
    """A naive Bayes leaf: river's ``do_naive_bayes_prediction`` for many rows."""

    def __init__(self, node: Any, total: float, place: dict[Any, int]) -> None:
        self._stats = dict(node.stats)
        self._columns = np.array([place[label] for label in self._stats])
        self._priors = [math.log(w / total) if w > 0 else None for w in self._stats.values()]
        self._gaussians: dict[str, list[tuple[float, float, float] | None]] = {}
        self._nominals: dict[str, Any] = {}
        self._tables: dict[str, tuple[Sequence[str] | None, list[Floats]]] = {}
        self._order = list(node.splitters)
        for feature, splitter in node.splitters.items():
            if type(splitter) is GaussianSplitter:
                known = splitter._att_dist_per_class
                self._gaussians[feature] = [_gaussian(known.get(label)) for label in self._stats]
            else:
                self._nominals[feature] = splitter

    def __call__(self, rows: Rows, at: Index, out: Floats, doubt: Mask) -> None:
        votes = np.zeros((len(at), len(self._stats)))
        for c, prior in enumerate(self._priors):
            votes[:, c] = 0.0 if prior is None else prior
        for feature in self._order:  # in river's order, for equal rounding
            if (column := rows.columns.get(feature)) is not None:
                self._add(votes, feature, column, at)
        most = votes.max(axis=1, keepdims=True)
        powers = np.exp(votes - most)
        sums = np.zeros(len(at))
        for c in range(powers.shape[1]):
            sums += powers[:, c]
        shares = np.exp(votes - (most + np.log(sums)[:, None]))
        out[at[:, None], self._columns] = shares
        doubt[at] |= (np.abs(most[:, 0]) > _LARGE) & (shares.max(axis=1) < 1.0)

    def _add(self, votes: Floats, feature: str, column: Numbers | Text, at: Index) -> None:
        """Add the log likelihoods of one feature."""
        here = None if column.present is None else column.present[at]
        gaussians = self._gaussians.get(feature)
        if isinstance(column, Text):
            if gaussians is not None:
                raise Unlowerable(f"column {feature} holds text, and a leaf has its moments")
            codes = column.codes[at]
            table = self._table(feature, column.values)
            for c, prior in enumerate(self._priors):
                if prior is not None:
                    votes[:, c] += table[c][codes]
            return
        if gaussians is None:
            raise Unlowerable(f"column {feature} holds numbers, and a leaf counts texts")
        x = column.values[at]
        for c, (prior, known) in enumerate(zip(self._priors, gaussians, strict=True)):
            if prior is None or known is None:
                continue
            mean, by, log_deviation = known
            off = x - mean
            log_p = off * off / by - _HALF_LOG_TAU - log_deviation
            votes[:, c] += log_p if here is None else np.where(here, log_p, 0.0)

    def _table(self, feature: str, values: Sequence[str]) -> list[Floats]:
        """Return for each class the log likelihood of each text, and then of a missing text.

        The table is cached while the texts are the same, as they are within a row group.
        """
        known_values, made = self._tables.get(feature, (None, []))
        if known_values == values:
            return made
        splitter = self._nominals[feature]
        out = []
        for label in self._stats:
            known = splitter._att_dist_per_class.get(label, {})
            total = sum(known.values())
            shares = [known.get(value, 0.0) / total if total else 0.0 for value in values]
            logs = [math.log(share) if share > 0 else 0.0 for share in shares]
            out.append(np.array([*logs, 0.0]))
        assert ABSENT == -1  # so it selects the last entry
        self._tables[feature] = (list(values), out)
        return out


def _gaussian(known: Any) -> tuple[float, float, float] | None:
    """Mean, -2 x variance and log deviation, as in river's ``Gaussian.log_pdf``."""
    if known is None:
        return None
    var = known._var
    n = var.mean.n
    if n <= var.ddof or not (variance := var._S / (n - var.ddof)) > 0.0:
        return None
    return var.mean._mean, -2.0 * variance, 0.5 * math.log(variance)
