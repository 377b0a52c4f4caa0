"""Tensors of the Open Inference Protocol: bodies to rows, answers to bodies, what is refused."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.errors import RequestError
from online.messages.tensors import InferAnswer, Tensor, column, encode, parse, rows

MOST = 8


def tensor(name: str, shape: list[int], datatype: str, data: Any, **parameters: Any) -> Any:
    made = {"name": name, "shape": shape, "datatype": datatype, "data": data}
    return made | ({"parameters": parameters} if parameters else {})


def rows_of(*inputs: Any) -> list[dict[str, Any]]:
    return rows(parse(json.dumps({"inputs": inputs}).encode(), None).inputs, MOST)


def refusal(call: Callable[..., Any], *args: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        call(*args)
    assert caught.value.message
    return caught.value


# -- tensors to rows -------------------------------------------------------------------------


def test_columns_become_rows() -> None:
    found = rows_of(
        tensor("a", [2], "FP32", [1, 2.5]),
        tensor("b", [2, 1], "INT8", [[-3], [4]]),
        tensor("c", [2], "BOOL", [True, False]),
        tensor("d", [2], "BYTES", ["x", ""]),
        tensor("e", [2, 2], "UINT8", [1, 2, 3, 4]),
        tensor("f", [2, 2], "FP64", [[0.5, 1.5], [2.5, 3.5]], names="g, h", content_type="np"),
        tensor("i", [2, 1], "FP16", [7.0, 8.0], names="label"),
    )
    assert found == [
        {"a": 1.0, "b": -3, "c": True, "d": "x", "e.0": 1, "e.1": 2, "g": 0.5, "h": 1.5}
        | {"label": 7.0},
        {"a": 2.5, "b": 4, "c": False, "d": "", "e.0": 3, "e.1": 4, "g": 2.5, "h": 3.5}
        | {"label": 8.0},
    ]
    kinds = {name: type(value) for name, value in found[0].items()}
    assert (kinds["a"], kinds["b"], kinds["c"]) == (float, int, bool)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([tensor("a", [2], "FP32", [1.0])], "1 values for the shape [2]"),
        ([tensor("a", [1], "FP32", [1.0, 2.0])], "2 values"),
        ([tensor("a", [1, 2], "FP32", [[1.0], [2.0]])], "rows that do not fit"),
        ([tensor("a", [2, 2], "FP32", [[1.0, 2.0], 3.0])], "rows that do not fit"),
        ([tensor("a", [2], "FP32", [[1.0], [2.0]])], "an array"),
        ([tensor("a", [1], "FP64", ["1"])], 'not FP64: "1"'),
        ([tensor("a", [2], "FP64", [1.0, None])], "not FP64: null"),
        ([tensor("a", [1], "FP64", [True])], "not FP64: true"),
        ([tensor("a", [1], "INT8", [True])], "not INT8: true"),
        ([tensor("a", [1], "INT8", [1.0])], "not INT8: 1.0"),
        ([tensor("a", [1], "INT8", [128])], "beyond INT8"),
        ([tensor("a", [1], "INT8", [-129])], "beyond INT8"),
        ([tensor("a", [1], "UINT8", [-1])], "beyond UINT8"),
        ([tensor("a", [1], "UINT64", [2**64])], "beyond UINT64"),
        ([tensor("a", [1], "FP64", [10**400])], "out of range"),
        ([tensor("a", [1], "BOOL", [1])], "not BOOL: 1"),
        ([tensor("a", [1], "BYTES", [1])], "not BYTES: 1"),
        ([tensor("a", [1], "BF16", [1.0])], "BF16"),
        ([tensor("a", [], "FP32", [])], "shape"),
        ([tensor("a", [1, 1, 1], "FP32", [1.0])], "shape"),
        ([tensor("a", [-1], "FP32", [1.0])], "shape"),
        ([{"name": "a", "shape": [1], "datatype": "FP32"}], "no data"),
        ([tensor("a", [1], "FP32", [1.0]), tensor("b", [2], "FP32", [1.0, 2.0])], "[1, 2] rows"),
        ([tensor("a", [1], "FP32", [1.0]), tensor("a", [1], "FP32", [1.0])], 'called "a"'),
        ([tensor("x", [1, 2], "FP32", [1.0, 2.0], names="a,a")], 'called "a"'),
        ([tensor("x", [1, 2], "FP32", [1.0, 2.0], names="a")], "2 columns"),
        ([tensor("x", [1, 2], "FP32", [1.0, 2.0], names="a,b,c")], "2 columns"),
        ([tensor("x", [1], "FP32", [1.0], names=3)], "names"),
    ],
)  # fmt: skip
def test_what_is_no_tensor_is_refused(inputs: list[Any], says: str) -> None:
    error = refusal(rows_of, *inputs)
    assert error.status == 422
    assert says in error.message
    assert error.hint


def test_a_shape_without_its_values_costs_nothing() -> None:
    """Not the names of a billion columns, nor a billion rows."""
    for shape in ([1, 10**9], [10**9, 1], [10**9], [10**18, 10**18]):
        assert refusal(rows_of, tensor("a", shape, "FP32", [])).status == 422


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"inputs": [NaN]}',
        b'{"inputs": [], "id": "\xff"}',
        b'{"inputs": [{"name": "a", "shape": [1], "datatype": "FP32", "data": ' + b"[" * 100_000,
    ],
)
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    assert refusal(parse, body, None).status == 400


# -- bytes -----------------------------------------------------------------------------------

_FORMATS = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip


def packed(datatype: str, values: list[Any]) -> bytes:
    """The extension's bytes, by the standard library."""
    if datatype == "BYTES":
        texts = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return struct.pack(f"<{len(values)}{_FORMATS[datatype]}", *values)


def values_of(datatype: str) -> st.SearchStrategy[list[Any]]:
    if datatype == "BOOL":
        return st.lists(st.booleans())
    if datatype == "BYTES":
        return st.lists(st.text(st.characters(exclude_categories=["Cs"])))
    if datatype.startswith("FP"):
        return st.lists(st.floats(width=int(datatype[2:]), allow_nan=False))  # type: ignore[arg-type]
    bits, signed = int(datatype.lstrip("UINT")), not datatype.startswith("U")
    low = -(2 ** (bits - 1)) if signed else 0
    return st.lists(st.integers(low, low + 2**bits - 1))


@given(st.data())
def test_tensors_in_bytes_are_those_in_json(data: st.DataObject) -> None:
    datatypes = data.draw(st.lists(st.sampled_from([*_FORMATS, "BYTES"]), min_size=1, max_size=4))
    many = [data.draw(values_of(datatype)) for datatype in datatypes]
    inputs, raw = [], b""
    for i, (datatype, values) in enumerate(zip(datatypes, many, strict=True)):
        part = packed(datatype, values)
        made = tensor(f"t{i}", [len(values)], datatype, None, binary_data_size=len(part))
        del made["data"]
        inputs.append(made)
        raw += part
    text = json.dumps({"inputs": inputs}).encode()
    found = parse(text + raw, len(text))
    assert [t.values for t in found.inputs] == many
    request = parse(b'{"inputs": [], "parameters": {"binary_data_output": true}}', None)
    outputs = [
        Tensor(f"t{i}", [len(values)], datatype, data=values)  # type: ignore[arg-type]
        for i, (datatype, values) in enumerate(zip(datatypes, many, strict=True))
    ]
    body, length = encode(InferAnswer("m", "1.0", outputs), request)
    assert length is not None
    assert body[length:] == raw
    sizes = [o["parameters"]["binary_data_size"] for o in json.loads(body[:length])["outputs"]]
    assert sizes == [t["parameters"]["binary_data_size"] for t in inputs]


def in_bytes(datatype: str, shape: list[int], raw: bytes, size: int, shift: int = 0) -> Any:
    made = tensor("a", shape, datatype, None, binary_data_size=size)
    del made["data"]
    text = json.dumps({"inputs": [made]}).encode()
    return parse(text + raw, len(text) + shift)


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "size", "status", "says"),
    [
        ("FP32", [1], b"\0" * 4, 8, 400, "8 bytes, and 4 are left"),
        ("FP32", [1], b"\0" * 8, 4, 400, "4 bytes of no tensor"),
        ("FP32", [1], b"\0" * 6, 6, 400, "6 bytes are no FP32"),
        ("FP32", [2], b"\0" * 4, 4, 422, "1 values for the shape [2]"),
        ("BYTES", [1], b"\x02\0\0\0x", 5, 400, "cut off"),
        ("BYTES", [1], b"\x02\0", 2, 400, "cut off"),
        ("BYTES", [1], b"\xff\xff\xff\xffx", 5, 400, "cut off"),
        ("BYTES", [1], b"\x01\0\0\0\xff", 5, 422, "not UTF-8"),
        ("FP32", [1], b"", -1, 422, "binary_data_size"),
    ],
)
def test_bytes_that_are_not_as_they_say(
    datatype: str, shape: list[int], raw: bytes, size: int, status: int, says: str
) -> None:
    error = refusal(in_bytes, datatype, shape, raw, size)
    assert (error.status, says in error.message) == (status, True), error.message


@pytest.mark.parametrize("shift", [-1, 1, 10**6])
def test_a_wrong_length_of_the_json_text_is_malformed(shift: int) -> None:
    assert refusal(in_bytes, "INT8", [1], b"\x01", 1, shift).status == 400


def test_a_shape_alone_costs_nothing() -> None:
    """A tensor without rows may state any width: its columns are not named, nor its rows made."""
    for shape in ([0, 10**12], [0]):
        assert "0 rows" in refusal(rows_of, tensor("a", shape, "FP64", [])).message
    assert "1000000000000 rows" in refusal(rows_of, tensor("a", [10**12, 0], "FP64", [])).message
    assert rows_of(tensor("a", [2, 0], "FP64", [])) == [{}, {}]
    assert len(rows_of(tensor("a", [MOST], "BOOL", [True] * MOST))) == MOST
    error = refusal(rows_of, tensor("a", [MOST + 1], "BOOL", [True] * (MOST + 1)))
    assert (error.field, error.hint) == ("rows", "Send 1 to 8, or raise limits.rows_max")


def test_a_name_that_is_sent_twice_is_found_at_once() -> None:
    n = 50_000
    names = ",".join([*(f"a{i}" for i in range(n)), f"a{n - 1}"])
    wide = tensor("a", [1, n + 1], "BOOL", [True] * (n + 1), names=names)
    begun_s = time.process_time()
    assert f'"a{n - 1}"' in refusal(rows_of, wide).message
    assert time.process_time() - begun_s < 2.0, "each name is looked up once, not in all before it"


# -- answers to tensors ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "datatype", "data"),
    [
        ([1.5, 2.0], "FP64", [1.5, 2.0]),
        ([1, 2], "INT64", [1, 2]),
        ([True, False], "BOOL", [True, False]),
        (["x"], "BYTES", ["x"]),
        (["x", 2, None, True], "BYTES", ["x", "2", "", "true"]),
        ([None], "BYTES", [""]),
        ([], "BYTES", []),
    ],
)
def test_the_datatype_of_an_output_is_that_of_its_values(
    values: list[Any], datatype: str, data: list[Any]
) -> None:
    made = column("prediction", values)
    assert (made.datatype, made.shape, made.data) == (datatype, [len(values)], data)
