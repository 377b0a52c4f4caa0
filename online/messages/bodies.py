"""Bodies of requests and answers: JSON, msgpack, and unbounded streams of JSON lines."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import coroutine
from typing import Any, Final, TypeVar

import msgspec
import msgspec.inspect

from online.errors import RequestError
from online.messages.choices import ChooseRequest, RewardRequest
from online.messages.structs import Event, FeedbackRequest, PredictRequest
from refusals import meant

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
T = TypeVar("T")

# Used only for error messages about a body that the decoder has refused: name and value.
_NO_NUMBER = re.compile(rb'"([^"]*)"\s*:\s*(-?(?:NaN|Infinity|inf|nan)\b)')
_NUMBER = re.compile(rb'"([^"]*)"\s*:\s*(-?\d+(?:\.\d+)?[eE]\+?\d+)')


class UnreadEvent(Event, kw_only=True, gc=True):
    """An event that can't be decoded, in its place among others, and why."""

    error: RequestError


class _Apart(FeedbackRequest):
    """Feedback whose events are not decoded yet."""

    events: list[msgspec.Raw] | None = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Format:
    """One content type: the decoders and the encoder of its bodies.

    ``apart`` leaves the events of feedback as they are, and ``event`` decodes one of them.
    """

    content_type: bytes
    predict: Callable[[bytes], PredictRequest]
    feedback: Callable[[bytes], FeedbackRequest]
    apart: Callable[[bytes], _Apart]
    event: Callable[[bytes], Event]
    choose: Callable[[bytes], ChooseRequest]
    reward: Callable[[bytes], RewardRequest]
    encode: Callable[[Any], bytes]


def _format(content_type: bytes, codec: Any) -> Format:
    """Make the format of one of msgspec's codecs."""
    kinds = (PredictRequest, FeedbackRequest, _Apart, Event, ChooseRequest, RewardRequest)
    calls = [*(codec.Decoder(kind).decode for kind in kinds), codec.Encoder().encode]
    return Format(content_type, *calls)


JSON: Final = _format(b"application/json", msgspec.json)
MSGPACK: Final = _format(b"application/msgpack", msgspec.msgpack)
NDJSON: Final = b"application/x-ndjson"
_NAMES: Final = re.compile(r"\w+(?![\w]*\])")  # field names in a path, without list indexes
_NOT_THAT: Final = ("Expected `object", "Expected `array", "Object missing required field")
_PATIENCE_S: Final = 1.0  # a body that takes longer may be dropped for others
_SHOWN: Final = 80  # characters of a client's text that are quoted in an error
_LINES: Final = 64  # decoded in one turn of the event loop: an invalid one takes 12 µs
_SPLIT: Final = 4_096  # lines split from a part of a body at once
_LINE: Final = msgspec.json.Decoder(Event)


def error_body(error: RequestError) -> dict[str, Any]:
    """Make the body of an error answer."""
    body = {"code": error.code, "message": error.message, "field": error.field, "hint": error.hint}
    return {"error": body}


def content_type(scope: Scope) -> bytes:
    """Return the body's content type in lower case, without parameters; empty if not stated.

    Raises RequestError 415 for a compressed body, which would otherwise be called malformed.
    """
    kind = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            kind = value.partition(b";")[0].strip().lower()
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            message = f"content encoding {value[:_SHOWN].decode('latin-1')!r}"
            raise RequestError(415, "media_type", message, None, "Send it without compression")
    return kind


def format_of(kind: bytes) -> Format:
    """Return the format for this content type.  Raises RequestError 415."""
    # curl --data sends a form's content type by default, so that is treated as JSON.
    if b"json" in kind or kind in (b"", b"application/x-www-form-urlencoded", b"text/plain"):
        return JSON
    if kind in (b"application/msgpack", b"application/x-msgpack", b"application/vnd.msgpack"):
        return MSGPACK
    hint = "Send application/json or application/msgpack; many events: application/x-ndjson"
    raise RequestError(415, "media_type", f"content type {kind[:80].decode('latin-1')}", None, hint)


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read the whole body; 413 as soon as it is known to exceed ``limit`` bytes."""
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            raise _too_large(int(value), limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(len(body), limit)
        return body
    parts, size = [], 0
    while True:
        if message["type"] == "http.disconnect":
            raise _gone()
        part = message.get("body", b"")
        size += len(part)
        if size > limit:  # a chunked body states no length
            raise _too_large(size, limit)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()


class Transfers:
    """Reads bodies and sends answers with a timeout; when all slots are taken, drops the slowest.

    Answers that a client does not read count as well.

    Parameters:
        limit: Largest size of a body in bytes.
        wait_s: How long a body may take to arrive after its headers, in seconds, and how long a
            part of an answer may take to be read.
    """

    def __init__(self, limit: int, wait_s: float) -> None:
        self._limit, self._wait_s = limit, wait_s
        self._clocks: dict[asyncio.Timeout, None] = {}  # the oldest first

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """Read the whole body.  Raises RequestError: 408, 413, or 400 after a disconnect."""
        reading = read_body(scope, receive, self._limit).__await__()
        try:
            waits_for = next(reading)
        except StopIteration as end:  # the common case: it arrived with its headers
            body: bytes = end.value
            return body
        try:
            return await self._within(reading, waits_for)
        except TimeoutError:
            hint = f"Send it within {self._wait_s:g} s, or raise limits.body_wait_s"
            raise RequestError(
                408, "body_late", "the body did not arrive in time", None, hint
            ) from None

    async def give(self, send: Send, message: dict[str, Any]) -> bool:
        """Send a part of an answer; return False if the client reads too slowly."""
        sending = send(message).__await__()
        try:
            waits_for = next(sending)
        except StopIteration:  # the common case: it was sent at once
            return True
        try:
            await self._within(sending, waits_for)
        except TimeoutError:
            return False
        return True

    async def _within(self, begun: Generator[Any, Any, T], waits_for: Any) -> T:
        async with asyncio.timeout(self._wait_s) as clock:
            self._clocks[clock] = None
            try:
                return await _go_on(begun, waits_for)
            finally:
                self._clocks.pop(clock, None)

    def push_out(self) -> bool:
        """Drop the slowest body; return False if none has exceeded the minimum patience."""
        clock = next(iter(self._clocks), None)
        now = asyncio.get_running_loop().time()
        if clock is None or now < (clock.when() or now) - self._wait_s + _PATIENCE_S:
            return False
        del self._clocks[clock]
        if not clock.expired():  # one whose time is over is dropped in the loop's next turn
            clock.reschedule(now)
        return True


@coroutine
def _go_on(begun: Generator[Any, Any, T], waits_for: Any) -> Generator[Any, Any, T]:
    """Resume a coroutine that was started by hand and awaits ``waits_for``."""
    try:
        while True:
            try:
                sent = yield waits_for
            except BaseException as error:
                waits_for = begun.throw(error)
            else:
                waits_for = begun.send(sent)
    except StopIteration as end:
        result: T = end.value
        return result


async def read_lines(receive: Receive, limit: int) -> AsyncIterator[list[bytes]]:
    """Yield the nonempty lines that have arrived so far; 413 for one longer than ``limit``.

    A few thousand at a time: a line may be one letter, and a part of a body a million lines.
    """
    rest, more, whole = b"", True, True
    while more or not whole:
        if whole:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _gone()
            more = bool(message.get("more_body"))
            rest += message.get("body", b"")
        *lines, rest = rest.split(b"\n", _SPLIT)
        whole = len(lines) < _SPLIT
        if whole and not more:
            lines.append(rest)
        for line in lines:
            if len(line) > limit:
                raise _too_large(len(line), limit)
        if whole and len(rest) > limit:
            raise _too_large(len(rest), limit)
        if lines := [line for line in lines if line.strip()]:
            yield lines


def _gone() -> RequestError:
    return RequestError(400, "disconnected", "the body did not arrive")


def _too_large(size: int, limit: int) -> RequestError:
    message = f"a body of {size} bytes or more, at most {limit}"
    return RequestError(
        413, "too_large", message, None, "Send fewer rows, or raise limits.body_bytes_max"
    )


async def decode_feedback(form: Format, body: bytes, rows_max: int) -> FeedbackRequest:
    """Decode one event or many; among many, one that can't be decoded is an UnreadEvent.

    Raises RequestError 400 or 422, also for more than ``rows_max`` events with such a one.
    """
    try:
        request: FeedbackRequest = decode(form.feedback, body)
    except RequestError as error:
        if error.code != "invalid_value" or not (error.field or "").startswith("events["):
            raise
        apart: _Apart = decode(form.apart, body)
        if apart.events is None or len(apart.events) > rows_max:
            raise
    else:
        return request
    events: list[Event] = []
    for i, raw in enumerate(apart.events):
        if i % _LINES == 0:
            await asyncio.sleep(0)  # lets predictions run
        event = _event(form.event, bytes(raw))
        if isinstance(event, UnreadEvent):
            e, place = event.error, f"events[{i}]"
            field = f"{place}.{e.field}" if e.field else place
            event = UnreadEvent(error=RequestError(e.status, e.code, e.message, field, e.hint))
        events.append(event)
    return FeedbackRequest(**{**msgspec.structs.asdict(apart), "events": events})


async def decode_events(lines: Sequence[bytes]) -> list[Event]:
    """Decode each line of an upload into an event, or an UnreadEvent that names the wrong field.

    Other tasks get a turn after some lines and at the end, because invalid lines are not written
    and so never wait for a commit, however many there are.
    """
    events: list[Event] = []
    for i in range(0, len(lines), _LINES):
        events += _some_events(lines[i : i + _LINES])
        await asyncio.sleep(0)
    return events


def _some_events(lines: Sequence[bytes]) -> list[Event]:
    """Decode some of the lines.

    All are decoded together if they look like objects.  The decoder would accept two objects on one
    line, but not one object on two lines; so equal counts mean one object per line.
    """
    if all([line[:1] == b"{" and line[-1:] == b"}" for line in lines]):
        with contextlib.suppress(msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            events: list[Event] = _LINE.decode_lines(b"\n".join(lines))
            if len(events) == len(lines):
                return events
    return [_event(_LINE.decode, line) for line in lines]


def _event(decoder: Callable[[bytes], Event], body: bytes) -> Event:
    try:
        event: Event = decode(decoder, body)
    except RequestError as error:
        return UnreadEvent(error=error)
    return event


def decode(decoder: Callable[[bytes], Any], body: bytes) -> Any:
    """Decode the body of a request.

    Raises RequestError: 400 if it is malformed, 422 with the name of a wrong field.
    """
    if not body:
        raise RequestError(400, "no_body", "the body is missing", None, "Send a JSON object")
    try:
        return decoder(body)
    except msgspec.ValidationError as error:
        kind = getattr(getattr(decoder, "__self__", None), "type", None)
        raise _wrong_value(str(error), body, kind) from None
    except RecursionError:
        hint = "Send features as an object of numbers and texts"
        raise RequestError(400, "malformed", "nested too deeply", None, hint) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        field, message = None, str(error)
        if match := _NO_NUMBER.search(body):
            field, message = match[1].decode(errors="replace")[:80], f"{match[2].decode()}: {error}"
        hint = "Send JSON; NaN and Infinity are no JSON numbers: leave missing values out"
        raise RequestError(400, "malformed", message, field, hint) from None


@lru_cache(maxsize=256)
def _fields_at(kind: Any, path: str) -> dict[str, bool]:
    """Return the fields at a path in a body or its items, and whether each is required."""
    type_info: Any = msgspec.inspect.type_info(kind)
    for name in ["", *_NAMES.findall(path)]:
        if name:
            fields = {field.encode_name: field.type for field in getattr(type_info, "fields", ())}
            if (type_info := fields.get(name)) is None:
                return {}
        while (
            behind := getattr(type_info, "type", None)
            or getattr(type_info, "item_type", None)
            or getattr(type_info, "types", (None,))[0]
        ) is not None:
            type_info = behind
    return {field.encode_name: field.required for field in getattr(type_info, "fields", ())}


def _wrong_value(text: str, body: bytes, kind: Any) -> RequestError:
    """Convert the decoder's message into a 422, adding names and values that it omits.

    ``kind``: the struct that was to be decoded; None: not known.
    """
    message, _, path = text.replace("`key` in `", "`").partition(" - at `$")
    field, hint = path.rstrip("`").lstrip("."), "See /docs for the fields and their types"
    known = _fields_at(kind, field) if kind is not None and len(field) <= _SHOWN else {}
    if match := re.search(r"unknown field `(.*)`", message):
        name = match[1][:_SHOWN]
        message = f"Object contains unknown field `{name}`"
        field = f"{field}.{name}".lstrip(".")
        hint = "Leave it out; see /docs for the fields"
        if known:
            hint = meant(match[1], known) or f"Known here: {', '.join(known)}"
    elif message == "Number out of range":
        huge = [m for m in _NUMBER.finditer(body) if math.isinf(float(m[2]))]
        if huge:
            field = field.replace("[...]", "." + huge[0][1].decode(errors="replace")[:80])
            message, hint = f"{huge[0][2].decode()[:80]} is out of range", "Send at most 1e100"
    elif known and message.startswith(_NOT_THAT):
        needed = ", ".join(f'"{name}": …' for name, required in known.items() if required)
        form = f"{{{needed}}}" if needed else "an object"
        form = f"a list of {form}" if message.startswith("Expected `array`") else form
        hint = f"Send {form}; known here: {', '.join(known)}"
    elif field.rpartition(".")[2] == "event_time":
        hint = "Send seconds since 1970 in UTC, such as 1767225600"
    return RequestError(422, "invalid_value", message, field or None, hint)
