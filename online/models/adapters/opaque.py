"""Adapter of any other river estimator and of small Python classes: state is sent as a whole.

Deltas of such models don't merge, so every replica learns all rows in the same order, or one
process learns them for all.  The state is a pickle, and unpickling runs code: the state is sealed
with HMAC-SHA256 under the service's key, bound to the model's structure, and verified before it is
read.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import inspect
import io
import itertools
import pickle
from collections.abc import Iterator, Sequence
from typing import Any, Final

from river import base

from evaluation.metrics import Task
from online.models.adapters.read_only import (
    ReadOnlyUnpickler,
    hides_groups,
    hides_names,
    is_factorised,
    needs_numbers,
    number_of,
    settle,
    surface,
    transformed,
)
from online.models.base import Prediction
from online.models.errors import (
    AnswerRaised,
    AnswerUnusable,
    BlobUntrusted,
    LearnerUnusable,
    WeightUnsupported,
)
from online.models.structure import describe, steps
from paramserver.core.blocks import OPAQUE, Block, Blocks
from replay.example import Features, Label

STATE: Final = "state"
_MAC_BYTES: Final = 32
_STEP_BYTES: Final = 2**19  # bytes hashed in one step: about a millisecond
_READ_BYTES: Final = 2**16  # bytes unpickled in one step (plus one part): about a millisecond
_DROPPED: Final = 32  # parts freed in one step
_CONTEXT: Final = b"online opaque state 1\0"


class Text(str):
    """A class of a multiclass task that is a text: it sorts after all numbers.

    River's trees sort the classes that they know, which Python refuses for numbers and texts; one
    label of the other kind would end all learning and answering.
    """

    __slots__ = ()

    def __lt__(self, other: Any) -> bool:
        return isinstance(other, str) and super().__lt__(other)

    def __gt__(self, other: Any) -> bool:
        return not isinstance(other, str) or super().__gt__(other)


class Opaque:
    """Adapter of an estimator whose state is one sealed pickle.

    Parameters:
        estimator: A river classifier or regressor, or an object with ``predict_proba_one``,
            ``predict_one`` or ``predict`` (the first of them that it has is called), each taking
            the features as a dict, and ``learn_one(features, label)`` if it learns.
        task: Answers are converted to the canonical labels of the task.
        key: Seals the state.
        why_not_mergeable: Why the estimator isn't merged, for operators.
        old_keys: Keys that open states sealed before the key was changed.

    Raises:
        LearnerUnusable: It has no predict method, or it learns and can't be pickled.
    """

    def __init__(
        self,
        estimator: Any,
        *,
        task: Task,
        key: bytes,
        why_not_mergeable: str,
        old_keys: Sequence[bytes] = (),
    ) -> None:
        self.estimator = estimator
        self.structure = getattr(estimator, "online_structure", None) or describe(estimator)
        self.learns = hasattr(estimator, "learn_one")
        self.mergeable = not self.learns  # a frozen model is the same in every replica
        self.why_not_mergeable = why_not_mergeable if self.learns else None
        self._task = task
        self._keys = (key, *old_keys)
        final = steps(estimator)[-1]
        self._asks_proba = task != "regression" and _has_proba(final)
        self._asks_label = not self._asks_proba or not _label_is_argmax(final)
        self._ask = getattr(estimator, "predict_one", None) or getattr(estimator, "predict", None)
        if self._ask is None and not self._asks_proba:
            raise LearnerUnusable(
                type(estimator).__qualname__,
                "it has none of predict, predict_one and predict_proba_one",
                "Give the class one of them, taking the features as a dict",
            )
        self._takes_weight = self.learns and "w" in inspect.signature(final.learn_one).parameters
        self._steps = steps(estimator)
        declared = getattr(estimator, "numeric_only", False)
        self.numeric_only = bool(declared) or needs_numbers(self._steps[0])
        # Steps inside an ensemble can't be called one by one: names not learned are left out.
        self._names: dict[str, None] | None = {} if hides_names(final) else None
        self._copied = hides_groups(final)
        self._texts: dict[str, Text] | None = None
        if task == "multiclass" and isinstance(estimator, base.Base):
            self._texts = {}
        self._taught = not self.learns
        self._changed = False
        self._built = self._pickle() if self.learns else b""
        self._sealed = b""
        self._grouped = self._copied and self.learns
        if self._grouped:  # its groups become read only; other such parts have to be copied
            self.reset({})
            self._copied = hides_groups(self._steps[-1])

    # -- answering ---------------------------------------------------------------------------

    def predict(self, features: Features) -> Prediction:
        """Predict one row; names that a scaler has not learned are left out.

        Raises NotAnswered.
        """
        try:
            return self._predict(features)
        except AnswerUnusable:
            raise
        except Exception as error:  # an estimator may raise anything
            reason = f"{type(error).__name__}: {error}"[:300]
            raise AnswerRaised(reason, self._taught) from error

    def _predict(self, features: Features) -> Prediction:
        x: dict[str, Any] = dict(features)
        if self._names:
            x = {name: value for name, value in x.items() if name in self._names}
        final = self.estimator
        if len(self._steps) > 1:
            for step in self._steps[:-1]:
                x = transformed(step, x)
            final = self._steps[-1]
        first = self._names == {} or (self._grouped and not self._taught)
        if self._copied or first:  # with names that it may insert, or plans of river's pipelines
            final = copy.deepcopy(final)
        if self._task == "regression":
            return Prediction(self._number(self._label(final, x)), None)
        probabilities = self._probabilities(final, x) if self._asks_proba else None
        if probabilities is not None and not self._asks_label:
            best = max(probabilities, key=probabilities.__getitem__) if probabilities else None
            return Prediction(best, probabilities)
        label = self._label(final, x)
        return Prediction(None if label is None else self._canonical(label), probabilities)

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        """Predict each row with :meth:`predict`."""
        return [self.predict(x) for x in rows]

    def _label(self, final: Any, x: dict[str, Any]) -> Any:
        if is_factorised(final):
            return number_of(final, x)
        ask = self._ask if final is self.estimator else final.predict_one
        return ask(x)  # type: ignore[misc]  # __init__ raises if there is none

    def _probabilities(self, final: Any, x: dict[str, Any]) -> dict[Label, float] | None:
        try:
            answer = (surface(final) if is_factorised(final) else final).predict_proba_one(x)
        except NotImplementedError:  # a wrapper around a classifier that has none
            return None
        return {self._canonical(label): float(p) for label, p in answer.items()}

    def _canonical(self, label: Any) -> Label:
        if hasattr(label, "item"):  # a numpy scalar
            label = label.item()
        if self._task == "binary":
            if label in (0, 1):
                return bool(label)
            hint = "Answer True or False (or 1 or 0), or a probability by predict_proba_one"
            raise AnswerUnusable(f"{label!r:.80}", self._task, hint)
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if isinstance(label, bool) or not isinstance(label, (int, str)):
            hint = "Answer text or a whole number"
            raise AnswerUnusable(f"{label!r:.80}", self._task, hint)
        return str(label) if isinstance(label, Text) else label

    def _number(self, value: Any) -> float | None:
        if value is None:
            return None
        try:
            return float(value)
        except (TypeError, ValueError):
            raise AnswerUnusable(f"{value!r:.80}", self._task, "Answer a number") from None

    @property
    def takes_weight(self) -> bool:
        """Return whether rows may have weights other than 1."""
        return self._takes_weight

    # -- learning ----------------------------------------------------------------------------

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Call ``learn_one`` of the estimator with a copy of the row; do nothing without one."""
        if not self.learns:  # the service still scores the row
            return
        if weight != 1.0 and not self._takes_weight:
            raise WeightUnsupported(weight, type(self._steps[-1]).__name__)
        self._changed = True
        if self._names is not None:
            self._names.update(dict.fromkeys(features))
        if self._texts is not None and isinstance(label, str):
            label = self._texts.setdefault(label, Text(label))
        if self._takes_weight and weight != 1.0:
            self.estimator.learn_one(dict(features), label, w=weight)
        else:
            self.estimator.learn_one(dict(features), label)
        settle(self._steps[-1])
        self._taught = True

    def cut(self) -> Blocks:
        """Return the whole state if anything was learned.  Pickling is slow: call it seldom."""
        if not self._changed:
            return {}
        self._sealed = self._seal(self._pickle())
        self._changed = False
        return {STATE: Block(OPAQUE, self._sealed)}

    def rebase(self, values: Blocks) -> None:
        """Set the given state, unless rows were learned since the cut, which will replace it."""
        block = values.get(STATE)
        if block is not None and not self._changed and block.data != self._sealed:
            self._load(block.data)

    def reset(self, values: Blocks) -> None:
        """Set the given state, or that of the model as built.

        Raises BlobUntrusted, before unpickling, if the seal is not valid.
        """
        if not self.learns:
            return
        if (block := values.get(STATE)) is not None:
            self._load(block.data)
        else:
            for _ in self._unpickling(self._built):
                pass
            self._sealed, self._taught = b"", False

    # -- state -------------------------------------------------------------------------------

    def resetting(self, values: Blocks) -> Iterator[None]:
        """Do :meth:`reset` in steps of about a millisecond, or of one part if that takes longer."""
        if not self.learns or (block := values.get(STATE)) is None:
            self.reset(values)
            return
        yield from self._loading(block.data)

    def dropping(self) -> Iterator[None]:
        """Free the state in steps: Python takes milliseconds to free a forest."""
        parts = list(_parts(self.estimator))
        self.estimator = self._ask = None
        self._steps = []
        while parts:
            del parts[-_DROPPED:]
            yield

    def _pickle(self) -> bytes:
        """Pickle leaves and members first, so that each can be read in a step of its own.

        All parts share one memo, so the final dump refers to them.
        """
        file = io.BytesIO()
        pickler = pickle.Pickler(file, protocol=5)
        try:
            for part in _parts(self.estimator):
                pickler.dump(part)
            pickler.dump((self.estimator, self._names))
        except Exception as error:  # a user's __reduce__ may raise anything
            raise LearnerUnusable(
                type(self.estimator).__qualname__,
                f"its state can't be pickled: {error}",
                "Define its classes and functions at the top level of the file, without lambdas",
            ) from error

        return file.getvalue()

    def _unpickling(self, data: bytes) -> Iterator[None]:
        file = io.BytesIO(data)
        unpickler, rested = ReadOnlyUnpickler(file), 0
        made = unpickler.load()
        while (at := file.tell()) < len(data):
            if at - rested >= _READ_BYTES:
                yield
                rested = at
            made = unpickler.load()
        del unpickler  # its memo refers to each object
        yield
        self.estimator, self._names = made
        self._steps = steps(self.estimator)
        self._ask = getattr(self.estimator, "predict_one", None) or getattr(
            self.estimator, "predict", None
        )
        self._changed, self._taught = False, True

    def _mac(self, key: bytes) -> hmac.HMAC:
        structure = hashlib.sha256(self.structure.encode()).digest()
        return hmac.new(key, _CONTEXT + structure, "sha256")

    def _seal(self, data: bytes) -> bytes:
        mac = self._mac(self._keys[0])
        mac.update(data)
        return mac.digest() + data

    def _load(self, sealed: bytes) -> None:
        for _ in self._loading(sealed):
            pass

    def _loading(self, sealed: bytes) -> Iterator[None]:
        """Verify the seal of the whole state, then unpickle it, in steps."""
        seal, data = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
        macs = [self._mac(key) for key in self._keys]
        for i in range(0, len(data), _STEP_BYTES):
            for mac in macs:
                mac.update(data[i : i + _STEP_BYTES])
            yield
        if not any(hmac.compare_digest(seal, mac.digest()) for mac in macs):
            raise BlobUntrusted("its seal is not by this service's key for this model", len(sealed))
        yield from self._unpickling(data)
        self._sealed = sealed


def _parts(estimator: Any) -> Iterator[Any]:
    """Yield the members of an ensemble, and before each tree its leaves, the largest part of it.

    Yields nothing for a class with its own pickling methods: it may leave parts out.
    """
    final = steps(estimator)[-1]
    if not (_whole(estimator) and _whole(final)):
        return
    lists = [value for value in getattr(final, "__dict__", {}).values() if type(value) is list]
    for member in (*itertools.chain(*lists), final):
        root = getattr(member, "_root", None) if _whole(member) else None
        if root is not None and hasattr(root, "iter_leaves"):
            yield from root.iter_leaves()
        if member is not final and hasattr(member, "__dict__"):
            yield member


def _whole(x: Any) -> bool:
    """Return whether the object is pickled by default, with all its attributes."""
    kind = type(x)
    return all(
        getattr(kind, how) is getattr(object, how)
        for how in ("__getstate__", "__reduce__", "__reduce_ex__")
    )


def _has_proba(final: Any) -> bool:
    method = getattr(type(final), "predict_proba_one", None)
    return method is not None and method is not base.Classifier.predict_proba_one


def _label_is_argmax(final: Any) -> bool:
    own = getattr(type(final), "predict_one", None)
    return own is None or own is base.Classifier.predict_one
