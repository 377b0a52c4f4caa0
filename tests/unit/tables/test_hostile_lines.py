"""A line of JSON that can't be decoded is an invalid row, never the end of the command."""

from __future__ import annotations

import msgspec
import pytest

from online.tables.layout import Form

pytest.importorskip("pyarrow")


@pytest.mark.parametrize("form", ["jsonl", "dsjson"])
@pytest.mark.parametrize(
    "line", [b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b'{"a":"\xff"}', b'{"a":1', b"x"]
)
def test_a_line_that_is_no_json_is_an_invalid_row(line: bytes, form: Form) -> None:
    from online.tables.inputs import json_row

    with pytest.raises(msgspec.DecodeError):
        json_row(line, form)
