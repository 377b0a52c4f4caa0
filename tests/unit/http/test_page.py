"""The page at `/`: one file, nothing from outside, and no way for data to become markup."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from html.parser import HTMLParser
from importlib import resources
from typing import Final

import httpx
import pytest
from fastapi import FastAPI

from evaluation.summary import Summary
from online.decide.choice_metrics import Choices
from online.http.routes.front import add_front, page

PAGE: Final = resources.files("online.http").joinpath("page.html").read_text(encoding="utf-8")
SVG: Final = "http://www.w3.org/2000/svg"

_MARKUP_SINKS: Final = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser"
    r"|\beval\(|new Function|setHTML|srcdoc"
)


class _Tags(HTMLParser):
    """Every tag with its attributes, and the text of the scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts = ""
        self._in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts += data

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False


def _parsed(page: str) -> _Tags:
    tags = _Tags()
    tags.feed(page)
    return tags


def check_self_contained(page: str) -> None:
    """Nothing is fetched but the service's own paths; the browser is told to refuse the rest."""
    outside = page.replace(SVG, "")
    assert not re.search(r"https?:|['\"(=\s]//[\w.]|\bcdn\b|@import", outside)
    for tag, attributes in _parsed(page).tags:
        for name in ("src", "href", "action", "data", "srcset"):
            value = attributes.get(name)
            assert value is None or re.match(r"[a-z]+$|data:", value), (tag, name, value)
    policy = next(
        a["content"] for t, a in _parsed(page).tags if "content-security-policy" in _equiv(a)
    )
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy


def _equiv(attributes: dict[str, str | None]) -> str:
    return (attributes.get("http-equiv") or "").lower()


def check_no_injection(page: str) -> None:
    """Data becomes text or an attribute that is no handler and no address."""
    parsed = _parsed(page)
    for tag, attributes in parsed.tags:
        assert not [n for n in attributes if n.startswith("on")], tag
    assert not _MARKUP_SINKS.search(parsed.scripts)
    assert not re.search(r"\bon[a-z]+\s*=[^=>]|setAttribute\(\s*[\"'](on|href|src)", parsed.scripts)
    assert not re.search(r"\{[^{}]*\b(href|src|on\w+)\s*:", parsed.scripts)
    assert "textContent" in parsed.scripts


CHECKS: Final = (check_self_contained, check_no_injection)


@pytest.mark.parametrize("check", CHECKS)
def test_page_keeps(check: Callable[[str], None]) -> None:
    check(PAGE)


@pytest.mark.parametrize("check", CHECKS)
def test_the_page_of_choices_keeps(check: Callable[[str], None]) -> None:
    check(resources.files("online.http").joinpath("choose.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("check", "old", "new"),
    [
        (check_self_contained, "</head>", '<script src="//cdn.example/x.js"></script></head>'),
        (check_self_contained, "</style>", "@import 'x.css';</style>"),
        (check_self_contained, "</head>", '<link rel="stylesheet" href="style.css"></head>'),
        (check_self_contained, 'href="docs"', 'href="https://docs.example"'),
        (check_self_contained, 'href="docs"', 'href="/docs"'),
        (check_self_contained, "default-src 'none'", "default-src *"),
        (check_no_injection, "node.textContent = text", "node.innerHTML = text"),
        (check_no_injection, "<body>", '<body onload="start()">'),
        (check_no_injection, 'el("h3", {}, "Replicas")', 'el("a", { href: model.model }, "x")'),
        (check_no_injection, "follow();\n</script>", "window.onload = follow;\n</script>"),
    ],
)
def test_the_checks_find(check: Callable[[str], None], old: str, new: str) -> None:
    assert old in PAGE
    with pytest.raises(AssertionError):
        check(PAGE.replace(old, new))


def test_every_metric_that_it_shows_exists() -> None:
    script = _parsed(PAGE).scripts
    known = {field.name for field in fields(Summary)} | set(Choices(0.0, 1.0, 1).rules())
    shown = set(re.findall(r"\bq(?:uality)?\.(\w+)", script))
    shown |= set(re.findall(r'score: "(\w+)"', script)) | set(re.findall(r'\[\["(\w+)"', script))
    assert {"accuracy", "mae", "kappa_m", "kappa_t", "majority", "mean_mae"} <= shown
    assert shown <= known


def test_it_says_what_is_asked_of_it() -> None:
    script = _parsed(PAGE).scripts
    assert "window.location.origin" in script
    assert "known ? known.features : { a: 1.5, b: 2.5 }" in script, "the model's own names"
    states = ("No feedback yet", "does not answer", "no contact", "incident", "age_ms")
    for needed in (*states, "Frozen:", "undone, and kept", "used_ratio", "measuring"):
        assert needed in script


def test_names_of_strangers_are_no_commands_in_the_requests_to_copy() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")
    (quoting,) = re.findall(r"^const inQuotes = .*;$", PAGE, re.M)
    names = ["plain", "it's", "'; rm -rf ~; '", '"$(id)`id`\\', "'\\''"]
    body = json.dumps({"features": dict.fromkeys(names, 1)}, separators=(",", ":"))
    script = f"{quoting} process.stdout.write(inQuotes({json.dumps(body)}))"
    done = subprocess.run([node, "-e", script], capture_output=True, text=True, check=True)
    echoed = subprocess.run(
        ["sh", "-c", f"printf %s {done.stdout}"], capture_output=True, text=True, check=True
    )
    assert (echoed.stdout, echoed.stderr) == (body, "")


def test_a_step_between_two_gaps_is_drawn_as_a_dot() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")
    (found,) = re.findall(r"^  const alone = .*;$", PAGE, re.M)
    columns = [[0.9], [None, 0.9, None], [0.8, 0.9, None, 0.7], [None, None]]
    script = f"{found} console.log(JSON.stringify({json.dumps(columns)}.map("
    script += "(data) => alone({ data: [data] }, 0))))"
    done = subprocess.run([node, "-e", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[0], [1], [3], []]
    assert "filter: alone" in PAGE


def test_every_clock_has_24_hours() -> None:
    script = _parsed(PAGE).scripts
    clocks = re.findall(r"\{[^{}]*(?:timeStyle|hour): \"[^{}]*\}", script)
    assert len(clocks) >= 5
    assert [one for one in clocks if 'hourCycle: "h23"' not in one] == []
    assert not re.search(r"toLocale(Time)?String\(\)", script)


def test_it_asks_for_a_token_and_keeps_it_in_the_tab() -> None:
    assert "This service asks for a token" in PAGE
    assert ("input", {"id": "token", "type": "password"}) in [
        (tag, {name: of.get(name) for name in ("id", "type")}) for tag, of in _parsed(PAGE).tags
    ]
    script = _parsed(PAGE).scripts
    assert 'Authorization: "Bearer " + used' in script
    assert "sessionStorage" in script
    assert "localStorage" not in script
    assert "$ONLINE_TOKEN" in script, "the requests to copy name it, and do not show it"
    hrefs = {a.get("href") for t, a in _parsed(PAGE).tags if t == "a"}
    assert {"docs", "metrics"} <= hrefs


def test_it_is_small_with_all_that_it_needs() -> None:
    assert len(gzip.compress(page().encode())) < 100_000


def test_labels_without_an_answer_are_feedback() -> None:
    """As where the first body teaches a model its classes: it could not answer before."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")
    (function,) = re.findall(r"^function unjudged\(.*?^\}$", PAGE, re.M | re.S)
    asked = "[unjudged({unanswered: 300}), unjudged({unanswered: 0}), unjudged({}, {})]"
    script = f"{function}\nconsole.log(JSON.stringify({asked}))"
    done = subprocess.run([node, "-e", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [
        "no label of an answer yet", "no feedback yet", "no label yet",
    ]  # fmt: skip


@pytest.mark.parametrize("lacks", ["jinja2", "matplotlib", "pyarrow"])
def test_the_page_knows_which_package_the_report_lacks(
    monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    assert 'const LACKS = "";' in asked("identity")[0].text
    monkeypatch.setitem(sys.modules, lacks, None)
    wanted = "pip install -c constraints.txt -e '.[report]' in the checkout"
    shown = f'const LACKS = "{lacks}. Install it where it runs: {wanted}";'
    assert shown in asked("identity")[0].text


def asked(*encodings: str) -> list[httpx.Response]:
    """The page, as whoever accepts these gets it."""
    app = FastAPI()
    add_front(app, ["m"])

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return [await client.get("/", headers={"accept-encoding": e}) for e in encodings]

    return asyncio.run(ask())


def test_whoever_refuses_gzip_gets_none() -> None:
    said = {
        "GZIP": "gzip", "br , Gzip ; q=0.5": "gzip", "gzip;q=1": "gzip", "gzip;q=0.001": "gzip",
        "gzip;q=0": "", "identity, gzip;q=0.0": "", "gzip ; Q = 0.000 , br": "", "": "",
        "x-not-gzip": "",
    }  # fmt: skip
    got = [one.headers.get("content-encoding", "") for one in asked(*said)]
    assert dict(zip(said, got, strict=True)) == said


def test_a_browser_gets_it_packed_and_others_as_it_is() -> None:
    packed, plain = asked("gzip, br", "identity")
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < 100_000
    assert "content-encoding" not in plain.headers
    assert packed.headers["vary"] == plain.headers["vary"] == "accept-encoding"
    assert packed.text == plain.text == page()
