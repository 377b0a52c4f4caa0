"""The table of learners in small: anchors, and the service's own models."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.quality import prequential as bench
from evaluation.errors import StreamUnusable
from evaluation.prequential import prequential
from evaluation.streams import open_stream
from online.models.selfrate import SelfRate


def test_the_table_of_a_bundled_stream() -> None:
    found = bench.run(None, streams=["phishing"], rows=150)
    assert [line.what for line in found.lines] == list(bench.LEARNERS)
    by = {line.what: line for line in found.lines}
    assert all(line.published is None for line in found.lines)  # of a part there is no figure
    alone = prequential(bench.LEARNERS["ht"]("binary"), _rows(150), "binary").total
    assert (by["ht"].accuracy, by["ht"].kappa_m) == (alone.accuracy, alone.kappa_m)
    assert all(line.us > 0 for line in found.lines)
    text = bench.shown(found)
    assert "phishing: 150 rows" in text


def _rows(n: int) -> list[Any]:
    return list(open_stream("phishing").rows)[:n]


def test_too_few_rows_are_said_to_be_too_few() -> None:
    with pytest.raises(StreamUnusable, match="rows is 0"):
        bench.run(None, streams=["phishing"], rows=0)
    alone = bench.measure("phishing", "nb", None, 0, 8)
    assert alone.lacking == "8 labelled rows, a score needs 30"


def test_served_models_are_told_their_notes() -> None:
    """With late labels `linear` is judged by what it answered; without notes it does worse."""

    class Forgetful(bench.Built):
        def learn_noted(self, x: Any, y: Any, notes: Any) -> None:
            self.learn_one(x, y)

    rows = list(open_stream("bananas").rows)[:3000]
    noted = prequential(
        bench.Built(SelfRate().model_for("binary"), "binary"), rows, "binary", delay=100
    )
    forgot = prequential(
        Forgetful(SelfRate().model_for("binary"), "binary"), rows, "binary", delay=100
    )
    assert noted.total != forgot.total


def test_what_is_left_out_on_long_streams() -> None:
    everybody = bench._fitting("phishing", None, None, full=False)
    assert set(bench.COSTLY) <= set(everybody)
    assert "alma" not in bench._fitting("image_segments", None, None, full=False)
