"""A forest that is read back in small steps is the forest that was written down."""

from __future__ import annotations

import pickle
import weakref
from itertools import pairwise
from typing import Any

import pytest
from river import base, datasets, ensemble, forest, linear_model, preprocessing, tree

from online.models.adapters import opaque
from online.models.adapters.opaque import STATE, Opaque
from online.models.base import Stepwise
from online.models.errors import BlobUntrusted, LearnerUnusable
from paramserver.core.blocks import OPAQUE, Block

ROWS: list[tuple[dict[str, Any], bool]] = list(datasets.Phishing())
MODELS = {
    "forest": lambda: forest.ARFClassifier(n_models=5, seed=3),
    "behind a scaler": lambda: preprocessing.StandardScaler() | forest.ARFClassifier(4, seed=1),
    "bag": lambda: ensemble.BaggingClassifier(linear_model.ALMAClassifier(), n_models=3, seed=2),
    "tree": tree.HoeffdingTreeClassifier,
}


def made(name: str, key: bytes = b"k" * 32) -> Opaque:
    model: Any = MODELS[name]()
    return Opaque(model, task="binary", key=key, why_not_mergeable="trees")


@pytest.mark.parametrize("name", MODELS)
def test_it_goes_on_bit_for_bit(name: str) -> None:
    first, copy = made(name), made(name)
    for x, y in ROWS[:500]:
        first.learn(x, y, 1.0)
    values = first.cut()
    assert isinstance(copy, Stepwise)
    list(copy.resetting(values))
    for x, y in ROWS[500:900]:  # what members share, as their random numbers, is shared still
        assert copy.predict(x) == first.predict(x)
        first.learn(x, y, 1.0)
        copy.learn(x, y, 1.0)
    assert pickle.dumps(first.estimator) != b""
    again = made(name)
    again.reset(values)
    whole = made(name)
    list(whole.resetting(values))
    assert [again.predict(x) for x, _ in ROWS[:50]] == [whole.predict(x) for x, _ in ROWS[:50]]


@pytest.mark.parametrize("by_parts", [True, False])
def test_each_step_reads_little(by_parts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 3 * 2**14
    monkeypatch.setattr(opaque, "_READ_BYTES", 2**14)
    if not by_parts:  # the control
        monkeypatch.setattr(opaque, "_parts", lambda _: ())
    first, copy = made("forest"), made("forest")
    for x, y in ROWS[:400]:
        first.learn(x, y, 1.0)
    values = first.cut()
    read: list[int] = []
    unpickle = opaque.ReadOnlyUnpickler

    class Noting:
        """An unpickler that tells how far it has come."""

        def __init__(self, file: Any) -> None:
            self._file, self._itself = file, unpickle(file)

        def load(self) -> Any:
            made = self._itself.load()
            read.append(self._file.tell())
            return made

    monkeypatch.setattr(opaque, "ReadOnlyUnpickler", Noting)
    at = [read[-1] if read else 0 for _ in copy.resetting(values)]
    at.append(len(values[STATE].data))
    longest = max(after - before for before, after in pairwise(at))
    assert (longest <= most) is by_parts, f"{longest} of {at[-1]} bytes in one step"


def test_nothing_is_unpickled_before_the_seal_is_known() -> None:
    first, stranger = made("forest"), made("forest", b"x" * 32)
    first.learn(*ROWS[0], 1.0)
    stranger.learn(*ROWS[1], 1.0)
    copy = made("forest")
    before = pickle.dumps(copy.estimator)
    for data in (stranger.cut()[STATE].data, first.cut()[STATE].data[:-1] + b"?"):
        with pytest.raises(BlobUntrusted):
            list(copy.resetting({STATE: Block(OPAQUE, data)}))
        assert pickle.dumps(copy.estimator) == before


def test_without_a_state_it_is_as_built() -> None:
    copy = made("forest")
    copy.learn(*ROWS[0], 1.0)
    assert list(copy.resetting({})) == []
    assert copy.predict(ROWS[0][0]) == made("forest").predict(ROWS[0][0])


def test_a_copy_is_let_go_of_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = made("forest")
    for x, y in ROWS[:300]:
        copy.learn(x, y, 1.0)
    monkeypatch.setattr(opaque, "_DROPPED", 4)
    leaves = [weakref.ref(leaf) for tree in copy.estimator for leaf in tree._root.iter_leaves()]
    alive = [sum(leaf() is not None for leaf in leaves) for _ in copy.dropping()]
    assert alive[-1] == 0, alive
    assert len(alive) > 1, (alive, len(leaves))


class Client:
    """What holds a secret, and a function that can't be pickled."""

    def __init__(self) -> None:
        self.secret, self.hook = "TOKEN-OF-A-DATABASE", lambda: None


class Counting(base.Classifier):  # type: ignore[misc]
    """A model that says itself what it is pickled as."""

    def __init__(self) -> None:
        self.n, self._clients = 0, [Client()]

    def __getstate__(self) -> dict[str, Any]:
        return {"n": self.n}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.n, self._clients = state["n"], [Client()]

    def learn_one(self, x: Any, y: Any) -> None:
        self.n += 1

    def predict_proba_one(self, x: Any, **kwargs: Any) -> dict[Any, float]:
        return {True: 0.5, False: 0.5}


class Reduced(Counting):
    """The same by another way."""

    __getstate__ = object.__getstate__  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return Reduced, (), {"n": self.n}


@pytest.mark.parametrize("kind", [Counting, Reduced])
def test_what_a_class_leaves_out_of_its_pickle_stays_out(
    kind: type[Counting], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Opaque(kind(), task="binary", key=b"k" * 32, why_not_mergeable="own")
    model.learn({"x": 1.0}, True, 1.0)
    data = model.cut()[STATE].data
    assert b"TOKEN-OF-A-DATABASE" not in data
    copy = Opaque(kind(), task="binary", key=b"k" * 32, why_not_mergeable="own")
    list(copy.resetting({STATE: Block(OPAQUE, data)}))
    assert copy.estimator.n == 1
    monkeypatch.setattr(opaque, "_whole", lambda _: True)  # the control
    with pytest.raises(LearnerUnusable, match="can't be pickled"):
        Opaque(kind(), task="binary", key=b"k" * 32, why_not_mergeable="own")


def test_a_member_that_leaves_its_tree_out_is_not_looked_into() -> None:
    class Rooted(Counting):
        """It would show leaves if it was asked."""

        @property
        def _root(self) -> Any:
            raise AssertionError("its root was read")

    bag = ensemble.BaggingClassifier(linear_model.ALMAClassifier(), n_models=2)
    bag.data[:] = [member := Rooted()]
    assert list(opaque._parts(bag)) == [member]
