"""The rules beside byzfl's own, where an environment with byzfl 0.0.11 is named."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.studies.pushes import rules_stacked as stacked
from benchmarks.studies.pushes.synchronous import Peer, Rule, peer

PYTHON = os.environ.get("BYZFL_PYTHON")
pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="BYZFL_PYTHON names no Python with byzfl==0.0.11"
)

PAIRS: dict[str, tuple[Rule, Callable[[Any], Any]]] = {
    "median": ([("Median", {})], stacked.median),
    "trimmed mean": ([("TrMean", {"f": 3})], lambda x: stacked.trimmed_mean(x, 3)),
    "geometric median": ([("GeometricMedian", {})], stacked.geometric_median),
    "krum": ([("Krum", {"f": 3})], lambda x: stacked.krum(x, 3)),
    "multi-krum": ([("MultiKrum", {"f": 3})], lambda x: stacked.multi_krum(x, 3)),
    "centred clipping": (
        [("CenteredClipping", {"tau": 2.0})],
        lambda x: stacked.centred_clipping(x, tau=2.0),
    ),
    "NNM": ([("NNM", {"f": 3})], lambda x: stacked.nearest_mixed(x, 3)),
    "clipping": ([("Clipping", {"c": 2.0})], lambda x: stacked.clipped(x, 2.0)),
    "ARC": ([("ARC", {"f": 3})], lambda x: stacked.adaptively_clipped(x, 3)),
}


@pytest.fixture(scope="module")
def byzfl() -> Iterator[Peer]:
    with peer(Path(str(PYTHON))) as one:
        yield one


@pytest.mark.parametrize("name", PAIRS)
def test_as_byzfl_does(name: str, byzfl: Peer) -> None:
    theirs, ours = PAIRS[name]
    rng = np.random.default_rng(3)
    for n, d in ((11, 5), (20, 300)):
        x = rng.standard_normal((n, d)).astype(np.float32)
        found, _ = byzfl.ask(theirs, x, double=True)
        assert np.allclose(np.atleast_2d(ours(x)), found, rtol=1e-5, atol=1e-6), (n, d)
