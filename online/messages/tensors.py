"""Tensors of the Open Inference Protocol: converts bodies to rows, and columns to bodies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType

from online.errors import RequestError, invalid

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES",
]  # fmt: skip

_DTYPES: Final = {
    "BOOL": "?", "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_TAKES: Final[dict[str, set[type]]] = {
    "BOOL": {bool},
    "BYTES": {str},
    **{name: {int, float} for name in ("FP16", "FP32", "FP64")},
}
_OF_VALUES: Final[dict[type, Datatype]] = {bool: "BOOL", int: "INT64", float: "FP64", str: "BYTES"}
_NAMES: Final = "Name the columns by the tensor's parameter `names`, with commas between them"


class TensorParameters(msgspec.Struct, omit_defaults=True):
    """Supported parameters of a tensor; others are ignored."""

    names: Annotated[
        str | None, Meta(description="names of an input's columns, separated by commas")
    ] = None
    labels: Annotated[
        str | None, Meta(description="labels of an output's columns: a JSON array as text")
    ] = None
    binary_data_size: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="size in bytes of the data, which follows the JSON text"),
    ] = None


class Tensor(msgspec.Struct, omit_defaults=True):
    """An input or an output: one column or several, row by row."""

    name: str
    shape: Annotated[
        list[Annotated[int, Meta(ge=0)]],
        Meta(min_length=1, max_length=2, description="[n], or [n, d] for d columns"),
    ]
    datatype: Datatype
    parameters: TensorParameters | UnsetType = UNSET
    data: Annotated[list[Any] | UnsetType, Meta(description="row by row, nested or flat")] = UNSET

    @property
    def width(self) -> int:
        """Number of columns of the tensor."""
        return self.shape[1] if len(self.shape) == 2 else 1

    @property
    def names(self) -> str | None:
        """The names of the columns, separated by commas, as they were sent."""
        return None if self.parameters is UNSET else self.parameters.names

    @property
    def values(self) -> list[Any]:
        """The data of a tensor that :func:`parse` has filled: flat, and of the datatype."""
        return [] if self.data is UNSET else self.data


class OutputParameters(msgspec.Struct, omit_defaults=True):
    """How a requested output is to be encoded."""

    binary_data: Annotated[
        bool | None, Meta(description="as bytes after the JSON text; default: as the request says")
    ] = None


class Output(msgspec.Struct, omit_defaults=True):
    """An output that is requested."""

    name: str
    parameters: OutputParameters = msgspec.field(default_factory=OutputParameters)


class InferParameters(msgspec.Struct, omit_defaults=True):
    """Supported parameters of a request; others are ignored."""

    max_age_ms: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="503 if the model is older than this")
    ] = None
    after: Annotated[
        str | None,
        Meta(description="`seen` of a receipt: `includes` tells whether that row is included"),
    ] = None
    binary_data_output: Annotated[
        bool, Meta(description="all outputs as bytes after the JSON text")
    ] = False
    details: Annotated[
        bool,
        Meta(
            description="outputs `missing` and `unknown`: for each row the names of features, as "
            "a JSON array in text"
        ),
    ] = False


class InferRequest(msgspec.Struct, omit_defaults=True):
    """A request to a model for ``outputs``; if that is empty, for all outputs."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: InferParameters = msgspec.field(default_factory=InferParameters)
    outputs: list[Output] = []


class InferAnswer(msgspec.Struct, omit_defaults=True):
    """The answer of a model to an inference request."""

    model_name: str
    model_version: str
    outputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, bool | int | float | str] = {}


class InferError(msgspec.Struct):
    """The body of every answer with a status of 400 and above."""

    error: str


_REQUEST: Final = msgspec.json.Decoder(InferRequest)
_ANSWER: Final = msgspec.json.Encoder()


# -- bodies to rows --------------------------------------------------------------------------


def parse(body: bytes, json_bytes: int | None) -> InferRequest:
    """Parse the request in a body; its inputs' data become flat and match their datatypes.

    ``json_bytes`` is the length of the JSON text before binary data; None: there is no binary data.
    Raises RequestError: 400 for invalid JSON or wrong lengths, 422 for wrong values.
    """
    text = body if json_bytes is None else body[:json_bytes]
    try:
        request = _REQUEST.decode(text)
    except msgspec.ValidationError as error:
        raise invalid("inputs", str(error), "See /docs for the fields and their types") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        hint = "Send JSON; NaN and Infinity are no JSON numbers"
        raise RequestError(400, "malformed", str(error), None, hint) from None
    rest, at = memoryview(body)[len(text) :], 0
    for tensor in request.inputs:
        size = None if tensor.parameters is UNSET else tensor.parameters.binary_data_size
        if size is None:
            tensor.data = _flat(tensor)
        else:
            if at + size > len(rest):
                raise _cut(tensor.name, f"{size} bytes, and {len(rest) - at} are left")
            tensor.data = _unpacked(tensor, rest[at : at + size])
            at += size
        if len(tensor.data) != tensor.shape[0] * tensor.width:
            message = f"{len(tensor.data)} values for the shape {tensor.shape}"
            raise invalid(f"inputs.{tensor.name}", message, "Send as many as the shape says")
    if at != len(rest):
        raise _cut(None, f"{len(rest) - at} bytes of no tensor behind the JSON text")
    return request


def _cut(name: str | None, message: str) -> RequestError:
    field = None if name is None else f"inputs.{name}"
    hint = "Send Inference-Header-Content-Length and binary_data_size as the bytes are"
    return RequestError(400, "malformed", message, field, hint)


def _flat(tensor: Tensor) -> list[Any]:
    """Return the validated values of a tensor in JSON."""
    field, data = f"inputs.{tensor.name}", tensor.data
    if data is UNSET:
        raise invalid(field, "no data", "Send `data`, or `binary_data_size` and the bytes")
    if len(tensor.shape) == 2 and data and type(data[0]) is list:
        if any(type(row) is not list or len(row) != tensor.width for row in data):
            raise invalid(field, f"rows that do not fit {tensor.shape}", "Make all as long")
        data = list(chain.from_iterable(data))
    takes = _TAKES.get(tensor.datatype, {int})
    if not set(map(type, data)) <= takes:
        wrong = next(value for value in data if type(value) not in takes)
        message = f"not {tensor.datatype}: {_value_text(wrong)}"
        raise invalid(field, message, "Send values of its datatype")
    if float in takes:
        try:
            return list(map(float, data))
        except OverflowError:
            raise invalid(field, "a number out of range", "Send at most 1e100") from None
    if takes == {int} and data:
        bounds = np.iinfo(_DTYPES[tensor.datatype])
        if min(data) < bounds.min or max(data) > bounds.max:
            message = f"{min(data)} to {max(data)} is beyond {tensor.datatype}"
            raise invalid(field, message, "Name the datatype that holds them")
    return data


def _value_text(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return "an array" if isinstance(value, list) else "an object"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _unpacked(tensor: Tensor, raw: memoryview) -> list[Any]:
    """Decode the values of a binary tensor: little-endian; each text after a 4-byte length."""
    if tensor.datatype != "BYTES":
        dtype = np.dtype(_DTYPES[tensor.datatype])
        if len(raw) % dtype.itemsize:
            raise _cut(tensor.name, f"{len(raw)} bytes are no {tensor.datatype}")
        values: list[Any] = np.frombuffer(raw, dtype).tolist()
        return values
    texts, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if end > len(raw):
            raise _cut(tensor.name, "the last text is cut off")
        try:
            texts.append(str(raw[at + 4 : end], "utf-8"))
        except UnicodeDecodeError:
            message = f"text {len(texts)} is not UTF-8"
            raise invalid(f"inputs.{tensor.name}", message, "Send UTF-8") from None
        at = end
    return texts


def count_rows(inputs: Sequence[Tensor], most: int, what: str = "rows") -> int:
    """Return how many rows the tensors have.  RequestError if they differ, or it is not 1 to most.

    Called first: a few bytes may state any number of rows or columns.
    """
    if len(lengths := {tensor.shape[0] for tensor in inputs}) > 1:
        raise invalid("inputs", f"tensors of {sorted(lengths)} rows", "Send as many of each")
    if not 1 <= (n := max(lengths, default=0)) <= most:
        raise invalid("rows", f"{n} {what}", f"Send 1 to {most}, or raise limits.rows_max")
    return n


def rows(inputs: Sequence[Tensor], most: int) -> list[dict[str, Any]]:
    """Make 1 to ``most`` rows of named values from tensors that :func:`parse` has filled.

    Raises RequestError.
    """
    n = count_rows(inputs, most)
    names: list[str] = []
    columns: list[list[Any]] = []
    for tensor in inputs:
        width, values = tensor.width, tensor.values
        if tensor.names is not None:
            own = [name.strip() for name in tensor.names.split(",")]
        else:
            own = [tensor.name] if width == 1 else [f"{tensor.name}.{i}" for i in range(width)]
        if len(own) != width:
            message = f"{width} columns and the names {_value_text(tensor.names or tensor.name)}"
            raise invalid(f"inputs.{tensor.name}", message, _NAMES)
        names += own
        columns += [values] if width == 1 else [values[i::width] for i in range(width)]
    if len(set(names)) != len(names):
        twice, _ = Counter(names).most_common(1)[0]
        raise invalid("inputs", f"two columns are called {_value_text(twice)}", _NAMES)
    if not columns:
        return [{} for _ in range(n)]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


# -- answers to bodies -----------------------------------------------------------------------


def column(name: str, values: Sequence[Any]) -> Tensor:
    """Make an output of shape [n].

    Its datatype is that of the values.  If they are of several types, or missing (from a classifier
    without labels), it is BYTES: their JSON text, ``""`` for missing ones.
    """
    kinds = set(map(type, values))
    datatype = _OF_VALUES.get(kinds.pop(), "BYTES") if len(kinds) == 1 else "BYTES"
    data = list(values)
    if datatype == "BYTES":
        data = [_text(value) for value in values]
    return Tensor(name, [len(data)], datatype, data=data)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)


def encode(answer: InferAnswer, request: InferRequest) -> tuple[bytes, int | None]:
    """Return an answer's body, and how many of its bytes are JSON (None: all of them)."""
    binary_of = {o.name: o.parameters.binary_data for o in request.outputs}
    parts: list[bytes] = []
    for i, output in enumerate(answer.outputs):
        binary = binary_of.get(output.name)
        if request.parameters.binary_data_output if binary is None else binary:
            raw = _packed(output)
            labels = None if output.parameters is UNSET else output.parameters.labels
            parameters = TensorParameters(labels=labels, binary_data_size=len(raw))
            answer.outputs[i] = msgspec.structs.replace(output, parameters=parameters, data=UNSET)
            parts.append(raw)
    text = _ANSWER.encode(answer)
    return b"".join([text, *parts]), len(text) if parts else None


def _packed(output: Tensor) -> bytes:
    if output.datatype != "BYTES":
        return np.array(output.values, _DTYPES[output.datatype]).tobytes()
    texts = [text.encode() for text in output.values]
    return b"".join(part for text in texts for part in (len(text).to_bytes(4, "little"), text))
