"""A certificate of forgetting says what it counts, and a stranger finds what was changed in it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from online.audit.certificates import digest, faults, public_keys, signed, when
from online.commands.cli import application
from online.rows.prediction_ids import EventKeys

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
PAGE = Path(__file__).parents[3] / "docs" / "audit.md"
NAMES = ("one", "two", "three")
FORMS = EventKeys(near=True), EventKeys(near=False)
EVENTS = [FORMS[i % 2].event("bot", name)[:8].hex() for i, name in enumerate(NAMES)]
SUM = sum(int(event, 16) for event in EVENTS)


def content(**changed: Any) -> dict[str, Any]:
    return {
        "done": "forgotten", "model": "m", "source": "bot", "count": 3, "events": EVENTS,
        "digest_before": digest((10, (7 + SUM) % 2**64)), "digest_after": digest((7, 7)),
        **changed,
    }  # fmt: skip


def test_a_certificate_is_good_and_always_the_same() -> None:
    document = signed(content(), KEY)
    assert faults(document, public_keys([OTHER, KEY])) == []
    assert document == signed(content(), KEY) == json.loads(json.dumps(document))
    assert document["certificate"]["public_key"] == public_keys([KEY])[0]
    assert when(1_000_000_000.5) == "2001-09-09T01:46:40Z"


@pytest.mark.parametrize(
    ("document", "fault"),
    [
        (signed(content(), OTHER), "it is signed by a key that is not this service's"),
        ({**signed(content(), KEY), "signature": "00"}, "its signature is not that of its text"),
        (
            {**signed(content(), KEY), "certificate": signed(content(x=1), KEY)["certificate"]},
            "its signature is not that of its text",
        ),
        (signed(content(events=EVENTS[:2]), KEY), "it counts 3 events and lists 2"),
        (
            signed(content(events=[*EVENTS[:2], EVENTS[0]]), KEY),
            "its events are not hashes, or one is there twice",
        ),
        (
            signed(content(events=[*EVENTS[:2], "0" * 16]), KEY),
            "its events are not the difference of the digests",
        ),
        (
            signed(content(digest_after=digest((6, 7))), KEY),
            "its events are not the difference of the digests",
        ),
        (signed(content(digest_after=None), KEY), "it does not say the digests"),
        ({"certificate": {"format": 2}, "signature": ""}, "its format is 2, this version knows 1"),
        ([], "it is no certificate"),
    ],
)
def test_what_is_wrong_with_one_is_said(document: Any, fault: str) -> None:
    assert faults(document, public_keys([KEY])) == [fault]


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The script that stands in the documents, run without anything of ours."""
    text = PAGE.read_text().partition("```python\n")[2].partition("```")[0]
    assert text.count("\n") <= 30
    (tmp_path / "check.py").write_text(text)

    def run(document: Any, key: str, *names: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "c.json").write_text(json.dumps(document))
        words = [sys.executable, "-P", str(tmp_path / "check.py"), str(tmp_path / "c.json"), key]
        return subprocess.run(
            [*words, *names], capture_output=True, text=True, check=False, cwd=tmp_path
        )

    return run


def test_a_stranger_checks_one_with_the_public_key(
    script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    (key,) = public_keys([KEY])
    done = script(signed(content(), KEY), key, "bot", *NAMES, "four")
    found = [f"{name}: {name in NAMES}" for name in (*NAMES, "four")]
    assert done.stdout.splitlines() == ["3 events of bot: forgotten", *found]
    empty = content(count=0, events=[], digest_before=None, digest_after=None)
    assert script(signed(empty, KEY), key).stdout == "0 events of bot: forgotten\n"
    for document, why in (
        (signed(content(), OTHER), "InvalidSignature"),
        (signed(content(events=[*EVENTS[:2], "0" * 16]), KEY), "not these events"),
        (signed(content(digest_after=digest((6, 7))), KEY), "not so many"),
        (signed(content(events=[*EVENTS[:2], EVENTS[0]]), KEY), "not so many"),
    ):
        assert why in script(document, key).stderr


def test_commands_list_and_verify_them(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY.hex()}\n{OTHER.hex()}\n")
    file = tmp_path / "online.yaml"
    model = {"name": "m", "task": "binary", "learner": "logreg"}
    file.write_text(yaml.safe_dump({"models": [model], "state_dir": str(tmp_path)}))
    folder = tmp_path / "certificates"
    folder.mkdir()
    (folder / "m-3.json").write_text(json.dumps(signed(content(), OTHER)))

    def said(*words: str) -> tuple[int, Any]:
        done = CliRunner().invoke(
            application(), ["certificates", *words, "--config", str(file), "--json"]
        )
        return done.exit_code, json.loads(done.stdout)

    assert said("key") == (0, {"keys": public_keys([KEY, OTHER])})
    code, (row,) = said("list")
    assert (code, row["source"], row["count"], row["faults"]) == (0, "bot", 3, [])
    assert said("verify", str(folder / "m-3.json")) == (0, {"good": True, "faults": []})
    other = said("verify", str(folder / "m-3.json"), "--key", public_keys([KEY])[0])
    assert other == (
        1, {"good": False, "faults": ["it is signed by a key that is not this service's"]}
    )  # fmt: skip
    (folder / "m-4.json").write_text(json.dumps(signed(content(count=4), KEY)))
    code, rows = said("list")
    assert (code, [len(row["faults"]) for row in rows]) == (1, [0, 1])
