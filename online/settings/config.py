"""The settings tree; this module alone reads the settings file and the environment.

``online.yaml`` is validated against the frozen tree below; an unknown key is refused, with the
nearest known key as a hint.  ``ONLINE_HOST``, ``ONLINE_PORT``, ``ONLINE_REPLICAS``,
``ONLINE_STATE_DIR`` and ``ONLINE_JOURNAL`` override the file, and the command line overrides both.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    SerializationInfo,
    ValidationError,
    field_serializer,
)

from online.errors import ConfigError
from online.settings.access_tokens import WITH_SECRETS, AccessTokens
from online.settings.addresses import check_host, check_origin, check_store, hidden
from online.settings.alerts import Alerts
from online.settings.file_modes import StateMode, umask_of
from online.settings.glimpse import STATE_DIR, given_token
from online.settings.glimpse import environment as environment
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from online.settings.replicas import Replicas
from online.settings.telemetry import ENDPOINT, Telemetry
from online.settings.tokens import ROLES, Grant, entry_of
from online.settings.tree import Tree
from online.settings.wording import explained
from refusals import meant

log = logging.getLogger(__name__)


EMBEDDED = "embedded"
"""Value of ``cluster`` for a service in one process, without Ray."""


def _cluster(value: str) -> str:
    if value not in ("local", "auto", EMBEDDED) and not re.fullmatch(r"[^:/\s]+:\d{1,5}", value):
        raise ValueError("give local, embedded, auto or host:port of a running Ray cluster")
    return value


class Settings(Tree):
    """The settings of the whole service."""

    host: str = Field(
        "127.0.0.1", description="address to listen on; beyond loopback only with tokens"
    )
    port: int = Field(8000, ge=0, le=65_535, description="0 chooses a free port")
    start_wait_s: float = Field(
        180,
        ge=5,
        description="time after which a start that is not complete is given up, and a large "
        "snapshot of which the disk delivers no more",
    )
    replicas: Replicas = Field(2, description="a number, or {min: 1, max: 4}: scaled with the load")
    state_dir: Path = Field(Path(STATE_DIR), description="folder of journal, snapshots and key")
    journal: Annotated[str, AfterValidator(check_store)] = Field(
        "sqlite", repr=False, description="sqlite, or the URL of a durable Redis server"
    )
    journal_prefix: str = Field(
        "online", pattern=r"^[^{}\s]+$", description="prefix of Redis keys, unique to the service"
    )
    journal_durability: Literal["checked", "assumed"] = Field(
        "checked", description="assumed: trust a Redis server whose configuration can't be read"
    )
    journal_accept_loss: bool = Field(
        False, description="accept a Redis server with failover, which may lose rows"
    )
    snapshot_dir: str | None = Field(
        None, repr=False, description="a folder or a URI (s3://…); default: state_dir/snapshots"
    )
    scores: Annotated[str, AfterValidator(check_store)] = Field(
        "sqlite",
        repr=False,
        description="where published scores are read: sqlite (state_dir/scores) or a Redis server",
    )
    cluster: Annotated[str, AfterValidator(_cluster)] = Field(
        "local",
        description="local starts a Ray of its own; auto or host:port joins a running one; "
        "embedded: one process with one replica, without Ray",
    )
    key_file: Path | None = Field(
        None, description="default: state_dir/key, created at the first start"
    )
    models: tuple[ModelSettings, ...] = Field(min_length=1, max_length=256)
    limits: Limits = Limits()
    tokens: AccessTokens = Field(
        AccessTokens(), description="who may use the HTTP port; without any, loopback only"
    )
    origins: tuple[Annotated[str, AfterValidator(check_origin)], ...] = Field(
        (), description="other web origins that may use the service: https://app.example.com"
    )
    hosts: tuple[Annotated[str, AfterValidator(check_host)], ...] = Field(
        (),
        description="host names under which it may be called beside loopback; with tokens and an "
        "empty list: any",
    )
    state_mode: StateMode = Field(
        "700",
        description="who may use the state folder: 700, 750 (its group reads) or 770 (writes)",
    )
    alerts: Alerts = Field(
        Alerts(), description="receivers of alarms, promotions and quarantines: docs/alerts.md"
    )
    telemetry: Telemetry = Field(
        Telemetry(), description="traces, logs and the access log: docs/monitoring.md"
    )
    base_dir: Path = Field(Path("."), description="base of relative paths of learners")

    @property
    def replicas_min(self) -> int:
        """The least number of replicas."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas.min

    @property
    def replicas_max(self) -> int:
        """The greatest number of replicas."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas.max

    @property
    def umask(self) -> int:
        """Umask for everything in the state folder, whichever process makes it."""
        return umask_of(self.state_mode)

    @property
    def key_path(self) -> Path:
        """File of the keys that sign label tokens and pickled blobs."""
        return self.key_file or self.state_dir / "key"

    @field_serializer("alerts", mode="wrap")
    def _told_by_the_owner(self, value: Alerts, inner: Any, info: SerializationInfo) -> Any:
        """Keep the receivers' secrets out of other processes: only the service's owner sends."""
        return {} if info.context == WITH_SECRETS else inner(value)

    @field_serializer("journal", "snapshot_dir", "scores")
    def _hide(self, value: str | None, info: SerializationInfo) -> str | None:
        return value if value is None or info.context == WITH_SECRETS else hidden(value)


DEFAULT_MODEL: Mapping[str, Any] = {"name": "phishing", "task": "binary", "learner": "logreg"}
"""The model without a settings file, for a first try."""

_PATHS = ("state_dir", "base_dir")
_MERGE = "tag:yaml.org,2002:merge"
_VALUES_MAX = 1_000_000
ENVIRONMENT = ("host", "port", "replicas", "state_dir", "journal")
"""Settings that ``ONLINE_…`` environment variables override."""


def load(path: Path | None, overrides: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Settings from the file (if any), then the environment, then ``overrides``.

    Raises:
        ConfigError: With the field, its value and the remedy.
    """
    data: dict[str, Any] = {}
    if path is not None:
        data = _read(path)
        data.setdefault("base_dir", str(path.resolve().parent))
    data.setdefault("models", [dict(DEFAULT_MODEL)])
    _warn_of_misspelt(environ)
    for name in ENVIRONMENT:
        if (value := environ.get(f"ONLINE_{name.upper()}")) is not None:
            data[name] = value
    data.update({name: value for name, value in overrides.items() if value is not None})
    if value := environ.get(ENDPOINT):
        data["telemetry"] = {"endpoint": value, **(data.get("telemetry") or {})}
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        raise explained(error, Settings, data) from None
    if settings.cluster == EMBEDDED and "replicas" not in data:
        settings = settings.model_copy(update={"replicas": 1})
    settings = settings.model_copy(update={"tokens": _read_tokens(settings)})
    _check(settings)
    if settings.cluster == EMBEDDED:
        _check_embedded(settings)
    state = settings.state_dir
    if state.is_symlink() and not state.exists():  # its target may be an unmounted disk
        problem = f"{state} is a link to {os.readlink(state)}, which is not there"
        raise ConfigError("state_dir", problem, "Mount its disk, or make that folder")
    # Not Path.resolve, which raises at circular links; the start reports those itself.
    resolved: dict[str, Any] = {
        name: Path(os.path.realpath(getattr(settings, name))) for name in _PATHS
    }
    if settings.snapshot_dir is not None and "://" not in settings.snapshot_dir:
        resolved["snapshot_dir"] = os.path.realpath(settings.snapshot_dir)
    return settings.model_copy(update=resolved)


def _warn_of_misspelt(environ: Mapping[str, str]) -> None:
    """Warn of environment variables that look like a misspelt ``ONLINE_…`` variable."""
    known = {name.upper() for name in (*ENVIRONMENT, "token", "data_dir")}
    for name in environ:
        bare = name.removeprefix("ONLINE_")
        if bare not in (name, *known) and (near := meant(bare, known)):
            near = near.replace("`", "`ONLINE_", 1)
            log.warning("%s of the environment is not read. %s", name, near)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _OnceEach)
    except OSError as error:
        raise ConfigError(
            str(path), error.strerror or "unreadable", "Name an existing file"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(str(path), f"not YAML: {_place(error)}", "Correct that line") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; a byte
        what = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else "it can't be read"
        raise ConfigError(str(path), f"not YAML: {what}", "Write it as UTF-8 text") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(
            str(path), "not a mapping", "Start with `models:`; see `online config show`"
        )
    return data


class _OnceEach(yaml.SafeLoader):
    """Refuses what few lines must not mean.

    These are a mapping that has a key twice, of which YAML's loader drops the first value, and
    aliases by which something contains itself, or by which there are more than a million values.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._values: dict[yaml.Node, int] = {}  # in each node that is composed, with aliases

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark, alias = event.start_mark, isinstance(event, yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if node is not None and not alias:
            inside = [] if isinstance(node.value, str) else node.value
            if isinstance(node, yaml.MappingNode):
                inside = [one for pair in node.value for one in pair]
            self._values[node] = 1 + sum(self._values[one] for one in inside)
        # An alias inside what it stands for is not counted yet.
        if node is not None and self._values.get(node, _VALUES_MAX + 1) > _VALUES_MAX:
            raise yaml.constructor.ConstructorError(None, None, "values without end", mark)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen and key.tag != _MERGE:
                text = f"`{key.value}` stands there twice"
                raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _place(error: yaml.YAMLError) -> str:
    """Describe the error and its position without quoting the line, which may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "it can't be read as text"
    mark = error.problem_mark
    return f"{error.problem}, line {mark.line + 1}, column {mark.column + 1}"


def _read_tokens(settings: Settings) -> AccessTokens:
    """Replace token files by the tokens that they contain."""
    tokens = settings.tokens
    for role in ROLES:
        path: Path | None = getattr(tokens, f"{role}_file")
        if path is None:
            continue
        path = settings.base_dir / path
        if tokens.of(role):
            raise ConfigError(f"tokens.{role}", "given, and a file of them too", "Leave one out")
        read = read_token_file(path, f"tokens.{role}_file")
        secret = tuple(SecretStr(token) for token in read)
        tokens = tokens.model_copy(update={role: secret, f"{role}_file": path.resolve()})
    return tokens


def read_token_file(path: Path, field: str) -> list[str]:
    """Tokens of a file, one per line; warns if other users can read the file.

    Raises:
        ConfigError: It can't be read or has no valid tokens; it names ``field``.
    """
    try:
        mode = path.stat().st_mode
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{path}: {getattr(error, 'strerror', None) or 'not text'}"
        raise ConfigError(field, problem, "Name a file with one token a line") from None
    if mode & 0o077:
        log.warning("%s can be read by others: chmod 600 %s", path, path)
    tokens = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    try:
        for token in tokens:
            entry_of(token)
    except ValueError as error:
        raise ConfigError(field, f"{path}: {error}", "Write one token a line") from None
    if not tokens:
        raise ConfigError(field, f"{path} contains no token", "Write one token a line")
    return tokens


def _check(settings: Settings) -> None:
    names = [model.name for model in settings.models]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(
            "models", f"two models are named {sorted(twice)}", "Give each its own name"
        )
    for model in settings.models:
        if model.dedupe_window < model.token_lifetime:
            raise ConfigError(
                f"models.{model.name}.dedupe_window",
                f"{model.dedupe_window:g} s is less than token_lifetime, "
                f"{model.token_lifetime:g} s: a label that comes again late would be learned twice",
                "Make it at least as long, or shorten token_lifetime",
            )
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
    for (role, _), grant in settings.tokens.grants.items():
        if role == "admin" and grant != Grant(name=grant.name):
            remedy = "Give sources to tokens for predict and feedback only"
            raise ConfigError("tokens.admin", "a token with a source or a bound", remedy)
        if role == "predict" and (grant.weight_max is not None or grant.labels_for is not None):
            remedy = "Give weight_max and labels_for to feedback tokens only"
            raise ConfigError("tokens.predict", "a token with weight_max or labels_for", remedy)
    receivers = settings.alerts.webhooks or settings.alerts.mail
    if receivers and settings.tokens and own_token(settings, {}) is None:
        raise ConfigError(
            "alerts",
            "of the tokens for admin only digests are known, and the service asks itself how it is",
            "Give one token for admin as it is, in tokens.admin or its file",
        )
    named = {x for grant in settings.tokens.grants.values() for x in grant.labels_for or ()}
    if unknown := named - settings.tokens.askers:
        log.warning("tokens: labels_for names %s: no token for predict is theirs", sorted(unknown))
    given = [role for role in ROLES if settings.tokens.of(role)]
    if given and len(given) < len(ROLES):
        missing = ", ".join(role for role in ROLES if role not in given)
        raise ConfigError(
            "tokens",
            f"none for {missing}",
            "Give each role a token (two roles may have the same one), or leave all of them out",
        )
    if not _loopback(settings.host) and not given:
        raise ConfigError(
            "host",
            f"{settings.host} is not a loopback address, and there are no access tokens",
            "Give tokens for predict, feedback and admin, or use 127.0.0.1",
        )


def _check_embedded(settings: Settings) -> None:
    """Refuse settings that need processes beside the single one of an embedded service."""
    other = "or take `cluster: local`, which starts Ray"
    if settings.replicas != 1:
        raise ConfigError(
            "replicas",
            f"with `cluster: embedded` there is one, got {settings.replicas}",
            f"Give 1 or leave it out, {other}",
        )
    for model in settings.models:
        wanted = {
            "challenger": model.challenger is not None,
            "learn": model.learn == "background",
            "sync.merge": model.sync.merge in ("overlay", "lagging"),
            "drift.on_rise": model.drift.on_rise == "relearn",
            "triggers.every": model.triggers.every > 0,
        }
        for name in (name for name, on in wanted.items() if on):
            raise ConfigError(
                f"models.{model.name}.{name}",
                "what is asked for runs in a process of its own, and `cluster: embedded` has one "
                "process in all",
                f"Leave it out, {other}",
            )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def own_token(settings: Settings | None, environ: Mapping[str, str]) -> str | None:
    """The token that our own commands send: ``ONLINE_TOKEN``, or the first of ``tokens.admin``.

    None if there is none, or if the settings contain only its digest.
    """
    if (given := given_token(environ)) is not None:
        return given
    known = () if settings is None else settings.tokens.of("admin")
    return next((token for token in known if not token.startswith("sha256:")), None)


def data_dir() -> Path | None:
    """Folder of real data streams, from ``ONLINE_DATA_DIR``; None if it is not set."""
    value = environment().get("ONLINE_DATA_DIR")
    return Path(value) if value else None


def edge_python(target: str) -> str | None:
    """Python interpreter for a target's exports, from ``ONLINE_TARGET_PYTHON``; None if not set."""
    return environment().get(f"ONLINE_{target.upper()}_PYTHON") or None
