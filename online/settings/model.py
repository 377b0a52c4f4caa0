"""Settings of one served model: a frozen tree, checked as it is made."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from online.settings.anomaly import Anomaly
from online.settings.choose import Choose
from online.settings.entity import Keys, check_entity
from online.settings.purposes import PURPOSES, Purpose
from online.settings.sharded import check_shards
from online.settings.tree import Seconds, Tree
from replay.plain import is_plain, plain

Merge = Literal["auto", "sum", "average", "compensated", "ordered", "overlay", "lagging"]


class Sync(Tree):
    """How often a replica exchanges deltas, whichever of the two comes first."""

    interval_ms: float = Field(20, ge=1, le=10_000, description="time between two exchanges")
    updates: int = Field(64, ge=1, le=100_000, description="own rows that start one earlier")
    merge: Merge = Field(
        "auto",
        description="sum adds deltas, average scales them by others' pushes, compensated (what "
        "auto means) corrects them for what others did, where the model tells its curvature; "
        "ordered: each replica learns all rows, in the order of the journal; overlay: one process "
        "does, and each replica its own rows on what that publishes; lagging: without those",
    )


class Snapshots(Tree):
    """How often the server's state is written, and how many are kept."""

    interval_s: float = Field(10, ge=0.1, le=86_400, description="seconds between two of them")
    keep: int = Field(
        24, ge=2, le=10_000, description="new ones kept: the newest, and some spaced over an hour"
    )
    hourly: int = Field(24, ge=0, le=10_000, description="older ones kept, one an hour")
    daily: int = Field(7, ge=0, le=10_000, description="older ones kept, one a day")
    weekly: int = Field(4, ge=0, le=10_000, description="older ones kept, one a week")
    full_every: int = Field(
        24, ge=1, le=10_000,
        description="one of so many holds whole tables; the others what changed since it",
    )  # fmt: skip


StateOf = Literal["code", "structure"]


Test = Literal["rate", "samples", "norm", "direction", "surprise"]


class Replay(Tree):
    """Settings for what each replica keeps of the stream and learns again beside fresh rows."""

    policy: Literal["none", "balanced", "reservoir", "recent", "mixed"] = Field(
        "none",
        description="balanced: as many rows of each class, whatever the stream shows; reservoir: "
        "an even sample of all rows; recent: the last ones; mixed: four fifths balanced (an even "
        "sample in regression), one fifth the last ones",
    )
    capacity: int = Field(1_000, ge=10, le=1_000_000, description="rows kept, in each replica")
    rows: float | None = Field(
        None, ge=0, le=100, description="learned again for a fresh one; none: 3, on long streams 1"
    )
    passes: float | None = Field(
        None, ge=1, le=10, description="over a fresh row; none: 2, on long streams 1"
    )
    distil: float = Field(
        0.1, ge=0, le=100, description="weight of what was answered when a row was kept; networks"
    )
    source_share_max: float = Field(
        1.0, gt=0, le=1, description="most of the capacity that rows of one source may have"
    )
    rebuild_rows: int = Field(
        200_000, ge=0, description="newest rows of the journal that a start reads to fill it again"
    )

    @property
    def on(self) -> bool:
        """Whether rows are learned again."""
        return self.policy != "none"


class Training(Tree):
    """How a torch network learns, beyond its optimizer."""

    average: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="what answers is an average of the weights that keeps this much of the old at "
        "each pass; 0: the weights themselves; none: 0.5 with replay, else 0",
    )
    clip: float | None = Field(
        None, ge=0, description="longest gradient; 0: any; none: 1 with replay, else 0"
    )
    l1: float = Field(0.0, ge=0, le=1e3, description="penalty on absolute weights")
    l2: float = Field(0.0, ge=0, le=1e3, description="penalty on squared weights, halved")
    warm_up: int = Field(
        0, ge=0, le=10_000_000, description="steps in which the rate grows to the optimizer's"
    )

    guard: bool = Field(
        True,
        description="a model that has diverged goes back to a snapshot from before and learns on "
        "at half its rate; river's linear models and torch networks",
    )

    def resolved(self, *, rehearses: bool) -> Training:
        """The same with what depends on replay filled in."""
        average = (0.5 if rehearses else 0.0) if self.average is None else self.average
        clip = (1.0 if rehearses else 0.0) if self.clip is None else self.clip
        return self.model_copy(update={"average": average, "clip": clip})

    @property
    def on(self) -> list[str]:
        """Names of the settings that change how a network learns."""
        return [name for name, value in self.model_dump(exclude={"guard"}).items() if value]


class Drift(Tree):
    """How each replica watches its rows for a stream that has changed."""

    watch: bool = Field(True, description="errors, scores and features of the rows that come")
    reference_rows: int = Field(
        2_000, ge=200, le=1_000_000, description="first rows: what features are compared with"
    )
    window_rows: int = Field(1_000, ge=200, le=1_000_000, description="rows compared at a time")
    on_rise: Literal["tell", "freeze", "rollback", "relearn"] = Field(
        "tell",
        description="when the error has risen; freeze: nothing more is learned until an operator "
        "unfreezes; rollback: back to the newest snapshot from before the rise, what was learned "
        "since is undone and kept; relearn: a fresh model learns the rows since the rise, and "
        "serves if it is better on the newer half of them, what is older is undone and kept. "
        "With replay, recent rows are drawn for a while either way",
    )
    relearn_rows: int = Field(
        2_000,
        ge=400,
        le=100_000,
        description="newest rows that relearn learns, at most; it waits for half as many",
    )
    relearn_pause: Seconds = Field(
        600, description="no second fresh model within this time of the parameter server"
    )


class Triggers(Tree):
    """Searches for values that only some sources send and that turn the model to one label."""

    every: int = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="a search in a process of its own after so many rows of each replica; 0: none",
    )
    rows: int = Field(4_000, ge=100, le=100_000, description="newest rows that it looks at")
    pause: Seconds = Field(
        600, description="seconds from the end of a search to the next, at least"
    )
    on_trigger: Literal["tell", "forget"] = Field(
        "tell",
        description="tell: an incident names the trigger and its sources; forget: they are banned "
        "and forgotten, too, as by online forget",
    )

    @property
    def on(self) -> bool:
        """Whether anything is searched for."""
        return self.every > 0


class Devices(Tree):
    """Deltas that devices send instead of their rows: what one of them may do to the model."""

    rate: float = Field(0.05, gt=0, le=10, description="at which devices learn; in their manifest")
    clip: float = Field(
        1.0, gt=0, le=1e3, description="longest delta (Euclidean); in their manifest"
    )
    buffer: int = Field(
        10, ge=1, le=10_000, description="a delta is learned divided by this: so many make a step"
    )
    behind_max: int = Field(
        4, ge=0, le=7, description="releases that a delta's may be behind the newest"
    )
    hourly: int = Field(60, ge=1, le=100_000, description="deltas of a device in an hour")


class Challenge(Tree):
    """A second learner in shadow: what it is, and when it may serve."""

    learner: str = Field(description="as the model's own: what learns beside it")
    params: dict[str, Any] = Field(default_factory=dict, description="handed to the factory")
    artifact: Path | None = Field(None, description="a file handed to the factory")
    training: Training | None = Field(None, description="none: as the model's own")
    delay: Seconds = Field(
        5,
        description="it learns so long behind the journal, and answers each row as of when it was "
        "asked; rows whose labels come later than this are learned, but not compared",
    )
    rows_min: int = Field(1_000, ge=30, description="rows compared before there is a verdict")
    alpha: float = Field(
        0.05, gt=0, lt=1, description="how likely equal models may ever get a verdict"
    )
    promote: Literal["manual", "auto"] = Field(
        "manual",
        description="auto: it serves once it is better and its log loss (regression: mean error) "
        "is not worse",
    )


FeatureType = Literal["number", "category", "text", "bool"]


class Feature(Tree):
    """The declaration of one feature.  A type alone is enough: `amount: number`."""

    type: FeatureType = Field(
        description="number; category: a text that is one of some, also if it looks like a "
        'number ("17"); text: sentences; bool: true or false'
    )
    range: tuple[float | None, float | None] | None = Field(
        None, description="of a number: the least and the greatest that is taken; null: no bound"
    )
    required: bool = Field(False, description="a row without it, or with null, is refused")
    example: float | bool | str | None = Field(
        None, description="a value of it, for the examples in the OpenAPI document"
    )

    @model_validator(mode="before")
    @classmethod
    def _type_alone(cls, value: object) -> object:
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> Feature:
        if self.range is not None:
            low, high = self.range
            if self.type != "number":
                raise ValueError(f"range: a {self.type} has none; it is for a number")
            if low is not None and high is not None and not low <= high:
                raise ValueError(f"range: {low:g} is above {high:g}: write the least first")
        kinds: dict[str, tuple[type, ...]] = {"number": (float,), "bool": (bool,)}
        if self.example is not None and type(self.example) not in kinds.get(self.type, (str,)):
            raise ValueError(f"example: {self.example!r} is no {self.type}")
        return self


NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"


class ModelSettings(Tree):
    """The settings of one model that is served."""

    name: str = Field(pattern=NAME, description="name in addresses and metrics")
    task: Literal["binary", "multiclass", "regression"] = Field(
        description="two labels, several, or a number; `choose`: among actions, by the reward that "
        "is expected of each (read as `regression` with `choose`); `anomaly`: is a row unlike the "
        "others, with labels or without (read as `binary` with `anomaly`)"
    )
    learner: str = Field(description="file.py:factory, module:factory, or a built-in name")
    params: dict[str, Any] = Field(default_factory=dict, description="handed to the factory")
    artifact: Path | None = Field(
        None, description="a file handed to the factory: what was trained before"
    )
    state_of: StateOf = Field(
        "code",
        description="which model takes up the state that is there: code: of the same source and "
        "params; structure: any that is built alike, as an object served in its own process was",
    )
    classes: dict[Literal["negative", "positive"], str | int | bool] | None = Field(
        None, description="binary only: what the two labels are called"
    )
    features: dict[str, Feature] | None = Field(
        None,
        description="what rows may have, by name: types are checked, other names are left out and "
        "told; none: any name and value",
    )
    strict: bool = Field(
        False, description="with `features`: a row with a name that is not declared is refused"
    )
    entity: Keys | None = Field(
        None,
        description="features that are keys, a user, say: each has an intercept of its own on top "
        "of what all share (`user`, `[user, film]`), and weights on numbers (`{user: [price]}`)",
    )
    confidence: float | None = Field(
        None,
        ge=0.5,
        le=0.999,
        description="each answer has a set of labels (regression: an interval) that holds the true "
        "one this often, also where the stream changes and labels come late; none: it has none",
    )
    calibrate: bool = Field(
        False,
        description="probabilities are corrected where labels say that they are too sure, or not "
        "sure enough: by one number for all, so no answer becomes another one, and none that the "
        "model learns of",
    )
    slices: tuple[str, ...] = Field(
        (),
        max_length=8,
        description="features by whose values scores and coverage are counted, too",
    )
    slice_values: int = Field(
        32,
        ge=1,
        le=1_000,
        description="values of such a feature, and actions of `task: choose`, "
        "that are counted; others count together",
    )
    sync: Sync = Sync()
    snapshots: Snapshots = Snapshots()
    token_lifetime: Seconds = Field(7 * 86_400, description="how long a prediction takes a label")
    learn: Literal["inline", "background"] = Field(
        "inline",
        description="background: feedback is answered 202 queued when it is durable, and learned "
        "by a process of its own, so that a slow model delays no prediction",
    )
    shards: int = Field(
        1,
        ge=1,
        le=64,
        description="parameter servers; each holds a part of the keys of its tables",
    )
    dedupe_window: Seconds = Field(7 * 86_400, description="how long a repeat is known by its id")
    label_wait: Seconds = Field(60, description="how long a label waits for its prediction")
    conversion_window: Seconds | None = Field(
        None,
        description="binary: a prediction without a label after this time is a negative, until "
        "a label comes after all; each prediction is written down, behind its answer. None: it "
        "teaches nothing",
    )
    replay: Replay = Replay()
    filters: Literal["default", "none"] | tuple[Test, ...] = Field(
        "default",
        description="tests of feedback before it is learned: default, none, or a list of rate, "
        "samples, norm, direction, surprise. Nobody is judged while fewer than eight sources send",
    )
    root_set: Path | None = Field(
        None,
        description="rows that you vouch for, CSV or JSON lines, ten of each class: directions of "
        "feedback are compared with them",
    )
    devices: Devices | None = Field(
        None,
        description="take deltas that devices learned from an edge release; needs root_set; "
        "logreg, softmax, mlp and their like. None: they are refused",
    )
    training: Training = Training()
    drift: Drift = Drift()
    triggers: Triggers = Triggers()
    challenger: Challenge | None = Field(
        None, description="a second learner in shadow, which learns the same rows"
    )
    choose: Choose | None = Field(
        None, description="of `task: choose`: how it chooses; None: it does not"
    )
    anomaly: Anomaly | None = Field(
        None, description="of `task: anomaly`: when a row is one; None: it is another task"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_by_purpose(cls, value: object) -> object:
        name = value.get("task") if isinstance(value, dict) else None
        purpose = PURPOSES.get(name) if isinstance(name, str) else None
        return value if purpose is None or not isinstance(value, dict) else purpose.read(value)

    @model_validator(mode="after")
    def _fits_its_purpose(self) -> ModelSettings:
        for one in PURPOSES.values():
            if one.part is None or getattr(self, one.part) is None:
                continue
            if self.task != one.labels:
                raise ValueError(f"{one.part}: it is for `task: {one.name}`, not {self.task}")
            for name, why in one.closed.items():
                given = getattr(self, name)
                if getattr(given, "on", given):
                    raise ValueError(f"{name}: {why}")
        if self.choose is not None and self.choose.reward_wait > self.token_lifetime:
            raise ValueError(
                f"choose.reward_wait: {self.choose.reward_wait:g} s is longer than token_lifetime, "
                f"{self.token_lifetime:g} s, for which a choice is kept: make it shorter"
            )
        return self

    @model_validator(mode="after")
    def _conversions_can_wait(self) -> ModelSettings:
        if (window_s := self.conversion_window) is None:
            return self
        if self.task != "binary" or self.anomaly is not None:
            raise ValueError(
                f"conversion_window: {window_s:g} s after which no label is a negative, and "
                f"`task: {self.purpose.name}` has none: leave it out, or take `task: binary`"
            )
        if window_s > self.token_lifetime / 2:  # after a restart predictions wait anew
            raise ValueError(
                f"conversion_window: {window_s:g} s is longer than half of token_lifetime, "
                f"{self.token_lifetime:g} s, for which a prediction is kept, and after a restart "
                "they wait anew: make it shorter, or token_lifetime longer"
            )
        if self.replay.on:
            raise ValueError(
                f"conversion_window: {window_s:g} s after which a lesson may be taken back, and "
                "replay would learn it again: leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _features_are_names(self) -> ModelSettings:
        if self.features is None:
            if self.strict:
                raise ValueError("strict: it refuses names that `features` does not have: give it")
            return self
        if not self.features:
            raise ValueError("features: none is declared; leave it out, or name some")
        if odd := [name for name in self.features if not name or not is_plain(name)]:
            raise ValueError(
                f"features: {plain(odd[0])!r} is no name: leave control characters out"
            )
        return self

    @model_validator(mode="after")
    def _is_to_be_calibrated(self) -> ModelSettings:
        if self.calibrate and self.task == "regression":
            raise ValueError("calibrate: a regression has no probabilities; see `confidence`")
        if self.calibrate and self.replay.on and self.replay.distil:
            raise ValueError(
                "calibrate: what is learned again is held to what was answered (replay.distil), "
                "and would learn the correction; say distil: 0, or leave calibrate out"
            )
        return self

    @model_validator(mode="after")
    def _devices_are_compared(self) -> ModelSettings:
        if self.devices is not None and (self.root_set is None or self.task == "regression"):
            raise ValueError(
                "devices: their deltas are compared with rows of classes that you vouch for; "
                "name them in root_set (not for regression)"
            )
        return self

    @cached_property
    def purpose(self) -> Purpose:
        """The task as a settings file has it, and what follows from it."""
        own = (one for one in PURPOSES.values() if one.part and getattr(self, one.part) is not None)
        return next(own, PURPOSES[self.task])

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """The least and the greatest reward that is taken; None: the labels are no rewards."""
        return None if self.choose is None else self.choose.reward_range

    @model_validator(mode="after")
    def _slices_are_names(self) -> ModelSettings:
        if self.entity is not None:
            types = {n: x.type for n, x in (self.features or {}).items()}
            check_entity(self.entity, self.purpose, types or None)
        known = self.features or self.slices
        if odd := [x for x in self.slices if x not in known or not x or not is_plain(x)]:
            raise ValueError(f"slices: {plain(odd[0])!r} is no name, or not one of `features`")
        return self

    @model_validator(mode="after")
    def _shards_hold_parts(self) -> ModelSettings:
        check_shards(self)
        return self

    def made_of(self) -> dict[str, Any]:
        """Return what decides which model learns, as plain data."""
        return self.model_dump(mode="json", include={"learner", "params", "artifact", "training"})

    def made_as(self, parts: Mapping[str, Any]) -> ModelSettings:
        """The same with another model; ``parts`` as of :meth:`made_of`."""
        again = {**self.model_dump(mode="json"), **parts}
        return ModelSettings.model_validate(again)

    @property
    def challenging(self) -> ModelSettings | None:
        """The challenger as a model of its own; None: there is none."""
        if (given := self.challenger) is None:
            return None
        training = self.training if given.training is None else given.training
        parts = {
            "learner": given.learner, "params": given.params, "artifact": given.artifact,
            "training": training, "challenger": None,
        }  # fmt: skip
        return self.model_copy(update=parts)
