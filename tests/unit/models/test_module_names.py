"""Modules of models that must not move: stored state and the files of programs name them."""

from __future__ import annotations

import importlib
from typing import Final

import pytest

from online.models.detector import Detector, Ranking
from online.models.limited import LimitedScaler
from online.models.structure import describe

IN_STATE: Final = {  # a spec's text or a pickle holds each of them
    LimitedScaler: "online.models.limited.LimitedScaler",
    Detector: "online.models.detector.Detector",
    Ranking: "online.models.detector.Ranking",
}
IN_PROGRAMS: Final = {  # the documents tell programs to import them; a file's hash is in its spec
    "auto": "Auto", "base": "Model", "embedded": "Embedded", "estimator": "Estimator", "fm": "Fm",
    "ftrl": "Ftrl", "network": "Network", "rewards": "Rewards", "selfrate": "SelfRate",
}  # fmt: skip


@pytest.mark.parametrize("kind", IN_STATE)
def test_a_class_in_stored_state_keeps_its_name(kind: type) -> None:
    assert describe(kind) == IN_STATE[kind]


def test_a_list_of_estimators_is_described_as_before() -> None:
    """The text decides whether stored state is taken up."""
    assert describe([LimitedScaler()]) == "[online.models.limited.LimitedScaler()]"


@pytest.mark.parametrize("module", IN_PROGRAMS)
def test_a_program_finds_a_model_where_it_was(module: str) -> None:
    found = getattr(importlib.import_module(f"online.models.{module}"), IN_PROGRAMS[module])
    assert found.__module__ == f"online.models.{module}"
