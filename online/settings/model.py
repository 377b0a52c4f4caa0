"""Settings of one model: a frozen tree that is validated when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from online.settings.anomaly import Anomaly
from online.settings.cache import Cache, check_cache
from online.settings.choose import Choose
from online.settings.entity import Keys, check_entity
from online.settings.purposes import PURPOSES, Purpose
from online.settings.sharded import check_shards
from online.settings.sync import Sync
from online.settings.tree import Seconds, Tree
from replay.plain import is_plain, plain


class Snapshots(Tree):
    """How often the server writes snapshots, and how many of them are kept."""

    interval_s: float = Field(10, ge=0.1, le=86_400, description="seconds between two snapshots")
    keep: int = Field(
        24, ge=2, le=10_000, description="recent snapshots kept: the newest, and some of an hour"
    )
    hourly: int = Field(24, ge=0, le=10_000, description="older snapshots kept, one per hour")
    daily: int = Field(7, ge=0, le=10_000, description="older snapshots kept, one per day")
    weekly: int = Field(4, ge=0, le=10_000, description="older snapshots kept, one per week")
    full_every: int = Field(
        24, ge=1, le=10_000,
        description="one of this many has whole tables; the others have the changes since it",
    )  # fmt: skip


StateOf = Literal["code", "structure"]


Policy = Literal["none", "balanced", "reservoir", "recent", "mixed"]
Test = Literal["rate", "samples", "norm", "direction", "surprise"]


class Replay(Tree):
    """Settings of the rows that each replica stores and relearns beside fresh ones (rehearsal)."""

    switch = "policy"

    policy: Policy = Field(
        "none",
        description="balanced: equally many rows of each class; reservoir: a uniform sample of all "
        "rows; recent: the newest rows; mixed: four fifths balanced (a uniform sample in "
        "regression), one fifth the newest",
    )
    capacity: int = Field(1_000, ge=10, le=1_000_000, description="rows stored in each replica")
    rows: float | None = Field(
        None, ge=0, le=100, description="relearned per fresh row; none: 3, on long streams 1"
    )
    passes: float | None = Field(
        None, ge=1, le=10, description="over a fresh row; none: 2, on long streams 1"
    )
    distil: float = Field(
        0.1, ge=0, le=100, description="networks: weight of the prediction stored with a row"
    )
    source_share_max: float = Field(
        1.0, gt=0, le=1, description="largest share of the capacity for rows of one source"
    )
    rebuild_rows: int = Field(
        200_000, ge=0, description="newest journal rows that a start reads to refill the buffer"
    )

    @property
    def on(self) -> bool:
        """Whether stored rows are relearned."""
        return self.policy != "none"


class Training(Tree):
    """How a torch network learns, beyond its optimizer."""

    average: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="predictions use a running average of the weights that keeps this share of "
        "the old average per pass; 0: the weights themselves; none: 0.5 with replay, else 0",
    )
    clip: float | None = Field(
        None, ge=0, description="gradient norm bound; 0: unbounded; none: 1 with replay, else 0"
    )
    l1: float = Field(0.0, ge=0, le=1e3, description="penalty on absolute weights")
    l2: float = Field(0.0, ge=0, le=1e3, description="penalty on squared weights, halved")
    warm_up: int = Field(
        0, ge=0, le=10_000_000, description="steps until the learning rate reaches the optimizer's"
    )

    guard: bool = Field(
        True,
        description="a diverged model is reset to an earlier snapshot and learns on at half its "
        "rate; river's linear models and torch networks",
    )

    def resolved(self, *, rehearses: bool) -> Training:
        """The same settings with defaults that depend on replay filled in."""
        average = (0.5 if rehearses else 0.0) if self.average is None else self.average
        clip = (1.0 if rehearses else 0.0) if self.clip is None else self.clip
        return self.model_copy(update={"average": average, "clip": clip})

    @property
    def on(self) -> list[str]:
        """Names of the settings that change how a network learns."""
        return [name for name, value in self.model_dump(exclude={"guard"}).items() if value]


class Drift(Tree):
    """How each replica monitors its rows for changes of the stream."""

    watch: bool = Field(True, description="monitor errors, scores and features of incoming rows")
    reference_rows: int = Field(
        2_000, ge=200, le=1_000_000, description="first rows, the reference for later features"
    )
    window_rows: int = Field(1_000, ge=200, le=1_000_000, description="rows per comparison")
    on_rise: Literal["tell", "freeze", "rollback", "relearn"] = Field(
        "tell",
        description="reaction to a risen error; freeze: stop learning until an operator "
        "unfreezes; rollback: return to the newest snapshot before the rise, the rows since are "
        "undone and stored; relearn: a fresh model learns the rows since the rise, and serves if "
        "it is better on the newer half of them, older rows are undone and stored. With replay, "
        "recent rows are preferred for a while in any case",
    )
    relearn_rows: int = Field(
        2_000,
        ge=400,
        le=100_000,
        description="newest rows that relearn uses, at most; it waits for half as many",
    )
    relearn_pause: Seconds = Field(
        600, description="least time of the parameter server between two fresh models"
    )

    @model_validator(mode="after")
    def _is_watched(self) -> Drift:
        if self.on_rise != "tell" and not self.watch:
            raise ValueError(f"on_rise: {self.on_rise} never happens with watch: false: leave one")
        return self


class Triggers(Tree):
    """Searches for values that only some sources send and that turn the model to one label."""

    switch, also_alone = "every", frozenset({"rows"})

    every: int = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="rows per replica between two searches, each in its own process; 0: no search",
    )
    rows: int = Field(4_000, ge=100, le=100_000, description="newest rows that are searched")
    pause: Seconds = Field(600, description="least time from the end of a search to the next")
    on_trigger: Literal["tell", "forget"] = Field(
        "tell",
        description="tell: an incident names the trigger and its sources; forget: these are also "
        "banned and forgotten, as by online forget",
    )

    @property
    def on(self) -> bool:
        """Whether searches are configured."""
        return self.every > 0


class Devices(Tree):
    """Bounds on deltas that devices send instead of their rows (federated learning)."""

    rate: float = Field(
        0.05, gt=0, le=10, description="learning rate on devices; part of their manifest"
    )
    clip: float = Field(
        1.0, gt=0, le=1e3, description="bound of a delta's Euclidean norm; part of their manifest"
    )
    buffer: int = Field(
        10, ge=1, le=10_000, description="divisor of each delta: this many add up to one step"
    )
    behind_max: int = Field(
        4, ge=0, le=7, description="releases by which a delta may be behind the newest"
    )
    hourly: int = Field(60, ge=1, le=100_000, description="deltas per device and hour")


class Challenge(Tree):
    """A challenger: a second learner in shadow mode, and when it is promoted."""

    learner: str = Field(description="the challenger's learner, written as the model's own")
    params: dict[str, Any] = Field(default_factory=dict, description="arguments of the factory")
    artifact: Path | None = Field(None, description="a file for the factory")
    training: Training | None = Field(None, description="none: as for the model")
    delay: Seconds = Field(
        5,
        description="its lag behind the journal; it predicts each row as of the time of the "
        "request. Rows with later labels are learned, but not compared",
    )
    rows_min: int = Field(1_000, ge=30, description="compared rows before a verdict is possible")
    alpha: float = Field(
        0.05, gt=0, lt=1, description="probability that equal models ever get a verdict"
    )
    promote: Literal["manual", "auto"] = Field(
        "manual",
        description="auto: it is promoted once it is better and its log loss (regression: mean "
        "error) is not worse",
    )


FeatureType = Literal["number", "category", "text", "bool"]


class Feature(Tree):
    """The declaration of one feature.  The type alone is enough: `amount: number`."""

    type: FeatureType = Field(
        description='number; category: one of some texts, also texts like a number ("17"); '
        "text: free text; bool: true or false"
    )
    range: tuple[float | None, float | None] | None = Field(
        None, description="number only: least and greatest accepted value; null: no bound"
    )
    required: bool = Field(False, description="refuse a row in which it is missing or null")
    example: float | bool | str | None = Field(
        None, description="an example value for the OpenAPI document"
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
    """The settings of one served model."""

    name: str = Field(pattern=NAME, description="name in URLs and metrics")
    task: Literal["binary", "multiclass", "regression"] = Field(
        description="two labels, several, or a number; `choose`: among actions, by the expected "
        "reward of each (read as `regression` with `choose`); `anomaly`: rows that are unlike the "
        "others, with or without labels (read as `binary` with `anomaly`)"
    )
    learner: str = Field(description="file.py:factory, module:factory, or a built-in name")
    params: dict[str, Any] = Field(default_factory=dict, description="arguments of the factory")
    artifact: Path | None = Field(
        None, description="a file for the factory, such as a pretrained model"
    )
    state_of: StateOf = Field(
        "code",
        description="which stored state a model continues; code: of the same source and params; "
        "structure: of any model with the same structure, such as an embedded object",
    )
    classes: dict[Literal["negative", "positive"], str | int | bool] | None = Field(
        None, description="binary only: names of the two labels"
    )
    features: dict[str, Feature] | None = Field(
        None,
        description="features that rows may have, by name: types are checked, other names are "
        "ignored and reported; none: any name and value",
    )
    strict: bool = Field(False, description="with `features`: refuse rows with undeclared names")
    entity: Keys | None = Field(
        None,
        description="features that are keys, such as a user: each key has its own intercept on "
        "top of the shared model (`user`, `[user, film]`), and weights on numbers "
        "(`{user: [price]}`)",
    )
    confidence: float | None = Field(
        None,
        ge=0.5,
        le=0.999,
        description="coverage of the set of labels (regression: the interval) in each answer: it "
        "contains the true one this often, even if the stream changes and labels are late; none: "
        "no sets",
    )
    calibrate: bool = Field(
        False,
        description="correct probabilities that are over- or underconfident by one temperature; "
        "no predicted label changes, and what is learned does not change",
    )
    slices: tuple[str, ...] = Field(
        (),
        max_length=8,
        description="features by whose values scores and coverage are reported separately",
    )
    slice_values: int = Field(
        32,
        ge=1,
        le=1_000,
        description="values per such feature, and actions of `task: choose`, with counts of their "
        "own; the others are counted together",
    )
    sync: Sync = Sync()
    cache: Cache = Cache()
    snapshots: Snapshots = Snapshots()
    token_lifetime: Seconds = Field(7 * 86_400, description="how long a prediction accepts a label")
    learn: Literal["inline", "background"] = Field(
        "inline",
        description="background: feedback is answered with 202 queued once it is durable, and "
        "learned by a process of its own, so that a slow model does not delay predictions",
    )
    shards: int = Field(
        1, ge=1, le=64, description="parameter servers; each holds a part of the tables' keys"
    )
    dedupe_window: Seconds = Field(
        7 * 86_400, description="how long a repeated event is recognized by its id"
    )
    label_wait: Seconds = Field(60, description="how long a label waits for its prediction")
    conversion_window: Seconds | None = Field(
        None,
        description="binary: a prediction without a label after this time counts as a negative "
        "until a label comes; each prediction is journaled behind its answer. None: it teaches "
        "nothing",
    )
    replay: Replay = Replay()
    filters: Literal["default", "none"] | tuple[Test, ...] = Field(
        "default",
        description="checks of feedback before it is learned: default, none, or a list of rate, "
        "samples, norm, direction, surprise. They begin with the eighth source",
    )
    root_set: Path | None = Field(
        None,
        description="trusted rows, CSV or JSON lines, ten per class: directions of feedback are "
        "compared with them",
    )
    devices: Devices | None = Field(
        None,
        description="accept deltas that devices learned from an edge release; needs root_set; "
        "for logreg, softmax, mlp and similar. None: they are refused",
    )
    training: Training = Training()
    drift: Drift = Drift()
    triggers: Triggers = Triggers()
    challenger: Challenge | None = Field(
        None, description="a second learner in shadow mode, which learns the same rows"
    )
    choose: Choose | None = Field(
        None, description="`task: choose`: how actions are chosen; None: another task"
    )
    anomaly: Anomaly | None = Field(
        None, description="`task: anomaly`: when a row is an anomaly; None: another task"
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
                value = getattr(self, name)
                if getattr(value, "on", value):
                    raise ValueError(f"{name}: {why}")
        wait_s = 0.0 if self.choose is None else self.choose.reward_wait
        if wait_s > self.token_lifetime / 2:  # a restart begins the wait of choices again
            raise ValueError(
                f"choose.reward_wait: {wait_s:g} s is longer than half of token_lifetime, "
                f"{self.token_lifetime:g} s, for which a choice is kept, and after a restart they "
                "wait anew: make it shorter, or token_lifetime longer"
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
        if window_s > self.token_lifetime / 2:  # a restart begins the wait of predictions again
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
        if invalid := [name for name in self.features if not name or not is_plain(name)]:
            raise ValueError(
                f"features: {plain(invalid[0])!r} is no name: leave control characters out"
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
        """The task as a settings file names it, and what follows from it."""
        own = (one for one in PURPOSES.values() if one.part and getattr(self, one.part) is not None)
        return next(own, PURPOSES[self.task])

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """The least and greatest accepted reward; None: the labels are no rewards."""
        return None if self.choose is None else self.choose.reward_range

    @model_validator(mode="after")
    def _slices_are_names(self) -> ModelSettings:
        if self.entity is not None:
            types = {n: x.type for n, x in (self.features or {}).items()}
            check_entity(self.entity, self.purpose, types or None)
        known = self.features or self.slices
        if invalid := [x for x in self.slices if x not in known or not x or not is_plain(x)]:
            raise ValueError(f"slices: {plain(invalid[0])!r} is no name, or not one of `features`")
        return self

    @model_validator(mode="after")
    def _shards_hold_parts(self) -> ModelSettings:
        check_shards(self)
        check_cache(self)
        return self

    def made_of(self) -> dict[str, Any]:
        """Return the settings that determine which model learns, as plain data."""
        return self.model_dump(mode="json", include={"learner", "params", "artifact", "training"})

    def made_as(self, parts: Mapping[str, Any]) -> ModelSettings:
        """The same settings with another model; ``parts`` as returned by :meth:`made_of`."""
        again = {**self.model_dump(mode="json"), **parts}
        return ModelSettings.model_validate(again)

    @property
    def challenging(self) -> ModelSettings | None:
        """The challenger as a model of its own; None without a challenger."""
        if (rival := self.challenger) is None:
            return None
        training = self.training if rival.training is None else rival.training
        parts = {
            "learner": rival.learner, "params": rival.params, "artifact": rival.artifact,
            "training": training, "challenger": None,
        }  # fmt: skip
        return self.model_copy(update=parts)
