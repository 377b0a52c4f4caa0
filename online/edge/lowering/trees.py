"""Lowers river's Hoeffding trees and adaptive random forests to tables.

A scaler in front is folded into the thresholds: scaling is monotonic, also after rounding, so the
rows that go left are those up to the last number that river would send left.  That number is found
by a search with river's own scaler, so routing stays exact.

A naive Bayes leaf (river's ``do_naive_bayes_prediction``) is a sum over the features that it has
observed: log prior + Σ (½ log(s / π) - s · (z - μ)²) with s = 1 / 2σ².  These details of river are
reproduced: a class without variance in a feature omits that feature, a class of weight 0 votes with
e⁰, and an inactive leaf, or an adaptive one whose majority vote was right more often, predicts its
class shares.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
from river import forest, linear_model, optim, tree
from river.tree.nodes import branch as branches
from river.tree.nodes import hatc_nodes as adaptive
from river.tree.nodes import htc_nodes, htr_nodes
from river.tree.splitter.gaussian_splitter import GaussianSplitter

from evaluation.metrics import Task
from online.edge.errors import ExportRefused
from online.edge.lowering.fronts import Front
from online.edge.lowering.ir import (
    EQUAL,
    MISSING_LEFT,
    ROWS_MAX,
    Columns,
    EdgeModel,
    Floats,
    Forest,
)
from replay.example import Label


def lower_forest(estimator: Any, front: Front, task: Task) -> EdgeModel:
    """Lower a tree or a forest.  Raises ExportRefused."""
    kind = type(estimator).__name__
    if front.tokens is not None:
        raise ExportRefused(kind, "trees can't be exported behind a hasher or one-hot encoder")
    trees, weights = _members(estimator)
    if all(one._root is None for one in trees):
        raise ExportRefused(kind, "none of its trees has learned a row yet")
    median = kind == "ARFRegressor" and estimator.aggregation_method != "mean"
    maker = _Maker(front, task, _classes(trees, task), median=median)
    for one, weight in zip(trees, weights, strict=True):
        maker.add(one, weight)
    return maker.finish()


def _members(estimator: Any) -> tuple[list[Any], list[float]]:
    """The trees, and the factor of each one's prediction."""
    if isinstance(estimator, forest.ARFClassifier):
        metrics = [m.get() for m in estimator._metrics]
        voted = not estimator.disable_weighted_vote
        return list(estimator), [float(m) if voted and m > 0.0 else 1.0 for m in metrics]
    if isinstance(estimator, forest.ARFRegressor):
        if estimator.aggregation_method != "mean":
            return list(estimator), [1.0] * len(estimator)
        n = estimator.n_models
        errors = np.array([m.get() for m in estimator._metrics])
        if estimator.disable_weighted_vote or errors.sum() == 0:
            return list(estimator), [1.0 / n] * len(estimator)
        shares = errors.sum() - errors
        if shares.sum() == 0:
            raise ExportRefused("ARFRegressor", "river weights its single tree 0 / 0")
        return list(estimator), (shares / shares.sum() / n).tolist()
    return [estimator], [1.0]


def _classes(trees: list[Any], task: Task) -> list[Any]:
    """Classes in the order of river's predictions."""
    if task == "regression":
        return []
    ordered: dict[Any, None] = {}
    for one in trees:
        hat = isinstance(one, tree.HoeffdingAdaptiveTreeClassifier)
        ordered.update(dict.fromkeys(one.classes if hat else sorted(one.classes)))
    return list(ordered)


@dataclass
class _Leaf:
    """The tables of a leaf.  ``terms``: (slope, mean) by output, for each column."""

    base: Floats
    bayes: bool = False
    empty: bool = False
    terms: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)


class _Maker:
    """Collects the branches and leaves of trees."""

    def __init__(self, front: Front, task: Task, classes: list[Any], *, median: bool) -> None:
        self._front, self._task, self._classes = front, task, classes
        self._median = median
        self._places = {c: i for i, c in enumerate(classes)}
        self._wide = max(1, len(classes))
        self._roots: list[int] = []
        self._feature: list[str] = []
        self._threshold: list[float] = []
        self._flags: list[int] = []
        self._children: list[list[int]] = []
        self._leaves: list[_Leaf] = []
        self._weights: list[float] = []  # by leaf
        self._votes: list[float] = []  # by tree
        self._words: dict[str, list[str]] = {}

    def add(self, one: Any, weight: float) -> None:
        """Add a tree whose prediction counts ``weight`` times."""
        before = len(self._leaves)
        root = one._root
        if root is None:
            self._roots.append(self._put(_Leaf(np.zeros(self._wide), empty=True)))
        else:
            self._roots.append(self._walk(root, one))
        self._votes.append(weight)
        self._weights += [weight] * (len(self._leaves) - before)
        if len(self._leaves) > ROWS_MAX:
            raise ExportRefused("forest", f"it has more than {ROWS_MAX:,} leaves")

    def _put(self, leaf: _Leaf) -> int:
        self._leaves.append(leaf)
        return ~(len(self._leaves) - 1)

    # -- branches ----------------------------------------------------------------------------

    def _walk(self, root: Any, one: Any) -> int:
        """Add branches and leaves in preorder, without recursion, as trees may be deep."""
        top: list[int] = [0]
        todo: list[tuple[Any, list[int], int]] = [(root, top, 0)]
        while todo:
            item, holder, side = todo.pop()
            if isinstance(item, branches.DTBranch):
                item = self._tests(item)
            if not isinstance(item, list):
                holder[side] = self._put(self._leaf(item, one))
                continue
            (feature, threshold, flags, left, right), *rest = item
            holder[side] = self._branch(feature, threshold, flags)
            children = self._children[-1]
            todo += [(rest or right, children, 1), (left, children, 0)]
        return top[0]

    def _branch(self, feature: Any, threshold: float, flags: int) -> int:
        if not isinstance(feature, str):
            raise ExportRefused("branch", f"the name of feature {feature!r} is no text")
        self._feature.append(feature)
        self._threshold.append(threshold)
        self._flags.append(flags)
        self._children.append([0, 0])
        return len(self._feature) - 1

    def _tests(self, node: Any) -> list[tuple[Any, float, int, Any, Any]]:
        """A branch as binary tests: feature, threshold, flags, left, right.

        Each further test is the right child of the one before.
        """
        if getattr(node, "_alternate_tree", None) is not None:
            raise ExportRefused(type(node).__name__, "it has an alternate tree that votes, too")
        common, _ = node.most_common_path()
        missing = 0 if common else MISSING_LEFT
        name, children = node.feature, node.children
        if isinstance(node, branches.NumericBinaryBranch):
            threshold = self._threshold_before(name, float(node.threshold))
            return [(name, threshold, missing, *children)]
        if isinstance(node, branches.NominalBinaryBranch):
            return [(name, self._code(name, node.value), EQUAL | missing, *children)]
        if isinstance(node, branches.NominalMultiwayBranch):
            # The branch of unknown and missing values comes last, as the right child of all tests.
            others = [i for i in range(len(children)) if i != common] or [common]
            return [
                (name, self._code(name, node._r_mapping[i]), EQUAL, children[i], children[common])
                for i in others
            ]
        raise ExportRefused(type(node).__name__, "this kind of branch can't be exported")

    def _threshold_before(self, name: str, threshold: float) -> float:
        """The largest unscaled number that goes left after scaling."""
        if not self._front.scaled:
            return threshold
        center, factor = self._front.affine(name)
        if factor == 0.0:
            return math.inf if self._front.transform(name, 0.0) <= threshold else -math.inf

        def goes_left(place: int) -> bool:
            return self._front.transform(name, _number(place)) <= threshold

        low = high = _place(center + threshold / factor)
        step = 1
        while goes_left(high):
            low, high, step = high, high + step, step * 2
            if high > _PLACE_MAX:
                return math.inf
        step = 1
        while not goes_left(low):
            low, high, step = low - step, low, step * 2
            if low < -_PLACE_MAX:
                return -math.inf
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if goes_left(middle) else (low, middle)
        return _number(low)

    def _code(self, feature: str, value: Any) -> float:
        if self._front.scaled:
            raise ExportRefused(f"branch on {feature!r}", "it compares categories behind a scaler")
        if isinstance(value, str):
            words = self._words.setdefault(feature, [])
            if value not in words:
                words.append(value)
            return float(words.index(value))
        if isinstance(value, (bool, int, float)):
            return float(value)
        raise ExportRefused(f"branch on {feature!r}", f"{value!r:.40} is neither text nor number")

    # -- leaves ------------------------------------------------------------------------------

    def _leaf(self, node: Any, one: Any) -> _Leaf:
        if self._task == "regression":
            return _regression_leaf(node)
        kind = type(node).__name__
        if not isinstance(node, htc_nodes.LeafMajorityClass):
            raise ExportRefused(kind, "this kind of leaf can't be exported")
        if self._answers_by_bayes(node, one):
            return self._bayes(node)
        total = sum(node.stats.values())
        base = np.zeros(self._wide)
        for label, weight in node.stats.items():
            base[self._places[label]] = weight / total if total else weight
        return _Leaf(base, empty=not base.any())

    def _answers_by_bayes(self, node: Any, one: Any) -> bool:
        """Return whether a leaf predicts by naive Bayes, as its ``prediction`` decides.

        In an adaptive tree, the tree's setting decides.
        """
        if not node.is_active():
            return False
        mode = type(node)
        bayes = isinstance(node, htc_nodes.LeafNaiveBayes)
        by_error = isinstance(node, htc_nodes.LeafNaiveBayesAdaptive)
        if mode is adaptive.AdaLeafClassifier:
            if not node.stats:
                raise ExportRefused(mode.__name__, "a leaf has learned nothing: river raises there")
            bayes = one.leaf_prediction == "nb"
            by_error = one.leaf_prediction == "nba"
        if bayes:
            return bool(node.total_weight >= one.nb_threshold)
        return bool(by_error and node._nb_correct_weight >= node._mc_correct_weight)

    def _bayes(self, node: Any) -> _Leaf:
        total = sum(node.stats.values())
        if not node.stats or total == 0:
            return _Leaf(np.zeros(self._wide), bayes=True, empty=True)
        base = np.full(self._wide, -math.inf)
        terms: dict[str, tuple[Floats, Floats]] = {}
        for name, splitter in node.splitters.items():
            if type(splitter) is not GaussianSplitter:
                kind = type(splitter).__name__
                raise ExportRefused(f"leaf's {kind}", "only Gaussian observers can be exported")
            terms[name] = (np.zeros(self._wide), np.zeros(self._wide))
        for label, weight in node.stats.items():
            place = self._places[label]
            base[place] = math.log(weight / total) if weight > 0 else 0.0
            for name, (slope, mean) in terms.items() if weight > 0 else ():
                density = node.splitters[name]._att_dist_per_class.get(label)
                if density is None or density._var.mean.n <= density._var.ddof:
                    continue
                if (variance := density._var.get()) > 0.0:
                    slope[place], mean[place] = 0.5 / variance, density.mu
        return _Leaf(base, bayes=True, terms={n: t for n, t in terms.items() if t[0].any()})

    # -- tables ------------------------------------------------------------------------------

    def finish(self) -> EdgeModel:
        """Make the model of all trees that were added."""
        kind: Literal["table", "bayes", "linear"] = "table"
        if any(leaf.bayes for leaf in self._leaves):
            kind = "bayes"
        elif any(leaf.terms for leaf in self._leaves):
            kind = "linear"
        used = {*self._feature, *(n for leaf in self._leaves for n in leaf.terms)}
        names = sorted(used)
        at = {n: i for i, n in enumerate(names)}
        words = {n: tuple(w) for n, w in self._words.items()}
        columns = replace(self._front.columns(names), vocabularies=words)
        for name in self._words:
            if any(name in leaf.terms for leaf in self._leaves):
                raise ExportRefused(f"feature {name!r}", "it is text in branches, not in leaves")
        body = self._forest(kind, at)
        if kind == "bayes":
            columns, body = _centered(columns, body)
        return EdgeModel(self._task, self._labels(), columns, None, body)

    def _forest(self, kind: Literal["table", "bayes", "linear"], at: dict[str, int]) -> Forest:
        weights = np.array(self._weights)
        base = np.array([leaf.base for leaf in self._leaves]).reshape(-1, self._wide)
        if kind == "bayes":
            with np.errstate(divide="ignore"):
                for i, leaf in enumerate(self._leaves):
                    if leaf.empty:
                        base[i] = -math.inf
                    elif not leaf.bayes:
                        base[i] = np.log(leaf.base)
        else:
            base = base * weights[:, None]
        terms = [
            (at[name], slope if kind == "bayes" else slope * weight, mean)
            for leaf, weight in zip(self._leaves, self._weights, strict=True)
            for name, (slope, mean) in sorted(leaf.terms.items())
        ]
        means = [mean for _, _, mean in terms] if kind == "bayes" else []
        children = np.array(self._children, dtype=np.int32).reshape(-1, 2)
        return Forest(
            kind=kind,
            roots=np.array(self._roots, dtype=np.int32),
            feature=np.array([at[n] for n in self._feature], dtype=np.int32),
            threshold=np.array(self._threshold, dtype=np.float64),
            flags=np.array(self._flags, dtype=np.int32),
            left=children[:, 0].copy(),
            right=children[:, 1].copy(),
            base=base,
            weights=np.array(self._votes if kind == "bayes" else [], dtype=np.float64),
            term_start=np.cumsum([0, *(len(leaf.terms) for leaf in self._leaves)], dtype=np.int32),
            term_feature=np.array([t[0] for t in terms], dtype=np.int32),
            slope=np.array([t[1] for t in terms]).reshape(-1, self._wide),
            mean=np.array(means).reshape(-1, self._wide),
            median=self._median,
        )

    def _labels(self) -> tuple[Label, ...]:
        """Classes as the service's answers name them."""
        if self._task == "binary":
            if odd := [c for c in self._classes if c not in (0, 1)]:
                raise ExportRefused("classes", f"it has {odd[0]!r} in a binary task")
            return tuple(bool(c) for c in self._classes)
        labels = []
        for c in self._classes:
            c = c.item() if hasattr(c, "item") else c
            labels.append(int(c) if isinstance(c, float) and c.is_integer() else c)
        return tuple(labels)


def _centered(columns: Columns, body: Forest) -> tuple[Columns, Forest]:
    """Centers moved to the middle of the leaves' means, so that float32 means round less."""
    center, mean = columns.center.copy(), body.mean.copy()
    for i in range(len(columns.names)):
        own = body.term_feature == i
        real = mean[own][body.slope[own] > 0]
        if len(real) and columns.factor[i] != 0:
            middle = float(np.median(real))
            center[i] += middle / columns.factor[i]
            mean[own] = np.where(body.slope[own] > 0, mean[own] - middle, 0.0)
    return replace(columns, center=center), replace(body, mean=mean)


def _regression_leaf(node: Any) -> _Leaf:
    kind = type(node).__name__
    if not isinstance(node, htr_nodes.LeafMean):
        raise ExportRefused(kind, "this kind of leaf can't be exported")
    by_mean = not isinstance(node, htr_nodes.LeafModel)
    if isinstance(node, htr_nodes.LeafAdaptive):
        by_mean = node._fmse_mean < node._fmse_model
    if by_mean:
        return _Leaf(np.array([float(node.stats.mean.get())]))
    model = node._leaf_model
    if type(model) is not linear_model.LinearRegression:
        raise ExportRefused(f"{kind}'s {type(model).__name__}", "only LinearRegression can be")
    if type(model.loss) is optim.losses.Poisson:
        raise ExportRefused(f"{kind}.loss", "Poisson's exponential can't be exported")
    weights = {n: float(w) for n, w in model.weights.items() if w != 0}
    terms = {n: (np.array([w]), np.zeros(1)) for n, w in weights.items()}
    return _Leaf(np.array([float(model.intercept)]), terms=terms)


_PLACE_MAX: Final = 0x7FEF_FFFF_FFFF_FFFF


def _place(number: float) -> int:
    """Where a float64 is among all of them in order."""
    number = max(-1.7976931348623157e308, min(1.7976931348623157e308, number))
    (bits,) = struct.unpack("<q", struct.pack("<d", abs(number)))
    return int(bits) if number >= 0 else -int(bits)


def _number(place: int) -> float:
    (number,) = struct.unpack("<d", struct.pack("<q", abs(place)))
    return float(number) if place >= 0 else -float(number)
