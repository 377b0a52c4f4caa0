"""Bad requests, and the refusal that answers each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A request to model ``clicks`` and the refusal that answers it."""

    name: str
    path: str
    body: bytes | None
    status: int
    code: str
    field: str | None
    says: str = ""
    method: str = "POST"
    content_type: str | None = "application/json"


PREDICT, FEEDBACK = "/v1/models/clicks/predict", "/v1/models/clicks/feedback"
GOOD = b'{"features": {"a": 1}}'

_FEATURES = [
    ("text", b'{"a": 1, "b": "2"}', 422, ".b", "text"),
    ("null", b'{"a": null}', 422, ".a", "null"),
    ("object", b'{"a": {"b": 1}}', 422, ".a", "an object"),
    ("array", b'{"a": [1]}', 422, ".a", "an array"),
    ("huge", b'{"a": 1e999}', 422, ".a", "1e999"),
    ("minus huge", b'{"a": -1e999}', 422, ".a", "-1e999"),
    ("large", b'{"a": 1e308}', 422, ".a", "1e+308"),
    ("long integer", b'{"a": 9007199254740993}', 422, ".a", "9007199254740993"),
    ("empty", b"{}", 422, "", "no features"),
    ("nan", b'{"a": NaN}', 400, None, "NaN"),
    ("infinity", b'{"a": Infinity}', 400, None, "Infinity"),
    ("minus infinity", b'{"a": -Infinity}', 400, None, "-Infinity"),
    ("too many", json.dumps({f"f{i}": 1 for i in range(101)}).encode(), 422, "", "at most 100"),
    ("long name", json.dumps({"n" * 1025: 1}).encode(), 422, "", "1025"),
]


def _feature_cases() -> Iterator[Case]:
    places = [
        ("predict", PREDICT, b'{"features": %s}', "features"),
        ("many", PREDICT, b'{"instances": [{"a": 1}, %s]}', "instances[1]"),
        ("feedback", FEEDBACK, b'{"label": "yes", "features": %s}', "features"),
    ]
    for place, path, template, at in places:
        for name, features, status, field, says in _FEATURES:
            code = "malformed" if status == 400 else "invalid_value"
            where = "a" if field is None else at + field
            yield Case(f"{place}: {name}", path, template % features, status, code, where, says)


_WITH = '"features": {"a": 1}'


def _feedback(name: str, rest: str, field: str, says: str = "", status: int = 422) -> Case:
    code = {400: "malformed", 404: "unknown_id", 422: "invalid_value"}[status]
    return Case(f"feedback: {name}", FEEDBACK, f"{{{rest}}}".encode(), status, code, field, says)


def _weight(text: str, status: int = 422) -> Case:
    rest = f'{_WITH}, "label": "yes", "weight": {text}'
    return _feedback(f"weight {text}", rest, "weight", text, status)


def _label(text: str, says: str) -> Case:
    return _feedback(f"label {text}", f'{_WITH}, "label": {text}', "label", says)


CASES = [
    *_feature_cases(),
    Case("no body", PREDICT, None, 400, "no_body", None),
    Case("empty body", FEEDBACK, b"", 400, "no_body", None),
    Case("cut off", PREDICT, b'{"features": {"a": 1', 400, "malformed", None),
    Case("not JSON", FEEDBACK, b"a=1&label=yes", 400, "malformed", None),
    Case("two objects", PREDICT, GOOD + GOOD, 400, "malformed", None),
    Case("not UTF-8", PREDICT, b'{"features": {"\xff": 1}}', 400, "malformed", None),
    Case("half a surrogate pair", PREDICT, b'{"features": {"\\ud800": 1}}', 400, "malformed", None),
    Case("array", PREDICT, b"[]", 422, "invalid_value", None, "array"),
    Case("number", FEEDBACK, b"3", 422, "invalid_value", None, "int"),
    Case("null", PREDICT, b"null", 422, "invalid_value", None, "null"),
    Case("text", FEEDBACK, b'"yes"', 422, "invalid_value", None, "str"),
    Case("features is an array", PREDICT, b'{"features": [1]}', 422, "invalid_value", "features"),
    Case("features is text", FEEDBACK, b'{"features": "a"}', 422, "invalid_value", "features"),
    Case("nothing", PREDICT, b"{}", 422, "invalid_value", "features"),
    Case("both", PREDICT, b'{"features":{"a":1},"instances":[{"a":1}]}', 422, "invalid_value",
         "features"),
    Case("no rows", PREDICT, b'{"instances": []}', 422, "invalid_value", "instances", "0 rows"),
    Case("too many rows", PREDICT, json.dumps({"instances": [{"a": 1}] * 51}).encode(), 422,
         "invalid_value", "instances", "51 rows"),
    Case("a row is a number", PREDICT, b'{"instances": [{"a": 1}, 3]}', 422, "invalid_value",
         "instances[1]"),
    Case("unknown field", PREDICT, b'{"feature": {"a": 1}}', 422, "invalid_value", "feature"),
    Case("events is an object", FEEDBACK, b'{"events": {"label": 1}}', 422, "invalid_value",
         "events"),
    Case("ids is text", PREDICT, b'{"instances": [{"a": 1}], "ids": "yes"}', 422, "invalid_value",
         "ids"),
    Case("too old", PREDICT, b'{"features": {"a": 1}, "max_age_ms": 0}', 503, "too_old",
         "max_age_ms"),
    Case("age is text", PREDICT, b'{"features": {"a": 1}, "max_age_ms": "1"}', 422, "invalid_value",
         "max_age_ms"),
    Case("age below 0", PREDICT, b'{"features": {"a": 1}, "max_age_ms": -1}', 422, "invalid_value",
         "max_age_ms"),
    *(Case(f"after {text}", PREDICT, f'{{{_WITH}, "after": "{text}"}}'.encode(), 422,
           "invalid_value", "after", text[:20])
      for text in ("x", "1", "1:2:3", "1:b", "", "1.5:2")),
    Case("after is a number", PREDICT, b'{"features": {"a": 1}, "after": 1}', 422, "invalid_value",
         "after"),
    *(Case(f"content type {kind}", path, GOOD, 415, "media_type", None, kind.partition(";")[0],
           content_type=kind) for kind in ("text/xml", "application/cbor", "image/png",
           "multipart/form-data; boundary=x") for path in (PREDICT, FEEDBACK)),
    Case("GET", PREDICT, None, 405, "method", None, method="GET"),
    Case("PUT", FEEDBACK, GOOD, 405, "method", None, method="PUT"),
    Case("DELETE", "/v1/models", None, 405, "method", None, "DELETE", method="DELETE"),
    Case("POST to a model", "/v1/models/clicks", b"{}", 405, "method", None, "POST"),
    Case("unknown path", "/v1/model/clicks", None, 404, "unknown_path", None, method="GET"),
    Case("slash at the end", PREDICT + "/", GOOD, 404, "unknown_path", None),
    Case("unknown model", "/v1/models/click/predict", GOOD, 404, "unknown_model", "model",
         "click"),
    Case("unknown model, feedback", "/v1/models/click/feedback", GOOD, 404, "unknown_model",
         "model"),
    Case("unknown model, status", "/v1/models/click", None, 404, "unknown_model", "model",
         method="GET"),
    Case("pin is no truth", "/v1/models/clicks/snapshots?pin=perhaps", None, 422, "invalid_value",
         "pin", "perhaps"),
    Case("unknown snapshot", "/v1/models/clicks/snapshots/none/pin", None, 404, "unknown_snapshot",
         "name", "'none'"),
    _feedback("no label", _WITH, "label", "no label"),
    _feedback("neither id nor features", '"label": "yes"', "id"),
    *(_label(text, text) for text in ('"maybe"', "true", "1", "null", '["yes"]', '"YES"')),
    *(_weight(text) for text in ("0", "-1", "1000001", "true", "null", '"2"', "[1]")),
    _weight("NaN", 400), _weight("Infinity", 400),
    _feedback("weight 1e999", f'{_WITH}, "label": "yes", "weight": 1e999', "weight", "1e999"),
    _feedback("time is text", f'{_WITH}, "label": "yes", "event_time": "now"', "event_time"),
    _feedback("source is a number", f'{_WITH}, "label": "yes", "source": 3', "source"),
    _feedback("event_id is a number", f'{_WITH}, "label": "yes", "event_id": 3', "event_id"),
    _feedback("event_id is empty", f'{_WITH}, "label": "yes", "event_id": ""', "event_id", ">= 1"),
    _feedback("event_id is long", f'{_WITH}, "label": "yes", "event_id": "{"x" * 257}"',
              "event_id", "256"),
    _feedback("id is a number", '"label": "yes", "id": 3', "id"),
    _feedback("id is empty", '"label": "yes", "id": ""', "id", status=404),
    _feedback("id is a long word", f'"label": "yes", "id": "{"a" * 65}"', "id", status=404),
    _feedback("id is not ASCII", '"label": "yes", "id": "é"', "id", status=404),
    _feedback("no events", '"events": []', "events"),
    _feedback("one and many", f'"events": [{{{_WITH}, "label": "yes"}}], "label": "yes"', "events"),
    _feedback("events is an object", '"events": {"label": "yes"}', "events"),
    Case("too many events", FEEDBACK, json.dumps(
        {"events": [{"features": {"a": 1}, "label": "yes"}] * 51}).encode(), 422,
        "invalid_value", "events", "51"),
]  # fmt: skip
