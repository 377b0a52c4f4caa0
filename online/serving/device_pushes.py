"""Learning from devices: takes the deltas that devices push instead of rows, for one model.

A push is checked when it arrives (shape, values, release, age, rate, and the filters for untrusted
pushers) and then is an ordinary row of the journal: unique by its id, learned in offset order, and
quarantined, undone or forgotten by the same means.  The delta is learned divided by
``devices.buffer`` and by √(1 + releases behind): ``devices.buffer`` pushes make one step of FedBuff
(Nguyen et al. 2022), without a buffer that a crash could lose.
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
from online.rows.prediction_ids import event_key
from online.rows.validator import Validator
from online.serving.feedback.receipts import HTTP
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
"""Largest number of values in a delta: 64 kB in a row of the journal."""

ROWS_MAX: Final = 10_000
"""Largest number of rows that a device may report for one delta."""

DEVICES_KNOWN_MAX: Final = 10_000
"""Senders whose rate is counted; beyond it the least recent one is forgotten."""

HOUR_S: Final = 3600.0

_SLACK: Final = 1.001  # tolerance for float32 rounding
_REFRESHES: Final = 4  # reference gradients drawn before the first push is judged
_TOGETHER: Final = 32  # typical number of rows behind a delta
_TEXT_MAX: Final = (4 * NUMBERS_MAX + 2) // 3 * 4


class Sent(BaseModel):
    """A tensor in base64: int8 values with their scale, or little-endian float32 values."""

    model_config = ConfigDict(extra="forbid", strict=True)
    scale: float | None = Field(None, gt=0, le=1e6, allow_inf_nan=False)
    int8: str | None = Field(None, max_length=_TEXT_MAX)
    float32: str | None = Field(None, max_length=_TEXT_MAX)


class Push(BaseModel):
    """A delta: the change that a device's rows made to the release that it has."""

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
    """Counts the accepted deltas of each sender within an hour, in this replica."""

    def __init__(self, hourly: int) -> None:
        self._hourly = hourly
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, source: str, now_s: float) -> float:
        """Seconds until the source may send another delta; 0: now."""
        times = self._times.get(source)
        while times and times[0] <= now_s - HOUR_S:
            times.popleft()
        return times[0] + HOUR_S - now_s if times and len(times) >= self._hourly else 0.0

    def took(self, source: str, now_s: float) -> None:
        """Count one accepted delta of the source."""
        self._times.setdefault(source, deque()).append(now_s)
        self._times.move_to_end(source)
        while len(self._times) > DEVICES_KNOWN_MAX:
            self._times.popitem(last=False)

    def take_back(self, source: str, now_s: float) -> None:
        """Undo :meth:`took` for a delta that was a repeat, or was not written."""
        times = self._times.get(source, deque())
        if now_s in times:
            times.remove(now_s)


class Pushes:
    """Takes the pushes of one model.

    Parameters:
        validator: Knows the model's labels as callers name them.
        place: Folder where the model is published.
        root: Rows that an operator has verified, drawn in batches, as deltas are made from many
            rows.

    Attributes:
        problem: Why no pushes are taken; None: they are.
        chain: The filters for untrusted pushers, of this replica alone.  Senders of more than the
            others are down-weighted, not quarantined: every device of a new fleet is unknown.
    """

    def __init__(
        self,
        replica: ModelReplica,
        validator: Validator,
        place: Path,
        settings: Devices,
        root: RootSet,
    ) -> None:
        self._replica, self._validator, self._folder = replica, validator, Folder(place)
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
        """Return the HTTP status and the receipt of a delta.  Raises RequestError."""
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
        event, decision = self._judge(
            source, key, push, moved, release.about["freshness"]["version"]
        )
        weight = 1.0 / (self._settings.buffer * math.sqrt(1 + behind))
        judged = Judged(decision.score, decision.reason)
        row = NewRow(
            key, name, source, _WRITTEN.get(decision.verdict, Verdict.QUARANTINED),
            codec.encode(Example({}, content, weight, judged=judged, moved=moved)), now_s,
            factor=decision.factor if decision.verdict == CLIPPED else 1.0,
        )  # fmt: skip
        self._paces.took(source, now_s)  # before the append, for pushes that arrive meanwhile
        recorded = None
        try:
            recorded = (await self._replica.writer.record([row]))[0]
        finally:
            if recorded is None or recorded.repeat:
                self._paces.take_back(source, now_s)
        if not recorded.repeat:
            self.chain.observe(event, decision)
        return self._receipt(name, content, recorded)

    # -- checks before the append -------------------------------------------------------------

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
        if age_s > window_s:  # repeats older than this are not recognized for certain
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
            outputs = tuple(
                label_text(self._validator.label(c, "classes")) for c in about["classes"]
            )
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
        """Return the filters' verdict.  Raises RequestError for values that no row may hold."""
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
        decision = self.chain.decide(event)
        if decision.verdict == REFUSED:
            raise RequestError(
                422, "value_refused", decision.reason, "weights", "Send finite numbers"
            )
        return event, decision

    # -- the receipt --------------------------------------------------------------------------

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
    model: ModelSettings,
    settings: Settings,
    devices: Devices,
    replica: ModelReplica,
    validator: Validator,
) -> Pushes:
    """Make the receiver of this model's deltas from the settings.

    Raises StartRefused if its root set is invalid.
    """
    assert model.root_set is not None, "the settings are checked"
    served = replica.learner.serving
    rows = root_rows(model, settings, numeric_only=served.numeric_only)
    root = RootSet(model.root_set, rows, lambda: replica.learner.serving, together=_TOGETHER)
    return Pushes(replica, validator, settings.state_dir / "edge" / model.name, devices, root)


_WRITTEN: Final = {ACCEPTED: Verdict.ACCEPTED, CLIPPED: Verdict.CLIPPED}


def not_taken(model: str, problem: str) -> RequestError:
    """Return the error 404 of a model that takes no deltas."""
    message = f"model {model} takes no deltas of devices: {problem}"
    return RequestError(404, "no_deltas", message, None, "Send rows as feedback")


def _unfit(model: Model, root: RootSet) -> str | None:
    """Why deltas of this model can't be taken; None if they can."""
    if not (isinstance(model, Movable) and isinstance(model, HasGradient)):
        return "it is no linear model and no network"
    return root.problem


def _tensor(sent: Sent, field: str) -> Tensor:
    """Decode the values, which must be finite and not too many.  Raises RequestError."""
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
