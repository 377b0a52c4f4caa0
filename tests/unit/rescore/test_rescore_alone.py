"""Tables that one process scores sooner than Ray would have started, and which those are."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import rescore_world as worlds

from online.commands.publish import rescore
from online.rescore import pool
from online.rescore.plan import Plan
from online.rescore.run import Request, execute
from online.service.on_ray import scoring_ray

_SHOWN = "import sys; print(*{'ray', 'pandas', 'scipy.stats'} & sys.modules.keys())"


def test_a_small_table_is_scored_without_ray(tmp_path: Path) -> None:
    worlds.state_folder(tmp_path)
    path = worlds.write(tmp_path / "t.parquet", worlds.table(1_000))
    words = [
        "online", "rescore", "--config", str(tmp_path / "online.yaml"), "--input", path,
        "--key", "id", "--output", str(tmp_path / "out"), "--json",
    ]  # fmt: skip
    script = f"import sys\nfrom online.commands.cli import main\nsys.argv = {words}\n"
    script += f"try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n{_SHOWN}\n"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240,
        env=worlds.without_tokens(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts, imported = done.stdout.splitlines()
    assert imported == ""
    facts = json.loads(facts)
    assert (facts["rows"], facts["scored"], facts["shards"]) == (1_000, 1_000, 10)
    assert facts["score_s"] > 0
    alone = worlds.digests(tmp_path / "out")
    assert sum(pq.read_table(p).num_rows for p in (tmp_path / "out").rglob("shards/*")) == 1_000
    assert len(alone) == 10


@pytest.fixture
def rays(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses of the Rays that were started or joined, none of which is."""
    found: list[str] = []

    @contextlib.contextmanager
    def ray_for(address: str, *_: Any) -> Iterator[None]:
        found.append(address)
        yield

    monkeypatch.setattr(scoring_ray, "ray_for", ray_for)
    monkeypatch.setattr(pool, "deal", lambda *_: None)
    return found


@pytest.mark.parametrize(
    ("rows", "method", "address", "wanted"),
    [
        (999, "columns", None, []),
        (1_000, "columns", None, ["local"]),
        (999, "trees", None, []),
        (49, "rows", None, []),
        (50, "rows", None, ["local"]),
        (1, "columns", "local", ["local"]),
        (1, "columns", "auto", ["auto"]),
        (9_999, "columns", "host:1", ["host:1"]),
    ],
)
def test_which_tables_are_worth_a_ray(
    tmp_path: Path, rays: list[str], rows: int, method: str, address: str | None, wanted: list[str]
) -> None:
    class Small:
        """As much of a plan as the choice looks at."""

        run = "r"

    Small.rows, Small.method = rows, method  # type: ignore[attr-defined]
    plan: Plan = Small  # type: ignore[assignment]
    with rescore.start(str(tmp_path), address, 2, 1_000, plan, worlds.logreg):
        assert rays == wanted


def test_a_run_without_ray_is_the_run_with_workers(tmp_path: Path) -> None:
    """The same bytes, and what was stopped goes on where it was."""
    path = worlds.write(tmp_path / "t.parquet", worlds.table(500))
    with pytest.raises(KeyboardInterrupt):
        worlds.run([path], tmp_path / "a", stop_after=2)
    outcomes = []
    for output in ("a", "b"):
        asked = Request((path,), str(tmp_path / output), key="id")
        begin = partial(rescore.start, asked.output, None, 2, rescore.RAY_ROWS)
        outcomes.append(
            execute(asked, worlds.source(), begin, store=None, now_s=1_000.0,
                    progress=lambda done, of: None)
        )  # fmt: skip
    assert [outcome.scored for outcome in outcomes] == [300, 500]
    assert worlds.digests(tmp_path / "a") == worlds.digests(tmp_path / "b")
