"""Requests made from the OpenAPI document, by a tool that others wrote: no 500, and no hang.

The document of a running service says what may be sent; schemathesis sends that, and what may not
be sent, to every operation.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from benchmarks.fixtures.service import Running, service
from online.settings.tokens import ROLES

pytest.importorskip("schemathesis", reason="needs schemathesis")

TOKENS: Final = {role: f"{role}-0123456789abcdefghijkl" for role in ROLES}
SETTINGS: Final[dict[str, Any]] = {
    "replicas": 1,
    "models": [
        {"name": "clicks", "task": "binary", "learner": "logreg"},
        {"name": "prices", "task": "regression", "learner": "linreg"},
    ],
    "limits": {"body_bytes_max": 50_000},
}
ANSWER_S: Final = 90  # an operation may wait for replicas as long as a command's time-out
# 503 is an answer that the document has: a model too old for the caller, a server that restores.
# 413 comes before the schema is looked at: the tool makes bodies of more than 50,000 bytes.
CONFIG: Final = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503]
negative_data_rejection.expected-statuses = ["4xx", "5xx"]
"""
# A schema can't say which values of a body exclude each other, or which snapshots there are.
LEFT_OUT: Final = "positive_data_acceptance"


@pytest.fixture(scope="module")
def free() -> Iterator[Running]:
    with service(SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    """One process, which starts in a second; the long test asks a service on Ray."""
    embedded = {name: value for name, value in SETTINGS.items() if name != "replicas"}
    with service({**embedded, "cluster": "embedded", "tokens": TOKENS}) as running:
        yield running


def attack(
    url: str, document: str, cases: int, headers: Mapping[str, str], *more: str
) -> tuple[str, Counter[int]]:
    """What schemathesis says, and how many answers had each status."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "schemathesis.toml").write_text(CONFIG)
        report = folder / "report.ndjson"
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", document, "--url", url,
            "--checks", "all", "--exclude-checks", LEFT_OUT, "--max-examples", str(cases),
            "--request-timeout", str(ANSWER_S), "--max-response-time", str(ANSWER_S),
            "--seed", "1", "--generation-database", "none",
            "--no-color", "--no-shrink", "--continue-on-failure",
            "--report", "har", "--report-har-path", str(report), *more,
        ]  # fmt: skip
        for header, value in headers.items():
            command += ["--header", f"{header}: {value}"]
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=900, check=False
        )
        assert report.exists(), done.stdout + done.stderr
        entries = json.loads(report.read_text())["log"]["entries"]
        return done.stdout, Counter(entry["response"]["status"] for entry in entries)


def check(output: str, statuses: Counter[int]) -> None:
    """Every operation was tried, and nothing that the tool knows is wrong."""
    print(output[-1500:], dict(sorted(statuses.items())))
    assert "Traceback" not in output
    assert 500 not in statuses
    assert 0 not in statuses, "an answer did not come in time"
    assert "failure" not in output.lower().replace("failures: 0", ""), output
    assert "Tested: 54" in output, "every operation"


@pytest.mark.ray
@pytest.mark.long  # the same operations as with a token
def test_without_tokens(free: Running) -> None:
    output, statuses = attack(free.url, f"{free.url}/openapi.json", 15, {})
    check(output, statuses)
    assert {200, 400, 404, 405, 422} <= statuses.keys()
    assert not statuses.keys() & {401, 403}


@pytest.mark.parametrize("cases", [6, pytest.param(15, marks=pytest.mark.long)])
def test_with_a_token(guarded: Running, cases: int) -> None:
    headers = {"Authorization": f"Bearer {TOKENS['admin']}"}
    output, statuses = attack(guarded.url, f"{guarded.url}/openapi.json", cases, headers)
    check(output, statuses)
    assert {200, 401, 404, 422} <= statuses.keys(), "401: the tool leaves the token out, too"


@pytest.mark.parametrize(
    "role",
    [pytest.param(None, marks=pytest.mark.long), "feedback"],  # in short: 401, above
)
def test_with_a_token_that_is_not_enough(guarded: Running, role: str | None) -> None:
    before = httpx.get(
        f"{guarded.url}/v1/models/clicks",
        headers={"Authorization": f"Bearer {TOKENS['admin']}"},
        timeout=120,
    ).json()
    headers = {} if role is None else {"Authorization": f"Bearer {TOKENS[role]}"}
    output, statuses = attack(
        guarded.url, f"{guarded.url}/openapi.json", 3, headers, "--phases", "examples,coverage"
    )
    assert 500 not in statuses
    assert 0 not in statuses
    assert statuses[401 if role is None else 403] > 100
    assert "Traceback" not in output
    after = httpx.get(
        f"{guarded.url}/v1/models/clicks",
        headers={"Authorization": f"Bearer {TOKENS['admin']}"},
        timeout=120,
    ).json()
    assert after["rewrites"] == before["rewrites"]
