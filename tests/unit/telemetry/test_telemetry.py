"""`/metrics` as OpenMetrics asks, and the rules and the dashboard that ask for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from telemetry_world import rules, status

from online.telemetry import prometheus

ROOT: Final = Path(__file__).parents[3]
MONITORING: Final = ROOT / "docs" / "monitoring.md"
BOARD: Final = ROOT / "deploy" / "grafana" / "online.json"
NAME: Final = re.compile(r"\bonline_[a-z0-9_]+")


@pytest.fixture(scope="module")
def families() -> dict[str, Metric]:
    text = prometheus.exposition([status("m"), status("n")])
    return {found.name: found for found in text_string_to_metric_families(text)}


def samples(families: dict[str, Metric]) -> set[str]:
    return {sample.name for found in families.values() for sample in found.samples}


def test_every_family_has_help_that_is_a_sentence(families: dict[str, Metric]) -> None:
    for name, found in families.items():
        text = found.documentation
        assert text.endswith("."), (name, text)
        assert len(text.split()) >= 3, (name, text)
        assert not text.endswith("of a replica."), f"{name}: a report without a help"


def test_units_are_base_units_and_counters_end_in_total(families: dict[str, Metric]) -> None:
    for name, found in families.items():
        assert not name.endswith(("_ms", "_us", "_s")), name
        if found.type == "counter":
            assert all(s.name.endswith("_total") for s in found.samples), name
    age = {s.labels["replica"]: s.value for s in families["online_age_seconds"].samples}
    assert set(age.values()) == {1.5}
    assert families["online_learn_seconds"].samples[0].value == pytest.approx(80e-6)


def test_codes_and_outcomes_are_labels(families: dict[str, Metric]) -> None:
    for name, label, value, n in (
        ("online_predict_refused", "code", "busy", 2),
        ("online_feedback_refused", "code", "busy", 3),
        ("online_feedback", "outcome", "learned", 40),
        ("online_deltas_refused", "code", "too_large", 1),
        ("online_filter_rows", "verdict", "quarantined", 2),
    ):
        found = [s.value for s in families[name].samples if s.labels[label] == value]
        assert found == [n] * 4, name
    assert families["online_feedback_timeouts"].type == "counter", "it is no outcome"


def test_durations_are_histograms_whose_counts_go_up(families: dict[str, Metric]) -> None:
    for what in prometheus.DURATIONS:
        found = families[f"online_{what}_seconds"]
        assert found.type == "histogram"
        of_one = {"model": "m", "replica": "one"}
        one = [s for s in found.samples if of_one.items() <= s.labels.items()]
        buckets = {s.labels["le"]: s.value for s in one if s.name.endswith("_bucket")}
        assert list(buckets.values()) == sorted(buckets.values())
        assert (buckets["0.00025"], buckets["0.0005"], buckets["10"]) == (0, 2, 3)
        assert buckets["+Inf"] == next(s.value for s in one if s.name.endswith("_count")) == 4
        total = next(s.value for s in one if s.name.endswith("_sum"))
        assert total == pytest.approx(99.0027)


def test_the_journal_of_all_models_is_said_once(families: dict[str, Metric]) -> None:
    for name in ("bytes", "bound_bytes", "used_ratio", "days_left", "bytes_per_day"):
        (sample,) = families[f"online_journal_{name}"].samples
        assert sample.labels == {}
    assert len(families["online_journal_rows"].samples) == 2, "rows are a model's"


def test_bounded_tables_are_told_where_there_are_any(families: dict[str, Metric]) -> None:
    names = ("", "_waiting", "_late", "_left")
    found = [families[f"online_table_rows{name}"].samples[0].value for name in names]
    assert found == [50, 4, 3, 2]
    names = ("rows_recorded", "replicas_unrecorded")
    found = [families[f"online_table_{name}"].samples[0].value for name in names]
    assert found == [7, 1]
    unbounded = {**status(), "server": {**status()["server"], "tables": {}}}
    assert "online_table_" not in prometheus.exposition([unbounded])


def test_a_service_that_has_no_server_and_no_journal_says_so() -> None:
    bare = {**status(), "server": None, "journal": None, "rewrites": None, "challenger": None}
    text = prometheus.exposition([bare])
    assert 'online_server_up{model="m"} 0.0' in text
    assert "online_journal_bytes" not in text


def asked() -> Iterator[tuple[str, str]]:
    """Where something is asked, and the query."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    board = json.loads(BOARD.read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        yield variable["name"], variable.get("definition", "")


def test_rules_and_dashboard_ask_for_what_there_is(families: dict[str, Metric]) -> None:
    there = samples(families)
    queries = list(asked())
    assert len(queries) > 40
    for where, query in queries:
        for name in NAME.findall(query):
            assert name in there, (where, name)


def test_rules_and_dashboard_ask_for_labels_that_there_are(families: dict[str, Metric]) -> None:
    labels = {
        sample.name: set(sample.labels) for found in families.values() for sample in found.samples
    }
    for where, query in asked():
        for name, given in re.findall(r"(online_[a-z0-9_]+){([^}]*)}", query):
            for label in re.findall(r"(\w+)=~?\"", given):
                assert label in labels[name], (where, name, label)
        for by in re.findall(r"by \(([^)]*)\)", query):
            for name in NAME.findall(query):
                assert set(by.replace(" ", "").split(",")) <= labels[name], (where, name, by)


def test_each_rule_says_for_how_long_how_bad_and_what() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) >= 24
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"].endswith(".")
        assert re.fullmatch(r"\d+[smhd]", rule.get("for", "0s"))


def test_the_page_of_alarms_is_the_file_of_rules() -> None:
    rows = re.findall(r"^\| `(.*?)` \| (\d+[smhd]) \| ", MONITORING.read_text(), re.M)
    assert rows == [(rule["expr"], rule.get("for", "0s")) for rule in rules()]


def test_the_page_names_metrics_that_there_are(families: dict[str, Metric]) -> None:
    there = samples(families) | set(families)
    named = set(NAME.findall(MONITORING.read_text())) - {"online_"}
    assert len(named) > 60
    assert named <= there, named - there


def test_a_misspelt_metric_is_noticed(families: dict[str, Metric]) -> None:
    assert "online_server_upp" not in samples(families)


def test_the_dashboard_is_whole() -> None:
    board = json.loads(BOARD.read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    places = [tuple(sorted(panel["gridPos"].items())) for panel in board["panels"]]
    assert len(places) == len(set(places)), "no panel hides another"
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "model"}


def lost(given: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Places of the first that the second lacks, or has otherwise."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for name, value in given.items():
            if name in kept:
                yield from lost(value, kept[name], f"{path}/{name}")
            else:
                yield f"{path}/{name}"
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for i, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from lost(one, other, f"{path}/{i}")
    elif given != kept:
        yield path


def test_grafanas_own_classes_read_all_of_the_dashboard() -> None:
    models = pytest.importorskip(
        "grafana_foundation_sdk.models.dashboard", reason="needs grafana-foundation-sdk"
    )
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    register_default_plugins()
    board = json.loads(BOARD.read_text())

    def unread(given: Any) -> set[str]:
        return set(lost(given, json.loads(JSONEncoder().encode(models.Dashboard.from_json(given)))))

    left = {"/templating/list/1/definition"}  # Grafana writes it, and reads `query`
    assert unread(board) == left
    board["panels"][4]["gridPos"]["hight"] = 8
    board["refrsh"] = "10s"
    assert unread(board) == left | {"/panels/4/gridPos/hight", "/refrsh"}


def test_panels_lie_side_by_side_and_ask_the_chosen_source() -> None:
    board = json.loads(BOARD.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["type"] in ("stat", "timeseries"), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert {"title", "description", "fieldConfig", "options"} <= panel.keys()
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters)), panel["title"]
        assert all(
            target.keys() == {"expr", "legendFormat", "refId"} for target in panel["targets"]
        )
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        across, down = range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
        cells = {(x, y) for x in across for y in down}
        assert not cells & taken, f"{panel['title']} lies on another"
        taken |= cells
