"""Models that break a promise: the checks of models find each of them out."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from model_recipes import RIVER, rows_of
from msgspec.structs import replace

from online.models.adapters.linear import Linear
from online.models.base import Prediction
from online.models.loading.checks import CheckFailed, check_model, yield_checks
from online.models.selfrate import SelfRate, SelfRateModel
from paramserver.core.blocks import Block, Blocks
from replay.example import Example, Features, Label


class InsertsOnPredict(Linear):
    """Asks river's pipeline itself, whose scaler inserts unknown names."""

    def predict(self, features: Features) -> Prediction:
        probabilities = self.estimator.predict_proba_one(features)
        return Prediction(max(probabilities, key=probabilities.__getitem__), probabilities)


class ManyTakesTheFirstOrder(Linear):
    """Takes each row's values in its own order of names."""

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        names = list(rows[0])
        return super().predict_many([dict(zip(names, x.values(), strict=False)) for x in rows])


class ForgetsIntercept(Linear):
    def cut(self) -> Blocks:
        return {name: block for name, block in super().cut().items() if name != "intercept"}


class ByPosition(Linear):
    """Names the keys of its delta by the order in which it met the features."""

    def __init__(self, estimator: Any) -> None:
        super().__init__(estimator)
        self.order: list[str] = []

    def learn(self, features: Features, label: Label, weight: float) -> None:
        self.order += [name for name in features if name not in self.order]
        super().learn(features, label, weight)

    def cut(self) -> Blocks:
        return {
            name: Block(
                b.kind, {str(self.order.index(k)) if k else k: v for k, v in b.data.items()}
            )
            for name, b in super().cut().items()
        }

    def _named(self, values: Blocks) -> Blocks:
        names = self.order or ["1", "2"]
        return {
            name: Block(b.kind, {names[int(k)] if k else k: v for k, v in b.data.items()})
            for name, b in values.items()
            if b.kind != "digest"
        }

    def rebase(self, values: Blocks) -> None:
        super().rebase(self._named(values))

    def reset(self, values: Blocks) -> None:
        super().reset(self._named(values))


class LosesOpenDelta(Linear):
    def rebase(self, values: Blocks) -> None:
        self.cut()
        super().rebase(values)


class RebaseOverwrites(Linear):
    """Takes values as they are: what was learned since the cut is gone from the answers."""

    def rebase(self, values: Blocks) -> None:
        own = super().cut()
        super().rebase(values)
        self._owed = own

    def cut(self) -> Blocks:
        owed, self._owed = getattr(self, "_owed", {}), {}
        return owed or super().cut()


class CutsTwice(Linear):
    """Gives the last delta again when there is nothing new."""

    def cut(self) -> Blocks:
        new = super().cut()
        self._last = new or getattr(self, "_last", {})
        return self._last


class ResetKeepsNames(Linear):
    def reset(self, values: Blocks) -> None:
        self.cut()
        self.rebase(values)


class KeepsInput(Linear):
    """Learns a row when the next one comes, from the caller's own dict."""

    _row: tuple[Features, Label, float] | None = None

    def learn(self, features: Features, label: Label, weight: float) -> None:
        self._settle()
        self._row = (features, label, weight)

    def _settle(self) -> None:
        if self._row is not None:
            super().learn(*self._row)
            self._row = None

    def cut(self) -> Blocks:
        self._settle()
        return super().cut()

    def reset(self, values: Blocks) -> None:
        self._row = None
        super().reset(values)


class ChangesInput(Linear):
    def predict(self, features: Features) -> Prediction:
        answer = super().predict(features)
        features.pop("1", None)
        return answer


class RunningExtrema(Linear):
    """Pushes one more key with each row."""

    rows = 0

    def learn(self, features: Features, label: Label, weight: float) -> None:
        self.rows += 1
        super().learn({**features, f"row {self.rows}": 0.0}, label, weight)


class SharesBlocks(Linear):
    """Keeps the block that it gives away."""

    def cut(self) -> Blocks:
        self._given = super().cut()
        return self._given

    def predict(self, features: Features) -> Prediction:
        given = getattr(self, "_given", None)
        if given and not any(block.data for block in given.values()):
            return Prediction(None, None)
        return super().predict(features)


class WeightLeavesTraces(Linear):
    def learn(self, features: Features, label: Label, weight: float) -> None:
        for scaler in self._scalers:
            scaler.learn(features)
        super().learn(features, label, weight)


MUTANTS = {
    InsertsOnPredict: "predict changes nothing",
    ManyTakesTheFirstOrder: "many is one by one",
    ForgetsIntercept: "delta composes",
    ByPosition: "replicas agree",
    LosesOpenDelta: "rebase keeps the open delta",
    RebaseOverwrites: "rebase keeps the open delta",
    CutsTwice: "cut empties the delta",
    ResetKeepsNames: "reset is exact",
    KeepsInput: "input is left alone",
    ChangesInput: "input is left alone",
    RunningExtrema: "growth is bounded",
    SharesBlocks: "blocks are not shared",
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_broken_models_are_found_out(mutant: type[Linear]) -> None:
    build, rows = RIVER["logistic"]
    failed = {}
    for check in yield_checks():
        try:
            check(lambda: mutant(build()), rows())
        except CheckFailed as error:
            failed[check.__name__] = error.check
    assert any(name.startswith(MUTANTS[mutant]) for name in failed.values()), failed


def _forgets_losses(model: SelfRateModel) -> None:
    cut = model.cut
    model.cut = lambda: {k: b for k, b in cut().items() if k != "losses"}  # type: ignore[method-assign]


def _reset_keeps_losses(model: SelfRateModel) -> None:
    reset = model.reset

    def kept(values: Blocks) -> None:
        mixture = model._mixture
        reset(values)
        model._mixture = mixture

    model.reset = kept  # type: ignore[method-assign]


def _takes_losses_of_others(model: SelfRateModel) -> None:
    rebase = model.rebase

    def taken(values: Blocks) -> None:
        model._mixture._judged = False
        rebase(values)

    model.rebase = taken  # type: ignore[method-assign]


def _sums_losses(model: SelfRateModel) -> None:
    cut = model.cut

    def summed() -> Blocks:
        blocks = cut()
        if (block := blocks.get("losses")) is not None:
            blocks["losses"] = Block("dense", block.data)
        return blocks

    model.cut = summed  # type: ignore[method-assign]


def _trusts_notes(model: SelfRateModel) -> None:
    def learn_noted(example: Example, weight: float) -> None:
        notes = (example.notes or b"").ljust(8, b"\0")[:8]
        SelfRateModel.learn_noted(model, replace(example, notes=notes), weight)

    model.learn_noted = learn_noted  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("breaks", "check"),
    [
        (_forgets_losses, "delta composes"),
        (_reset_keeps_losses, "reset is exact"),
        (_takes_losses_of_others, "rebase keeps the open delta"),
        (_sums_losses, "delta composes"),
        (_trusts_notes, "notes are optional"),
    ],
)
def test_broken_mixtures_are_found_out(breaks: Callable[[SelfRateModel], None], check: str) -> None:
    def make() -> SelfRateModel:
        model = SelfRate().model_for("binary")
        breaks(model)
        return model

    failed = []
    for each in yield_checks():
        try:
            each(make, rows_of("phishing"))
        except CheckFailed as error:
            failed.append(error.check)
        except (AttributeError, pickle.PicklingError):  # a mutant with a function in it
            continue
    assert any(name.startswith(check) for name in failed), failed


def test_a_weight_refused_too_late_is_found_out() -> None:
    build, rows = RIVER["softmax"]
    with pytest.raises(CheckFailed, match="refused weight"):
        check_model(lambda: WeightLeavesTraces(build()), rows())
