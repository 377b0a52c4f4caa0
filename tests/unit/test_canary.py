"""A value written at the server is served by every replica; an alarm names one that stops pulling.

The alarms are those of docs/operations.md: what they ask for is exported, and the canary's rule
finds exactly the replica that it is for.
"""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Final

import pytest
import replica_world as worlds

from online import telemetry
from paramserver.actor import ParameterServer, ServerSettings
from paramserver.lineage import Lineage
from paramserver.process import Host

PAGE: Final = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
ALARMS: Final = PAGE.split("### Alarms")[1].split("\n## ")[0]
NAMES: Final = ("a", "b", "c")


def rule() -> tuple[str, float]:
    """Metric and bound of the canary's alarm."""
    found = re.search(r"`max by \(model, replica\) \((\w+)\) > (\d+)` .*the canary", ALARMS)
    assert found is not None
    return found[1], float(found[2])


def firing(text: str) -> list[str]:
    """Replicas that the rule names in an exposition."""
    metric, bound = rule()
    lines = re.findall(rf'^{metric}{{model="m",replica="(\w+)"}} (\S+)$', text, re.M)
    return [replica for replica, value in lines if float(value) > bound]


def shown(server: ParameterServer) -> str:
    """What a scrape gets that asks a replica for all of them."""
    replicas = {
        name: {**(seen["report"] or {}), "contact_age_s": seen["age_s"]}
        for name, seen in server.status()["replicas"].items()
    }
    return telemetry.exposition(
        [{"model": "m", "replicas": replicas, "quality": {}, "learned": 0, "server": None,
          "journal": None, "rewrites": None}]
    )  # fmt: skip


def test_a_probe_reaches_every_replica_and_the_alarm_finds_the_one_that_stopped(
    tmp_path: Path,
) -> None:
    passed_s = 0.0

    async def scene() -> None:
        nonlocal passed_s
        world = worlds.World(tmp_path)
        world.server = ParameterServer(
            Lineage("m", worlds.SPEC, "{}", "sum"), world.journal, str(tmp_path / "snapshots"),
            ServerSettings(), host=Host(monotonic=lambda: time.monotonic() + passed_s),
            background=False,
        )  # fmt: skip
        assert world.server.restore()
        replicas = {}
        clients = {}
        for name in NAMES:
            world.client = clients[name] = worlds.Client(world.server)
            replicas[name] = await world.replica(name)

        async def served(event: str, by: str) -> None:
            await worlds.until(lambda: world.weight(replicas[by], event) == pytest.approx(1), 30)

        await replicas["a"].writer.record([worlds.row("probe1")])
        for name in NAMES:
            await served("probe1", name)
        assert firing(shown(world.server)) == []

        clients["c"].down = True  # it answers, and pulls no more
        await replicas["a"].writer.record([worlds.row("probe2")])
        passed_s = rule()[1] + 1
        await served("probe2", "b")
        met = clients["a"].met, clients["b"].met
        await worlds.until(lambda: clients["a"].met > met[0] and clients["b"].met > met[1], 30)
        assert world.weight(replicas["c"], "probe2") == 0, "from an old model"
        assert world.weight(replicas["c"], "probe1") == pytest.approx(1)
        assert firing(shown(world.server)) == ["c"]

        clients["c"].down = False
        await served("probe2", "c")
        assert firing(shown(world.server)) == []
        for replica in replicas.values():
            await replica.stop(1)

    asyncio.run(scene())


def test_alarms_ask_for_metrics_that_the_page_explains_and_say_what_to_do() -> None:
    rows = [line for line in ALARMS.splitlines() if line.startswith("| `")]
    assert len(rows) >= 18
    table = PAGE.split("### Alarms")[0].split("## Metrics")[1]
    for line in rows:
        alarm, lasts, says, act = (cell.strip() for cell in line.strip("| ").split(" | "))
        for metric in re.findall(r"online_\w+", alarm):
            assert metric in table, metric
        assert re.fullmatch(r"\d+[smhd]", lasts), line
        assert len(says) > 10, line
        assert len(act) > 10, line
