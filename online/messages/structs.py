"""Bodies of requests and answers as validated structs, the source of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

_ID_SHOWN: Final = 12  # characters in a repr

FromPeer = Annotated[
    bool,
    Meta(
        description="the values are a copy of another replica's, because this one has started "
        "without the parameter server"
    ),
]

Missing = Annotated[
    list[str] | msgspec.UnsetType,
    Meta(description="declared features that the row lacks; only for models that declare features"),
]
Unknown = Annotated[
    list[str] | msgspec.UnsetType,
    Meta(
        description="undeclared names, which were left out; for a model without declared features: "
        "names under which it has learned nothing"
    ),
]


LabelSet = Annotated[
    list[Any] | msgspec.UnsetType | None,
    Meta(
        description="labels that contain the true one as often as the model's setting `confidence` "
        "says, most probable first; null before the first label; classifiers only"
    ),
]
Interval = Annotated[
    list[float] | msgspec.UnsetType | None,
    Meta(
        description="lower and upper bound that contain the true target as often as `confidence` "
        "says; null before the first label; regression only"
    ),
]


Score = Annotated[
    float | msgspec.UnsetType,
    Meta(
        description="`task: anomaly`: how unusual the row is, from 0 to 1; above 0.5 it is an "
        "anomaly, and 0.5 is the rank `anomaly.threshold` among recently learned rows"
    ),
]


MissingRows = Annotated[
    int | msgspec.UnsetType,
    Meta(
        description="rows of the model's table that the answer lacks, because this replica does "
        "not hold them (`cache.rows`)"
    ),
]


class NearRow(msgspec.Struct):
    """A learned row near the one that is explained."""

    distance: Annotated[float, Meta(description="0: the same; 1: different in every value")]
    label: Annotated[Any, Meta(description="the label that it taught")]
    features: dict[str, Any]
    source: Annotated[str, Meta(description="who sent the label")]
    event_id: str
    at: Annotated[float, Meta(description="when it was written, POSIX seconds")]


class Explanation(msgspec.Struct):
    """The contributions of the features to an answer: `base` plus all of them is `output`."""

    of: Annotated[
        Any, Meta(description="the label whose log odds are explained; null: the number itself")
    ]
    base: Annotated[float, Meta(description="the answer to a row without any feature")]
    output: Annotated[float, Meta(description="the answer to this row, in the same unit")]
    contributions: Annotated[dict[str, float], Meta(description="by feature, the largest first")]
    exact: Annotated[
        bool,
        Meta(
            description="true: read from the weights, or the same for each order of the features; "
            "false: means over some orders, which estimate Shapley values"
        ),
    ]
    nearest: Annotated[
        list[NearRow] | msgspec.UnsetType,
        Meta(description="present if requested by `nearest`, the nearest first"),
    ] = msgspec.UNSET


class PredictRequest(msgspec.Struct, forbid_unknown_fields=True):
    """One row (`features`) or many (`instances`)."""

    features: dict[str, Any] | None = None
    id: Annotated[
        str | None,
        Meta(
            description="your own short id for the label, instead of a token: 1 to 64 letters, "
            "digits and `._:-`; not with `instances`"
        ),
    ] = None
    instances: list[dict[str, Any]] | None = None
    ids: Annotated[
        bool, Meta(description="many rows: give each prediction an id that takes its label")
    ] = False
    max_age_ms: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="503 `too_old` if the model is older than this"),
    ] = None
    after: Annotated[
        str | None,
        Meta(description="`seen` of a receipt: the answer tells whether it includes that row"),
    ] = None
    details: Annotated[
        bool, Meta(description="the answer lists the `missing` and the `unknown` names of a row")
    ] = False
    explain: Annotated[
        bool,
        Meta(description="the answer contains each feature's contribution; not with `instances`"),
    ] = False
    nearest: Annotated[
        Annotated[int, Meta(ge=0, le=100)],
        Meta(description="number of nearest learned rows; with `explain`, for admin tokens"),
    ] = 0


class Event(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The label of a prediction (`id`), or of features that are sent along."""

    label: Annotated[Any, Meta(description="the true label; optional with `task: anomaly`")] = (
        msgspec.UNSET
    )
    id: Annotated[
        str | None, Meta(description="the id of the prediction: its token, or your own")
    ] = None
    features: dict[str, Any] | None = None
    event_id: (
        Annotated[
            str,
            Meta(min_length=1, max_length=256, description="an id of your own; makes repeats safe"),
        ]
        | None
    ) = None
    source: Annotated[str, Meta(max_length=256)] = "default"
    weight: Annotated[Any, Meta(description="importance; 1 for an ordinary row")] = 1.0
    event_time: Annotated[float | None, Meta(description="POSIX seconds")] = None
    provisional: Annotated[
        bool,
        Meta(
            description="the label may change: what it taught is taken back when the event is sent "
            "again without this; needs a token, or an `event_id`"
        ),
    ] = False


class FeedbackRequest(Event):
    """One event, or many (`events`): many are written in one transaction."""

    events: list[Event] | None = None


class Prediction(msgspec.Struct, omit_defaults=True):
    """An answer, with the model and version that gave it."""

    id: Annotated[str, Meta(description="send it back with the true label")]
    prediction: Any
    model: str
    version: str
    own: int
    age_ms: float | None
    updates_behind: int | None
    probabilities: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    includes: bool | msgspec.UnsetType = msgspec.UNSET
    from_peer: FromPeer = False
    missing: Missing = msgspec.UNSET
    unknown: Unknown = msgspec.UNSET
    label_set: LabelSet = msgspec.UNSET
    interval: Interval = msgspec.UNSET
    explanation: Annotated[
        Explanation | msgspec.UnsetType, Meta(description="present if requested by `explain`")
    ] = msgspec.UNSET
    score: Score = msgspec.UNSET
    missing_rows: MissingRows = msgspec.UNSET

    def __repr__(self) -> str:
        sure = _sure(self.prediction, self.probabilities)
        short = self.id if len(self.id) <= _ID_SHOWN else f"{self.id[:_ID_SHOWN]}…"
        by = f"{self.model} {self.version}+{self.own}"
        return f"<prediction {self.prediction!r}{sure} by {by}, id {short}>"


def _sure(prediction: Any, probabilities: Any) -> str:
    """Return the predicted label's probability in brackets; empty if it is not known."""
    if not isinstance(probabilities, dict):
        return ""
    share = probabilities.get(msgspec.json.encode(prediction).decode())
    if share is None and isinstance(prediction, str):
        share = probabilities.get(prediction)
    return "" if share is None else f" ({share:.2f})"


class Row(msgspec.Struct, omit_defaults=True):
    """One answer of many."""

    prediction: Any
    probabilities: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    id: str | msgspec.UnsetType = msgspec.UNSET
    missing: Missing = msgspec.UNSET
    unknown: Unknown = msgspec.UNSET
    label_set: LabelSet = msgspec.UNSET
    interval: Interval = msgspec.UNSET
    score: Score = msgspec.UNSET
    missing_rows: MissingRows = msgspec.UNSET


class Predictions(msgspec.Struct, omit_defaults=True):
    """Answers to many rows, by one and the same model."""

    predictions: list[Row]
    model: str
    version: str
    own: int
    age_ms: float | None
    updates_behind: int | None
    includes: bool | msgspec.UnsetType = msgspec.UNSET
    from_peer: FromPeer = False

    def __repr__(self) -> str:
        by = f"{self.model} {self.version}+{self.own}"
        return f"<{len(self.predictions)} predictions by {by}>"

    def frame(self, index: Any = None) -> Any:
        """Return the answers as a pandas data frame, with a column for each probability.

        ``index`` is the index of its rows, or the data frame that was sent.
        """
        import pandas as pd  # an optional dependency

        rows = []
        for row in self.predictions:
            given = {} if isinstance(row.id, msgspec.UnsetType) else {"id": row.id}
            shown = row.probabilities if isinstance(row.probabilities, dict) else {}
            if not isinstance(row.score, msgspec.UnsetType):
                shown = {**shown, "score": row.score}
            rows.append({"prediction": row.prediction, **shown, **given})
        return pd.DataFrame(rows, index=getattr(index, "index", index))

    def array(self) -> Any:
        """Return the predicted labels as a numpy array, in order."""
        import numpy as np

        return np.array([row.prediction for row in self.predictions])


STATUSES: Final[Mapping[str, str]] = {
    "learned": "durable and in the model",
    "clipped": "durable and in the model, with less weight or bounded values: see reason",
    "quarantined": "durable, not learned: an operator may release it; see reason",
    "failed": "durable, and the model could not learn it",
    "queued": "durable, and not in the model yet",
    "frozen": "kept, not learned: the model is frozen",
    "waiting": "the label is kept until its prediction has been recorded, a reward until its "
    "choice's wait ends",
    "duplicate": "recorded before with the same label: see first_outcome",
    "conflict": "recorded before with another label, which remains valid",
    "expired": "older than the time for which its id is remembered",
    "undone": "learned once, and taken out by a rollback or a forget (a first_outcome only)",
    "released": "quarantined at first, then released by an operator (a first_outcome only)",
    "discarded": "quarantined at first, then discarded by an operator (a first_outcome only)",
    "refused": "one of many: not recorded, see error",
}
"""Statuses of events, with their meanings."""


class Receipt(msgspec.Struct, omit_defaults=True, gc=False):
    """A receipt that reports the outcome of one event."""

    status: Annotated[
        str,
        Meta(
            description="; ".join(f"`{status}`: {text}" for status, text in STATUSES.items()),
            extra_json_schema={"enum": list(STATUSES)},
        ),
    ]
    event_id: str | msgspec.UnsetType = msgspec.UNSET
    version_before: str | msgspec.UnsetType = msgspec.UNSET
    version: str | msgspec.UnsetType = msgspec.UNSET
    seen: Annotated[
        str | msgspec.UnsetType, Meta(description="the row, for `after` of predict")
    ] = msgspec.UNSET
    duplicate: bool = False
    first_outcome: Annotated[
        str | msgspec.UnsetType, Meta(description="status of the first sending, as of now")
    ] = msgspec.UNSET
    learned_as: Annotated[
        str | msgspec.UnsetType,
        Meta(description="if not learned at first, or undone: `seen` of the row that taught it"),
    ] = msgspec.UNSET
    idempotent: bool = True
    reason: str | msgspec.UnsetType = msgspec.UNSET
    corrects: Annotated[
        str | msgspec.UnsetType,
        Meta(description="`seen` of the row with a provisional label that this one has taken back"),
    ] = msgspec.UNSET
    error: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    unknown: Annotated[
        list[str] | msgspec.UnsetType,
        Meta(description="undeclared names that were sent, and left out"),
    ] = msgspec.UNSET

    def __repr__(self) -> str:
        parts = {"event": self.event_id, "version": self.version, "because": self.reason}
        shown = "".join(f", {name} {v}" for name, v in parts.items() if isinstance(v, str))
        why = f", {self.error.get('message')}" if isinstance(self.error, dict) else ""
        return f"<{self.status}{shown}{why}>"


class Receipts(msgspec.Struct):
    """The receipts of many events, in their order."""

    events: list[Receipt]
    model: str


class ErrorBody(msgspec.Struct):
    """An error: a stable code, what is wrong, where, and the remedy."""

    code: str
    message: str
    field: str | None = None
    hint: str | None = None


class ErrorAnswer(msgspec.Struct):
    """The body of every answer with a status of 400 and above."""

    error: ErrorBody
