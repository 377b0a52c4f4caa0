"""Settings: the only reader of files and environment.

``online.yaml`` is checked against the frozen tree below; an unknown key is refused with the
nearest known one.  ``ONLINE_HOST``, ``ONLINE_PORT``, ``ONLINE_REPLICAS`` and ``ONLINE_STATE_DIR``
override the file, and the command line overrides both.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from online.errors import ConfigError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _seconds(value: object) -> object:
    """Seconds from ``"7d"``, ``"90s"`` or a number."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", value)):
        return float(match[1]) * _UNITS[match[2]]
    return value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]


class _Tree(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Sync(_Tree):
    """How often a replica exchanges deltas, whichever of the two comes first."""

    interval_ms: float = Field(20, ge=1, le=10_000, description="time between two exchanges")
    updates: int = Field(64, ge=1, le=100_000, description="own rows that start one earlier")
    merge: Literal["auto", "sum", "average"] = Field(
        "auto", description="sum adds deltas, average scales them by others' pushes"
    )


class Snapshots(_Tree):
    """How often the server's state is written, and how many are kept."""

    interval_s: float = Field(10, ge=0.1, le=86_400)
    keep: int = Field(24, ge=2, le=10_000, description="newest ones kept")
    hourly: int = Field(24, ge=0, le=10_000)
    daily: int = Field(7, ge=0, le=10_000)
    weekly: int = Field(4, ge=0, le=10_000)


class ModelSettings(_Tree):
    """One served model."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    task: Literal["binary", "multiclass", "regression"]
    learner: str = Field(description="file.py:factory, module:factory, logreg, softmax or linreg")
    params: dict[str, Any] = Field(default_factory=dict, description="handed to the factory")
    classes: dict[Literal["negative", "positive"], str | int | bool] | None = Field(
        None, description="binary only: what the two labels are called"
    )
    sync: Sync = Sync()
    snapshots: Snapshots = Snapshots()
    token_lifetime: Seconds = Field(7 * 86_400, description="how long a prediction takes a label")


class Limits(_Tree):
    """Every bound of the service.  At a bound new work is refused, nothing accepted is dropped."""

    body_bytes_max: int = Field(1_048_576, ge=1_024)
    rows_max: int = Field(1_000, ge=1, le=100_000, description="rows of one request")
    features_max: int = Field(4_096, ge=1, description="features of one row")
    text_bytes_max: int = Field(1_024, ge=16, description="a feature's name or text value")
    token_bytes_max: int = Field(8_192, ge=256, description="above it a prediction gets no id")
    ongoing_max: int = Field(256, ge=2, description="requests a replica works on at once")
    feedback_wait_s: float = Field(10, gt=0, description="how long feedback waits for the journal")
    retain_mb: int = Field(64, ge=1, description="deltas kept until a snapshot has them")
    disk_low_mb: int = Field(256, ge=0, description="free space below which feedback is refused")
    adopt_s: float = Field(10, ge=1, description="a dead replica's rows are learned within")


class Settings(_Tree):
    """The whole service."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65_535, description="0 takes a free one")
    replicas: int = Field(2, ge=1, le=64)
    state_dir: Path = Path("./state")
    journal: Literal["sqlite"] = "sqlite"
    key_file: Path | None = Field(None, description="default: state_dir/key, made at first start")
    models: tuple[ModelSettings, ...] = Field(min_length=1, max_length=64)
    limits: Limits = Limits()
    base_dir: Path = Field(Path("."), description="what relative learner paths are relative to")

    @property
    def key_path(self) -> Path:
        """File of the keys that sign label tokens and pickled blobs."""
        return self.key_file or self.state_dir / "key"


DEFAULT_MODEL: Mapping[str, Any] = {"name": "phishing", "task": "binary", "learner": "logreg"}
"""What is served when there is no settings file: enough for a first try."""

_ENVIRONMENT = ("host", "port", "replicas", "state_dir")


def load(path: Path | None, overrides: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Settings from the file (if any), then the environment, then ``overrides``.

    Raises ConfigError naming the field, its value and the remedy.
    """
    data: dict[str, Any] = {}
    if path is not None:
        data = _read(path)
        data.setdefault("base_dir", str(path.resolve().parent))
    data.setdefault("models", [dict(DEFAULT_MODEL)])
    for name in _ENVIRONMENT:
        if (value := environ.get(f"ONLINE_{name.upper()}")) is not None:
            data[name] = value
    data.update({name: value for name, value in overrides.items() if value is not None})
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        raise _explain(error) from None
    _check(settings)
    resolved = {"state_dir": settings.state_dir.resolve(), "base_dir": settings.base_dir.resolve()}
    return settings.model_copy(update=resolved)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(
            str(path), error.strerror or "unreadable", "Name an existing file"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(str(path), f"not YAML: {error}", "Mend the line named") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(
            str(path), "not a mapping", "Start with `models:`; see `online config show`"
        )
    return data


def _explain(error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        remedy = f"Did you mean `{near[0]}`?" if near else f"Known here: {', '.join(known)}"
        return ConfigError(field, "unknown setting", remedy)
    value = "" if first["type"] == "missing" else f", got {first['input']!r}"
    return ConfigError(field, f"{first['msg']}{value}", "`online config show` prints every default")


def _fields(loc: tuple[int | str, ...]) -> list[str]:
    """Names of the settings at a place of the tree."""
    node: type[BaseModel] = Settings
    for part in loc:
        if part == "models" or isinstance(part, int):
            node = ModelSettings
        elif (annotation := node.model_fields[str(part)].annotation) and isinstance(
            annotation, type
        ):
            node = annotation
    return list(node.model_fields)


def _check(settings: Settings) -> None:
    names = [model.name for model in settings.models]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError("models", f"two are called {sorted(twice)}", "Give each its own name")
    for model in settings.models:
        if model.classes is not None and (model.task != "binary" or len(model.classes) != 2):
            raise ConfigError(
                f"models.{model.name}.classes",
                "needs `negative` and `positive`, and task: binary",
                "Leave it out for other tasks: their labels are learned from the feedback",
            )
        if model.classes is not None and len({str(c).lower() for c in model.classes.values()}) < 2:
            raise ConfigError(
                f"models.{model.name}.classes",
                f"both are called the same: {list(model.classes.values())}",
                "Give each its own name",
            )
    if not _loopback(settings.host):
        raise ConfigError(
            "host",
            f"{settings.host} is not a loopback address, and this version has no access tokens",
            "Use 127.0.0.1 and put a proxy with authentication in front",
        )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def environment() -> Mapping[str, str]:
    """The process's environment (read here and nowhere else)."""
    return os.environ


def data_dir() -> Path | None:
    """Folder of real streams, from ``ONLINE_DATA_DIR``; None if it is not set."""
    value = os.environ.get("ONLINE_DATA_DIR")
    return Path(value) if value else None
