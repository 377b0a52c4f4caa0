"""The table of a challenger is bounded as that of the model that serves."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from online.challenger.shadow import Shadow
from online.models.loading.from_settings import load_model
from online.rows.prediction_ids import event_key
from online.settings.config import Settings
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from online.settings.places import open_journal
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict

KEY, MOST, USERS = b"0" * 32, 1_000, 1_600


@pytest.mark.parametrize(
    ("most", "rows"), [(MOST, range(900, MOST + 1)), (None, range(1_500, USERS + 2))]
)
def test_it_has_no_more_rows_than_the_limit(tmp_path: Path, most: int | None, rows: Any) -> None:
    challenger = {"learner": "fm", "params": {"table": True}, "delay": 0.5}
    told = {"name": "m", "task": "binary", "learner": "logreg", "challenger": challenger}
    model, limits = ModelSettings.model_validate(told), Limits(table_rows_max=most)
    settings = Settings(state_dir=tmp_path, models=(model,), limits=limits)
    champion = load_model(model, settings, KEY)
    assert model.challenging is not None
    with contextlib.closing(open_journal(settings)) as journal:
        partition = journal.register("m", "r", champion.spec_hash, 1.0).id
        for begin in range(0, USERS, 200):
            new = []
            for i in range(begin, begin + 200):
                payload = codec.encode(Example({"user": f"user {i}"}, i % 3 == 0))
                key = event_key("event", "t", str(i))
                new.append(NewRow(key, str(i), "t", Verdict.ACCEPTED, payload, 1.0))
            journal.append(partition, begin, new)
        now = [100.0]
        shadow = Shadow(
            settings, model, load_model(model.challenging, settings, KEY), journal,
            rival=champion.spec_hash, now_s=lambda: now[0], monotonic_s=lambda: now[0],
            propose=lambda standing: None,
        )  # fmt: skip
        shadow.begin()
        for _ in range(3 * USERS // 100):
            now[0] += 10.0
            shadow.step()
        shadow.publish()
        learned, server = shadow.learner, shadow._server
        assert learned.tally.digest[0] == USERS
        assert server is not None
        blocks = server._running.serving().server.values.values()
        held = [block.data for block in blocks if block.kind == "rows"]
        (table,) = held
        assert len(table) in rows
        training: Any = learned._training
        assert len(training._machine.lines._table) == len(table)
