"""The page: its numbers are the JSON's, nothing is loaded, and text from outside stays text."""

from __future__ import annotations

import base64
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from evaluation.report.build import report_on
from evaluation.report.columns import Asked
from evaluation.report.filerows import FileRows
from evaluation.report.page.render import render
from evaluation.report.values import Report, schema, to_json


def table(path: Path, n: int = 1500, *, name: str = "x", kind: str = "binary") -> Path:
    """Rows whose labels follow from x, with answers that are right in nine of ten."""
    rng = random.Random(3)
    lines = [f'time,"{name}",place,label,{"score" if kind == "binary" else "prediction"}']
    for i in range(n):
        x = rng.random() + (i > 1200)
        if kind == "regression":
            label, answer = f"{3 * x:.3f}", f"{3 * x + rng.gauss(0, 0.3):.3f}"
        else:
            yes = (x * 7) % 1 < 0.5
            sure = 0.9 if rng.random() < 0.9 else 0.1
            label, answer = ("no", "yes")[yes], f"{sure if yes else 1 - sure}"
        lines.append(f"{1.7e9 + 600 * i:.0f},{x:.4f},{rng.choice('abc')},{label},{answer}")
    path.write_text("\n".join(lines) + "\n")
    return path


def made(path: Path) -> Report:
    rows = FileRows(path, Asked())
    return report_on(rows.origin, rows.rows(), made_at=1.8e9)


class Page(HTMLParser):
    """What a reader of the page's text sees: data elements, links, scripts, ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.data: list[tuple[str, str, str]] = []
        self.outside: list[str] = []
        self.scripts: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.embedded = self.words = ""
        self._in: list[str] = []
        self._open: tuple[str, str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._in.append(tag)
        if "id" in found:
            self.ids.append(str(found["id"]))
        if tag == "data":
            self._open = (str(found["data-path"]), str(found["value"]))
            self.data.append((*self._open, ""))
        if tag == "script":
            self.scripts.append(found)
        for name, value in attrs:
            bare = name.rpartition(":")[2]
            loads = bare in ("src", "href", "srcset", "action", "poster", "data") and value
            if loads and not str(value).startswith(("#", "data:application/json;base64,")):
                self.outside.append(f"{tag} {name}={str(value)[:80]}")
            if name.startswith("on"):
                self.outside.append(f"{tag} {name}")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._in:
            while self._in.pop() != tag:
                pass
        if tag == "data":
            self._open = None

    def handle_data(self, text: str) -> None:
        if self._open:
            path, value, shown = self.data[-1]
            self.data[-1] = (path, value, shown + text)
        if self._in and self._in[-1] == "script":
            self.embedded += text
        else:
            self.words += text


def at(values: Any, path: str) -> Any:
    for part in path.split("."):
        values = values[int(part)] if isinstance(values, list) else values[part]
    return values


def wrong(text: str, values: Any) -> list[str]:
    """Paths whose number on the page is not that of the JSON, to the digits that are shown."""
    found = []
    for path, value, shown in Page(text).data:
        true = at(values, path)
        if json.loads(value) != true:
            found.append(path)
        text = shown.replace(",", "").replace("−", "-").strip()
        match = re.fullmatch(r"([+-]?\d*\.?\d+(?:e[+-]?\d+)?)( %)?", text)
        if match is None:
            if not re.search(r"\d", text):  # a time, a span, < .0001
                found.append(path)
            continue
        points = "steps" in path or path.startswith("causes")
        number = float(match[1]) / (100 if match[2] or points else 1)
        digits = len(match[1].partition(".")[2].partition("e")[0]) + 2 * bool(match[2] or points)
        last = abs(number) * 1e-3 if "e" in text else 10.0**-digits
        if digits == 0:  # four significant digits of a large number
            last = max(last, abs(number) * 1e-3)
        if not math.isclose(true, number, abs_tol=0.51 * last + 1e-12):
            found.append(path)
    return found


@pytest.fixture(scope="module", params=["binary", "regression"])
def made_page(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Report, str]:
    path = table(tmp_path_factory.mktemp("report") / "t.csv", kind=request.param)
    report = made(path)
    return report, render(report)


def test_every_number_is_that_of_the_json(made_page: tuple[Report, str]) -> None:
    report, text = made_page
    page = Page(text)
    values = json.loads(to_json(report))
    assert json.loads(page.embedded) == values
    assert len(page.data) > 60
    assert wrong(text, values) == []
    cells = re.findall(r'<td class="r">(?!<data|<span class="none"|[a-c]<)([^<]*\d[^<]*)', text)
    assert cells == []  # no number in a table without its path


def test_a_wrong_number_would_be_found(made_page: tuple[Report, str]) -> None:
    report, text = made_page
    values = json.loads(to_json(report))
    path = "performance.overall." + ("accuracy" if report.subject.positive else "mae")
    (value, shown), *_ = re.findall(rf'value="([^"]+)" data-path="{path}">([^<]+)<', text)
    digit = next(c for c in reversed(shown) if c.isdecimal())
    at_end = shown.rindex(digit)
    other = shown[:at_end] + str((int(digit) + 2) % 10) + shown[at_end + 1 :]
    assert wrong(text.replace(f'{path}">{shown}<', f'{path}">{other}<'), values)
    assert wrong(text.replace(f'value="{value}"', 'value="0.5"'), values)


def test_nothing_is_loaded_and_no_script_runs(made_page: tuple[Report, str]) -> None:
    text = made_page[1]
    page = Page(text)
    assert page.outside == []
    assert [script.get("type") for script in page.scripts] == ["application/json"]
    assert not re.search(r"@import|url\((?!#)", text)
    assert "http:" not in text
    assert "https:" not in text
    assert "<link" not in text
    assert "<iframe" not in text
    assert len(page.ids) == len(set(page.ids))
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", text))
    assert used <= set(page.ids)
    assert len(text.encode()) <= 1_000_000


def test_the_same_rows_give_the_same_page(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", 900)
    assert render(made(path)) == render(made(path))


def test_the_download_is_the_json(made_page: tuple[Report, str]) -> None:
    report, text = made_page
    found = re.search(r'download="report.json" href="data:application/json;base64,([^"]+)"', text)
    assert found is not None
    assert base64.b64decode(found[1]) == to_json(report)


def test_the_json_is_as_its_schema_says(made_page: tuple[Report, str]) -> None:
    values = json.loads(to_json(made_page[0]))
    checker = jsonschema.Draft202012Validator(schema())
    checker.check_schema(schema())
    assert list(checker.iter_errors(values)) == []
    values["verdict"]["state"] = "fine"
    assert [e.json_path for e in checker.iter_errors(values)] == ["$.verdict.state"]


def test_names_are_text(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>$x^{"
    report = made(table(tmp_path / "t.csv", 900, name=name))
    text = render(report)
    assert report.feature_drift is not None
    assert name in {f.name for f in report.feature_drift.features}
    assert "<script>alert" not in text
    assert len(Page(text).scripts) == 1
    assert name in Page(text).words


def test_verdict_first_and_in_words(made_page: tuple[Report, str]) -> None:
    report, text = made_page
    assert text.index(report.verdict.sentence.replace("'", "&#39;")) < text.index("<section")
    for number in range(1, 16):
        assert f'<span class="n">{number}</span>' in text
