"""Learning back: deltas that devices push instead of their rows, for one model in one replica.

A push is judged when it comes (shape, numbers, release, age, rate, the filters for untrusted
pushers) and then is a row of the journal like any other: unique by its id, learned in the order of
offsets, set aside, undone and forgotten by the same means.  What is learned is the delta divided by
``devices.buffer`` and by √(1 + releases behind): as many as that make one step of FedBuff (Nguyen
et al. 2022), without a buffer that a stop could lose.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
from collections import OrderedDict, deque
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from online.edge.releases.channel import Release
from online.edge.releases.folder import Folder
from online.errors import RequestError, invalid
from online.messages.sender import sender
from online.messages.structs import Receipt
from online.models.base import Model
from online.models.device_delta import Movable, numbers
from online.models.gradients import HasGradient
from online.replica.pending import Recorded
from online.replica.replica import ModelReplica
from online.rows.door import Door
from online.rows.prediction_ids import event_key
from online.serving.serving import HTTP
from online.settings.config import Settings
from online.settings.model import Devices, ModelSettings
from online.trust.root_set import RootSet, root_rows
from paramserver.filters.base import ACCEPTED, CLIPPED, REFUSED, Event
from paramserver.filters.chain import Chain
from paramserver.filters.chain import Verdict as Said
from paramserver.filters.direction import Direction
from paramserver.filters.norm import Norm
from paramserver.filters.rate import Rate
from paramserver.filters.schema import Schema
from replay import codec
from replay.example import Example, Judged, Moved, Tensor, label_text
from replay.journal.base import NewRow, Row, Verdict

NUMBERS_MAX: Final = 16_384
"""Of a delta: 64 kB in a row of the journal."""

ROWS_MAX: Final = 10_000
"""That a device may say to have learned for one delta."""

DEVICES_KNOWN_MAX: Final = 10_000
"""Senders whose rate is counted; the least recent one is forgotten."""

HOUR_S: Final = 3600.0

_SLACK: Final = 1.001  # float32 rounds
_REFRESHES: Final = 4  # before the first push: what honest gradients look like now
_TOGETHER: Final = 32  # rows behind a delta, about
_TEXT_MAX: Final = (4 * NUMBERS_MAX + 2) // 3 * 4


class Sent(BaseModel):
    """Numbers, as base64 of int8 with their scale, or of little-endian float32."""

    model_config = ConfigDict(extra="forbid", strict=True)
    scale: float | None = Field(None, gt=0, le=1e6, allow_inf_nan=False)
    int8: str | None = Field(None, max_length=_TEXT_MAX)
    float32: str | None = Field(None, max_length=_TEXT_MAX)


class Push(BaseModel):
    """A push says what a device's rows did to the release that it has."""

    model_config = ConfigDict(
        extra="forbid", strict=True,
        json_schema_extra={
            "examples": [
                {
                    "device": "1x9-k2", "event": 12, "sequence": 17, "n": 32,
                    "weights": {"scale": 0.001, "int8": "AP8B"}, "bias": {"float32": "AAAAAA=="},
                }
            ]
        },
    )  # fmt: skip
    device: str = Field(min_length=1, max_length=64, pattern="^[A-Za-z0-9._-]+$")
    event: int = Field(ge=0, le=2**53, description="counts the device's pushes; a repeat has it")
    sequence: int = Field(ge=1, le=2**53, description="release that the rows were learned from")
    n: int = Field(ge=1, le=ROWS_MAX, description="rows that were learned, one step each")
    weights: Sent
    bias: Sent


class Paces:
    """How many deltas each sender has had taken within an hour, in this replica."""

    def __init__(self, hourly: int) -> None:
        self._hourly = hourly
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, source: str, now_s: float) -> float:
        """Seconds until another one may come; 0: now."""
        times = self._times.get(source)
        while times and times[0] <= now_s - HOUR_S:
            times.popleft()
        return times[0] + HOUR_S - now_s if times and len(times) >= self._hourly else 0.0

    def took(self, source: str, now_s: float) -> None:
        """Count one delta of the source as taken."""
        self._times.setdefault(source, deque()).append(now_s)
        self._times.move_to_end(source)
        while len(self._times) > DEVICES_KNOWN_MAX:
            self._times.popitem(last=False)

    def take_back(self, source: str, now_s: float) -> None:
        """It was a repeat, or was not written."""
        times = self._times.get(source, deque())
        if now_s in times:
            times.remove(now_s)


class Pushes:
    """Takes pushes of one model.

    Parameters:
        door: Knows the model's labels as callers call them.
        place: Where the model is published.
        root: Rows that an operator vouches for, drawn from as deltas are made: many at a time.

    Attributes:
        problem: Why none are taken; None: they are.
        chain: The filters for untrusted pushers, of this replica alone.  Who sends more than others
            is weighed down and not set aside: a fleet begins as strangers.
    """

    def __init__(
        self, replica: ModelReplica, door: Door, place: Path, settings: Devices, root: RootSet
    ) -> None:
        self._replica, self._door, self._folder = replica, door, Folder(place)
        self._settings = settings
        self._paces = Paces(settings.hourly)
        model = replica.learner.serving
        self.problem = _unfit(model, root)
        size = model.slope_size if isinstance(model, HasGradient) else None
        self.chain = Chain(
            [
                Schema(size),
                Rate(refuse_at=math.inf),
                Norm(root.reference),
                Direction(root.reference),
            ],
            reference=root.reference,
            sources_max=replica.limits.sources_max,
        )
        self._drawn = False

    async def take(self, push: Push) -> tuple[int, Receipt]:
        """HTTP status, and what became of the delta.  Raises RequestError."""
        try:
            return await self._take(push)
        except RequestError as error:
            self._replica.counts[f"deltas_refused_{error.code}"] += 1
            raise

    async def _take(self, push: Push) -> tuple[int, Receipt]:
        if self.problem is not None:
            raise not_taken(self._replica.settings.name, self.problem)
        source = sender.get().source or f"device:{push.device}"
        weights, bias = _tensor(push.weights, "weights"), _tensor(push.bias, "bias")
        name = f"{push.device}:{push.event}"
        key = event_key("delta", source, name)
        channel = await asyncio.to_thread(self._folder.channel)
        release = next((r for r in channel.releases if r.sequence == push.sequence), None)
        behind = channel.sequence - push.sequence
        now_s = self._replica.now_s()
        content = blake2b(weights.data + b"\0" + bias.data, digest_size=16).hexdigest()
        refusal = self._late(release, push.sequence, behind, now_s) or self._fast(source, now_s)
        if refusal is not None:
            if (known := await self._find(key)) is None:
                raise refusal
            again = NewRow(key, name, source, Verdict.ACCEPTED, known.payload, now_s)
            return self._receipt(name, content, (await self._replica.writer.record([again]))[0])
        assert release is not None, "that would be refused"
        moved = self._moved(push, release.about, weights, bias)
        event, said = self._judge(source, key, push, moved, release.about["freshness"]["version"])
        weight = 1.0 / (self._settings.buffer * math.sqrt(1 + behind))
        judged = Judged(said.score, said.reason)
        row = NewRow(
            key, name, source, _WRITTEN.get(said.verdict, Verdict.QUARANTINED),
            codec.encode(Example({}, content, weight, judged=judged, moved=moved)), now_s,
            factor=said.factor if said.verdict == CLIPPED else 1.0,
        )  # fmt: skip
        self._paces.took(source, now_s)  # those that come meanwhile count it
        recorded = None
        try:
            recorded = (await self._replica.writer.record([row]))[0]
        finally:
            if recorded is None or recorded.repeat:
                self._paces.take_back(source, now_s)
        if not recorded.repeat:
            self.chain.observe(event, said)
        return self._receipt(name, content, recorded)

    # -- before the append -------------------------------------------------------------------

    def _late(
        self, release: Release | None, sequence: int, behind: int, now_s: float
    ) -> RequestError | None:
        hint = "Take the newest release, learn from that"
        most = self._settings.behind_max
        if release is None or behind > most:
            message = f"release {sequence} is {behind} behind the newest, {most} are allowed"
            if behind < 0:
                message = f"there is no release {sequence} yet"
            return RequestError(409, "stale", message, "sequence", hint)
        about = release.about["freshness"]
        age_s, window_s = now_s - about["snapshot_at"], self._replica.settings.dedupe_window
        if age_s > window_s:  # older repeats are not known for certain
            message = f"release {sequence} is {age_s / 3600:.1f} h old, {window_s / 3600:g} h are"
            return RequestError(409, "stale", f"{message} allowed", "sequence", hint)
        if not self._replica.spec.startswith(about["spec"]):
            message = f"release {sequence} is of another model than the one served"
            return RequestError(409, "stale", message, "sequence", hint)
        return None

    def _fast(self, source: str, now_s: float) -> RequestError | None:
        wait_s = self._paces.wait_s(source, now_s)
        if not wait_s:
            return None
        message = f"{self._settings.hourly} deltas of {source} came within an hour"
        hint = "Learn more rows for each delta"
        return RequestError(429, "too_often", message, "device", hint, math.ceil(wait_s))

    async def _find(self, key: bytes) -> Row | None:
        store = self._replica.store
        row: Row | None = await store.read(store.journal.find, self._replica.settings.name, key)
        return row

    def _moved(self, push: Push, about: Mapping[str, Any], weights: Tensor, bias: Tensor) -> Moved:
        replica, model = self._replica, self._replica.learner.serving
        assert isinstance(model, Movable)
        columns = tuple(about["features"]) if model.by_column else ()
        outputs: tuple[str, ...] = ()
        if model.by_column and replica.settings.task == "binary":
            outputs = ("",)
        elif model.by_column:
            outputs = tuple(label_text(self._door.label(c, "classes")) for c in about["classes"])
        moved = Moved(replica.spec, push.sequence, push.n, columns, outputs, weights, bias)
        if (problem := model.misfit(moved)) is not None:
            raise invalid("weights", problem, "Send the tables of the release that it names")
        length = math.sqrt(sum(float(v @ v) for v in (numbers(weights), numbers(bias))))
        if length > self._settings.clip * _SLACK:
            message = f"a delta of length {length:.4g}, at most {self._settings.clip:g} is taken"
            raise invalid("weights", message, "Clip it: the manifest says how long it may be")
        return moved

    def _judge(
        self, source: str, key: bytes, push: Push, moved: Moved, base: list[int]
    ) -> tuple[Event, Said]:
        """Return what the filters say of a push.  Raises RequestError for what no row may hold."""
        model, learner = self._replica.learner.serving, self._replica.learner
        assert isinstance(model, Movable)
        count = learner.version[1]
        if not self._drawn:
            for i in range(_REFRESHES):
                self.chain.refresh(key + bytes([i]), count)
            self._drawn = True
        step = np.float32(self._settings.rate * push.n)
        event = Event(
            source, key, model.moved_slope(moved) / step,
            version=count, base=base[1] if base[0] == learner.version[0] else 0,
        )  # fmt: skip
        said = self.chain.decide(event)
        if said.verdict == REFUSED:
            raise RequestError(422, "value_refused", said.reason, "weights", "Send finite numbers")
        return event, said

    # -- after it ----------------------------------------------------------------------------

    def _receipt(self, name: str, content: str, recorded: Recorded) -> tuple[int, Receipt]:
        row, status = recorded.row, recorded.status
        assert row is not None, "it waits for no prediction"
        receipt = Receipt(status, name, recorded.version_before, recorded.version)
        if status in ("learned", "clipped"):
            receipt.seen = f"{row.partition}:{row.offset}"
        first = codec.decode(row.payload)
        if recorded.reason:
            receipt.reason = recorded.reason
        elif status in ("clipped", "quarantined"):
            receipt.reason = "the source is banned" if first.judged is None else first.judged.reason
        if recorded.repeat:
            receipt.duplicate, receipt.first_outcome = True, status
            same = first.label == content or codec.is_erased(row.payload)
            receipt.status = "duplicate" if same else "conflict"
        self._replica.counts[f"deltas_{receipt.status}"] += 1
        return HTTP["conflict" if receipt.status == "conflict" else status], receipt


def pushes_for(
    model: ModelSettings, settings: Settings, devices: Devices, replica: ModelReplica, door: Door
) -> Pushes:
    """Make what takes deltas of this model, by the settings.

    Raises StartRefused (its root set).
    """
    assert model.root_set is not None, "the settings are checked"
    served = replica.learner.serving
    rows = root_rows(model, settings, numeric_only=served.numeric_only)
    root = RootSet(model.root_set, rows, lambda: replica.learner.serving, together=_TOGETHER)
    return Pushes(replica, door, settings.state_dir / "edge" / model.name, devices, root)


_WRITTEN: Final = {ACCEPTED: Verdict.ACCEPTED, CLIPPED: Verdict.CLIPPED}


def not_taken(model: str, problem: str) -> RequestError:
    """404: this model takes no deltas."""
    message = f"model {model} takes no deltas of devices: {problem}"
    return RequestError(404, "no_deltas", message, None, "Send rows as feedback")


def _unfit(model: Model, root: RootSet) -> str | None:
    """Why deltas of this model can't be taken; None if they can."""
    if not (isinstance(model, Movable) and isinstance(model, HasGradient)):
        return "it is no linear model and no network"
    return root.problem


def _tensor(sent: Sent, field: str) -> Tensor:
    """The numbers sent, finite and not too many.  Raises RequestError."""
    hint = "Send scale and int8, or float32, as base64"
    if (sent.int8 is None) == (sent.float32 is None) or (sent.scale is None) != (sent.int8 is None):
        raise invalid(field, "int8 with its scale, or float32, is needed", hint)
    try:
        data = base64.b64decode(sent.int8 or sent.float32 or "", validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(field, f"no base64: {error}", hint) from None
    width = 4 if sent.int8 is None else 1
    if len(data) % width or not 1 <= len(data) // width <= NUMBERS_MAX:
        message = f"{len(data)} bytes, 1 to {NUMBERS_MAX} numbers of {width} are taken"
        raise invalid(field, message, hint)
    made = Tensor(sent.scale or 0.0, data)
    if not np.isfinite(numbers(made)).all():
        raise invalid(field, "a number that is not finite", "Learn again: it has diverged")
    return made
