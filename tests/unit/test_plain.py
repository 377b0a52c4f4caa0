"""Terminal control characters: refused by the validator, and written out in older rows."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from importlib import resources
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import replica_world as worlds
from jinja2 import Environment
from markupsafe import Markup
from typer.testing import CliRunner

import online.commands.cli
from evaluation.report.page import render as report_page
from online.commands import base
from online.commands.operate import status as status_command
from online.errors import RequestError
from online.messages.structs import FeedbackRequest, PredictRequest
from online.rows.validator import Validator
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from online.telemetry.logs import Lines
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict
from replay.plain import PlainStream, is_plain, plain

ORDERS: Final = [
    "\x00", "\t", "\n", "\r", "\x1b[2J", "\x1b]52;c;aGk=\x07", "\x7f", "\x9b31m", "\u2028",
    "\u202e", "\u2066", "\u200f",
]  # fmt: skip
PLAIN: Final = [
    "",
    "a b",
    "Ω",
    "日本",
    "\N{NO-BREAK SPACE}",
    "👩‍🚀",
    "c:\\x1b",
    "50%",
    "ﷺ",
    "\u0301",
]


@pytest.mark.parametrize("order", ORDERS)
def test_orders_are_written_out(order: str) -> None:
    text = f"a{order}b"
    assert not is_plain(text)
    shown = plain(text)
    assert is_plain(shown)
    assert shown.encode().decode("unicode_escape") == text, "and can be read back"
    assert plain(shown) == shown


@pytest.mark.parametrize("text", PLAIN)
def test_all_other_texts_stay_as_they_are(text: str) -> None:
    assert is_plain(text)
    assert plain(text) == text


@pytest.mark.parametrize("unseen", ["\u200b", "\u200d", "\u00ad", "\ufeff", "\U000e0041"])
def test_names_that_look_alike_are_told_apart(unseen: str) -> None:
    """They are accepted, as before, but an operator sees which one is meant."""
    for text in (f"bot-7{unseen}", f"b{unseen}ot-7"):
        assert is_plain(text)
        assert plain(text).isascii()
        assert plain(text) != "bot-7"
    assert (
        plain("\u0646\u0645\u06cc\u200c\u062f\u0627\u0646\u0645")
        == "\u0646\u0645\u06cc\u200c\u062f\u0627\u0646\u0645"
    )


# -- the validator --------------------------------------------------------------------------------


def event(**more: Any) -> FeedbackRequest:
    return FeedbackRequest(**({"features": {"a": 1.0}, "label": 1.0, "event_id": "e"} | more))


def refused(error: RequestError, field: str) -> bool:
    said = f"{error.message} {error.hint}"
    return (error.status, error.code, error.field) == (422, "invalid_value", field) and (
        is_plain(said) and "control characters" in said
    )


@pytest.mark.parametrize("order", ORDERS)
def test_nothing_of_it_is_taken(tmp_path: Path, order: str) -> None:
    async def scene(world: worlds.World) -> None:
        replica = await world.replica()
        serving = world.serving(replica)
        sent = {
            "source": event(source=f"shop{order}"),
            "event_id": event(event_id=f"e{order}"),
            "features": event(features={"a": 1.0, f"b{order}": 2.0}),
        }
        for field, request in sent.items():
            with pytest.raises(RequestError) as caught:
                await serving.feedback(request)
            assert refused(caught.value, field)
        with pytest.raises(RequestError) as caught:
            await serving.feedback(
                event(source=f"s{order}", id="short", features=None, event_id=None)
            )
        assert refused(caught.value, "source"), "a label that waits for its prediction"
        with pytest.raises(RequestError) as caught:
            serving.predict(PredictRequest(features={f"a{order}": 1.0}))
        assert caught.value.status == 422
        token = serving.predict(PredictRequest(features={"a": 1.0})).id
        with pytest.raises(RequestError) as caught:
            await serving.feedback(
                event(id=token, source=f"s{order}", features=None, event_id=None)
            )
        assert refused(caught.value, "source")
        status, _ = await serving.feedback(event())
        assert status == 200
        partition = replica.writer.partition
        assert len(replica.store.journal.read(partition, 1, 9)) == 1, (
            "and nothing else was recorded"
        )
        await replica.stop(1)

    worlds.play(tmp_path, scene)


def test_a_class_is_a_name_and_a_text_value_is_none() -> None:
    model = ModelSettings.model_validate({"name": "m", "task": "multiclass", "learner": "linear"})
    validator = Validator(model, Limits(), numeric_only=False)
    with pytest.raises(RequestError) as caught:
        validator.label("a\x1b[2Jb", "label")
    assert refused(caught.value, "label")
    assert validator.label("a\x1b[2Jb", "label", recorded=True), "of a row that may be known"
    letter = {"text": "two\nlines\tof a letter"}
    assert validator.features(letter, "features") is letter


@pytest.mark.parametrize("first", ["\x1b", "\u202e"])
def test_a_repeat_of_an_older_row_is_answered(tmp_path: Path, first: str) -> None:
    """Exactly once holds for rows from before the validator was closed, by each of its ways."""

    async def scene(world: worlds.World) -> None:
        replica = await world.replica()
        serving = world.serving(replica)
        for odd in ("source", "event_id", "name"):
            source = first if odd == "source" else "s"
            event_id = odd + (first if odd == "event_id" else "")
            features = {first if odd == "name" else "a": 1.0}
            key = replica.store.keys.event(source, event_id)
            payload = codec.encode(Example(features, 1.0))
            old = NewRow(key, event_id, source, Verdict.ACCEPTED, payload, 1.0)
            (recorded,) = await replica.writer.record([old])
            assert recorded.status == "learned"
            again = event(source=source, event_id=event_id, features=features)
            status, receipt = await serving.feedback(again)
            assert (status, receipt.status, receipt.duplicate) == (200, "duplicate", True)
        await replica.stop(1)

    worlds.play(tmp_path, scene)


# -- where it is shown -----------------------------------------------------------------------


def test_a_log_entry_is_one_line() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log = logging.getLogger("test of lines")
    log.addHandler(handler)
    forged = "bot\n2026-01-01 00:00:00,000 ERROR online: all is lost\x1b[2J"
    log.warning("source %s is quarantined: %s", forged, {"a": 1})
    try:
        raise ValueError(forged)
    except ValueError:
        log.exception("model m")
    text = stream.getvalue()
    assert is_plain(text.replace("\n", ""))
    begun = [line for line in text.splitlines() if re.match(r"\d{4}-", line)]
    assert [line.split(": ")[1][:7] for line in begun] == ["source ", "model m"]
    assert "Traceback" in text
    assert "\\x1b[2J" in text


def test_what_commands_print_is_not_obeyed() -> None:
    beneath = io.StringIO()
    stream = PlainStream(beneath)
    print("a\x1b]0;title\x07\rb\u202ec", file=stream)  # type: ignore[call-overload]
    print("working", end="\r", file=stream, flush=True)  # type: ignore[call-overload]
    assert beneath.getvalue() == "a\\x1b]0;title\\x07\\rb\\u202ec\nworking\r"


def test_the_command_line_prints_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()

    def fail() -> None:
        print("out \x1b[2J")
        raise online.commands.cli.OnlineError("no \x1b[2J")

    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(online.commands.cli, "application", lambda *_: fail)
    with pytest.raises(SystemExit):
        online.commands.cli.main()
    assert out.getvalue() == "out \\x1b[2J\n"
    assert err.getvalue() == "online: no \\x1b[2J\n"


NASTY: Final = "b[/red]ot\x1b[2J\n[bold]x"


def test_lists_of_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets are rich's orders: unescaped they end the command."""
    found = {
        "event_id": NASTY, "source": NASTY, "label": NASTY, "at": 0.0, "row": "1:7",
        "status": "undone",
    }  # fmt: skip
    page = {"events": [found], "cursor": None, "removed": 0, "left": 0}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=page)

    def connect(*_: object) -> httpx.Client:
        return httpx.Client(base_url="http://service", transport=httpx.MockTransport(answer))

    monkeypatch.setattr(base.Context, "connect", connect)
    monkeypatch.setattr(base, "pick", lambda *_: "m")
    done = CliRunner().invoke(online.commands.cli.app, ["rollback", "--undone"])
    assert done.exit_code == 0, done.output
    whole = "".join(done.output.split())
    assert is_plain(done.output.replace("\n", ""))
    assert "[/red]" in whole


def test_readable_data_of_any_depth() -> None:
    data = {"banned": [NASTY, 1, None], NASTY: {"why": NASTY}}
    out = io.StringIO()
    monkey = base.console()
    monkey.file = out
    shown = base.readable(data)
    monkey.print(f"[red]{', '.join(map(str, shown['banned']))}[/red]")
    assert "b[/red]ot\\x1b[2J\\n[bold]x" in out.getvalue().replace("\n", "")
    assert is_plain(
        "".join(map(str, (*shown, *next(v for v in shown.values() if "why" in v).values())))
    )
    assert status_command.readable is base.readable


def test_the_report_shows_names() -> None:
    made = Environment(autoescape=True, finalize=report_page._readable)
    shown = made.from_string("<p>{{ name }}</p>{{ markup }}").render(
        name="a\x1b<b>", markup=Markup("<i>\n</i>")
    )
    assert shown == "<p>a\\x1b&lt;b&gt;</p><i>\n</i>"
    assert "finalize" in Path(report_page.__file__).read_text()


def test_the_page_knows_the_same_characters() -> None:
    text = resources.files("online.http").joinpath("page.html").read_text("utf-8")
    found = re.search(r"const ODD = /(\[.*\])/g", text)
    assert found is not None
    odd = re.compile(json.loads(f'"{found[1]}"'.replace("\\x", "\\u00")))
    for code in range(0x3000):
        expected = not is_plain(chr(code)) and chr(code) not in "\n\t"
        assert bool(odd.match(chr(code))) == expected, hex(code)
