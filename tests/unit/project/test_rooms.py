"""Rooms of `online/`: what may import what is checked."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[3]
PACKAGES: Final = ("benchmarks", "online", "evaluation", "paramserver", "replay", "refusals")
TOP: Final = {"__init__", "__main__", "errors"}
ROOMS: Final = "rooms of online/ import from lower floors only"
PARAMSERVER: Final = "rooms of paramserver/ import from lower floors only"
JOURNAL: Final = "rooms of replay/journal/ import from lower floors only"
HTTP: Final = "rooms of online/http/ import from lower floors only"
TABLES: Final = "tables of rows know no other block"
SERVING: Final = "rooms of online/serving/ import from lower floors only"
REPORT: Final = "a report's numbers do not know its page"
MODELS: Final = "rooms of online/models/ import from lower floors only"
ALONE: Final = "these modules alone import "

WRONG: Final = [  # file, what it imports, the contract that says no
    ("online/serving/serving.py", "import ray", ALONE + "ray"),
    ("paramserver/process/settings.py", "import ray", ALONE + "ray"),
    ("evaluation/metrics.py", "import ray", ALONE + "ray"),
    ("online/serving/operating/status.py", "import fastapi", ALONE + "fastapi"),
    ("online/replica/writer.py", "from starlette.requests import Request", ALONE + "starlette"),
    ("replay/journal/sqlite/journal.py", "import redis", ALONE + "redis"),
    ("online/learning/deltas.py", "import torch", ALONE + "torch"),
    ("evaluation/metrics.py", "from torch import nn", ALONE + "torch"),
    ("online/telemetry/trace.py", "import opentelemetry.trace", ALONE + "opentelemetry"),
    ("online/trust/filtering.py", "from river import linear_model", ALONE + "river"),
    ("online/learning/deltas.py", "from online.replica import writer", ROOMS),
    ("online/settings/config.py", "from online.rows import validator", ROOMS),
    ("online/trust/sources.py", "from online.watch import drift", ROOMS),
    ("online/errors.py", "import online.commands.cli", ROOMS),
    ("online/lonely.py", "import json", ROOMS),
    ("online/commands/operate/load.py", "import benchmarks.fixtures.service", "imports go one way"),
    ("evaluation/metrics.py", "from benchmarks.studies.memory import digits", "imports go one way"),
    ("benchmarks/studies/memory/digits.py", "import online.errors", "studies need no service"),
    ("replay/codec.py", "import online.errors", "imports go one way"),
    ("paramserver/core/server.py", "import redis", "the core knows no framework"),
    ("paramserver/core/server.py", "import paramserver.snapshots.store", PARAMSERVER),
    ("paramserver/snapshots/store.py", "from paramserver.process import lineage", PARAMSERVER),
    ("replay/journal/batch.py", "from replay.journal.sqlite import schema", JOURNAL),
    ("replay/journal/redis/check.py", "from replay.journal.sqlite import proof", JOURNAL),
    ("online/http/openinference/triton.py", "from online.http import openapi", HTTP),
    ("online/serving/defaults.py", "from online.serving.choices import choosing", SERVING),
    ("paramserver/core/tables/ids.py", "from paramserver.core import blocks", TABLES),
    ("evaluation/report/tally.py", "from evaluation.report.page import figures", REPORT),
    ("online/models/features/hashed.py", "from online.models.adapters import linear", MODELS),
    ("online/models/lonely.py", "import json", MODELS),
]


def broken(folder: Path) -> dict[str, str]:
    """Contracts that the packages in the folder break, and what is said of each."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    found = re.findall(r"^(.+?) BROKEN", done.stdout, re.M)
    assert (done.returncode != 0) == bool(found), done.stdout + done.stderr
    said = done.stdout.partition("\nBroken contracts\n")[2]
    parts = re.split(r"^(.+)\n-{5,}$", said, flags=re.M)
    return {name: dict(zip(parts[1::2], parts[2::2], strict=True))[name] for name in found}


def copied(folder: Path) -> Path:
    """The packages' sources and their contracts."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copied(tmp_path)


@pytest.fixture(scope="module")
def noticed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is said of a copy with every wrong import."""
    copy = copied(tmp_path_factory.mktemp("wrong"))
    for file, line, _ in WRONG:
        place = copy / file
        text = place.read_text() if place.exists() else ""
        place.write_text(f"{text}\n\ndef wrong() -> None:\n    {line}\n")
    return broken(copy)


def test_a_copy_breaks_no_contract(copy: Path) -> None:
    assert broken(copy) == {}


@pytest.mark.parametrize(("file", "line", "contract"), WRONG)
def test_an_import_too_many_is_noticed(
    noticed: dict[str, str], file: str, line: str, contract: str
) -> None:
    """By its contract, and by its name."""
    module = file.removesuffix(".py").replace("/", ".")
    (said,) = (text for name, text in noticed.items() if name.startswith(contract))
    if module.endswith(".lonely"):
        assert f"- {module}\n" in said
        return
    _, package, *rest = line.split()
    known = package.split(".")[0] if contract.startswith(ALONE) else package
    names = [known, f"{known}.{rest[-1]}"] if rest else [known]
    assert any(f"{module} -> {name} (l." in said for name in names), said


def test_an_allowance_that_nobody_needs_is_noticed(copy: Path) -> None:
    place = copy / "online" / "rescore" / "stores.py"
    place.write_text(
        re.sub(r"^( *)(import|from) redis.*$", r"\1pass", place.read_text(), flags=re.M)
    )
    with pytest.raises(AssertionError, match="No matches for ignored import"):
        broken(copy)


def test_few_files_stand_in_no_room() -> None:
    assert {path.stem for path in (ROOT / "online").glob("*.py")} <= TOP


def test_what_serve_imports_in_each_process_is_light() -> None:
    heavy = {"pydantic_settings", "river", "torch", "sklearn", "pandas", "httpx", "ray", "pydantic"}
    script = f"import sys; print(*sorted({heavy} & sys.modules.keys()))"
    for module, found in (("service.serve_middleware", set()), ("settings.config", {"pydantic"})):
        done = subprocess.run(
            [sys.executable, "-c", f"import online.{module}\n{script}"],
            capture_output=True, text=True, timeout=240, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert set(done.stdout.split()) == found, module
