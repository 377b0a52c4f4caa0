"""The tables of weights, joins and ids, small."""

from __future__ import annotations

from benchmarks.attacks import doors


def test_a_heavy_event_costs_more_than_a_light_one() -> None:
    rows = doors.rows_of("phishing", None, 0, 300)
    found = list(doors.weighed("phishing", "none", 1, 0, [1.0, 1e6], rows))
    assert [line.weight for line in found] == [1.0, 1e6]
    assert found[0].lost < 10 < found[1].lost


def test_lies_by_short_ids_are_judged_as_those_with_features() -> None:
    lines = list(doors.tables("joins", ["phishing"], [0], [2], None, 420))
    assert len(lines) == 8
    by = {(line.filters, line.what): line for line in lines}
    for way in doors.WAYS:
        assert by["none", f"phishing, {way}"].lies_taken == 100
        assert by["default", f"phishing, {way}"].lies_taken < 100
        assert by["default", f"phishing, {way}"].lies == by["none", f"phishing, {way}"].lies > 0
    assert by["default", "phishing, features, nobody lies"].honest_set_aside == 0


def test_an_owner_s_labels_are_its_own_where_the_app_has_a_source() -> None:
    lines = list(doors.tables("ids", ["phishing"], [0], [2], None, 60))
    assert len(lines) == 12
    for filters in ("none", "default"):
        mine = {(x.what, x.sources): x for x in lines if x.filters == filters}
        assert mine["phishing, labels", True].learned == 100
        assert mine["phishing, labels", True].conflicts == 0
        assert mine["phishing, labels", False].conflicts > 30, "without sources ids are secrets"
