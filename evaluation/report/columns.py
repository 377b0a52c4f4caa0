"""Assigns roles (label, prediction, time, …) to a table's columns, by request or by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from evaluation.errors import TableUnusable
from refusals import meant

ROLES: Final = ("label", "prediction", "score", "time", "label_time", "version", "source")

NONE: Final = "none"
"""Requests that no column has the role."""

_NAMES: Final = {
    "label": (
        "label", "target", "y_true", "truth", "true_label", "ground_truth", "actual", "outcome",
        "y", "class",
    ),
    "prediction": (
        "prediction", "predicted", "y_pred", "pred", "predicted_label", "predicted_class", "yhat",
        "y_hat",
    ),
    "score": (
        "score", "probability", "proba", "prob", "y_score", "y_prob", "y_proba", "y_pred_proba",
        "predicted_probability", "prediction_score", "predicted_proba",
    ),
    "time": (
        "time", "timestamp", "predicted_at", "prediction_time", "event_time", "datetime", "ts",
        "date", "at",
    ),
    "label_time": ("label_time", "labelled_at", "labeled_at", "label_at", "target_time"),
    "version": ("version", "model_version"),
    "source": ("source", "client", "segment"),
}  # fmt: skip
_NO_FEATURES: Final = (
    "", "id", "row", "row_id", "rowid", "index", "identifier", "uuid", "event_id", "unnamed: 0",
    "__index_level_0__",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """The columns requested by the caller; None: guess; ``none``: there is no such column.

    ``features`` None: all other columns.
    """

    label: str | None = None
    prediction: str | None = None
    score: str | None = None
    time: str | None = None
    label_time: str | None = None
    version: str | None = None
    source: str | None = None
    features: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Roles:
    """The columns of a table by role; None: there is no such column."""

    label: str
    prediction: str | None
    score: str | None
    time: str | None
    label_time: str | None
    version: str | None
    source: str | None
    features: tuple[str, ...]
    left_out: tuple[str, ...]
    guessed: frozenset[str]

    def columns(self) -> dict[str, str | None]:
        """Return the columns by role."""
        return {role: getattr(self, role) for role in ROLES}


def assign(file: str, names: Sequence[str], roles: Asked) -> Roles:
    """Assign a role to each column.

    Raises:
        TableUnusable: A requested column does not exist, there is no label, or neither a prediction
            nor a score.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TableUnusable(file, twice[0], "two columns have this name", "Rename one of them")
    assigned: dict[str, str | None] = {}
    guessed = set()
    for role in ROLES:
        named = getattr(roles, role)
        if named == NONE and NONE not in names:
            assigned[role] = None
            continue
        assigned[role] = _named(file, names, role, named)
        if named is None:
            taken = {name for name in assigned.values() if name}
            assigned[role] = _guess(names, role, taken | _asked_for(roles))
            guessed.add(role)
    label = assigned["label"]
    if label is None:
        raise TableUnusable(file, None, f"no column is called like a label ({_list(names)})",
                            "Name it with --label COLUMN")  # fmt: skip
    if assigned["prediction"] is None and assigned["score"] is None:
        raise TableUnusable(file, None, f"no column is called like a prediction ({_list(names)})",
                            "Name it with --prediction COLUMN, or a probability with --score COLUMN"
                            )  # fmt: skip
    used = {name for name in assigned.values() if name}
    wanted = roles.features
    for name in wanted or ():
        _named(file, names, "features", name)
    rest = [name for name in (wanted or names) if name not in used]
    ids = () if wanted else tuple(n for n in rest if n.strip().lower() in _NO_FEATURES)
    features = tuple(name for name in rest if name not in ids)
    return Roles(
        label=label,
        prediction=assigned["prediction"],
        score=assigned["score"],
        time=assigned["time"],
        label_time=assigned["label_time"],
        version=assigned["version"],
        source=assigned["source"],
        features=features,
        left_out=ids,
        guessed=frozenset(guessed),
    )


def _asked_for(roles: Asked) -> set[str]:
    named = {getattr(roles, role) for role in ROLES} | set(roles.features or ())
    return {name for name in named if name is not None}


def _named(file: str, names: Sequence[str], role: str, name: str | None) -> str | None:
    if name is None or name in names:
        return name
    hint = meant(name, names, f"Give --{role.replace('_', '-')} one of: {_list(names)}")
    raise TableUnusable(file, name, "there is no such column", hint)


def _guess(names: Sequence[str], role: str, taken: set[str]) -> str | None:
    lower = {name.strip().lower().replace(" ", "_").replace("-", "_"): name for name in names}
    for known in _NAMES[role]:
        name = lower.get(known)
        if name is not None and name not in taken:
            return name
    return None


def _list(names: Sequence[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= 200 else text[:200] + " …"
