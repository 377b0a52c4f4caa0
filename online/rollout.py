"""The replicas as one application of Ray Serve: started, scaled, replaced while others answer."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from online import scaling
from online.config import Settings
from online.errors import StartRefused
from online.model_settings import ModelSettings
from online.token_settings import WITH_SECRETS
from online.tokens import Keys

APP: Final = "online"
_STOP_REPLICA_S = 2.0
_HEALTH_S = 2.0  # so soon is a replica that has died replaced
_SURGE_PERCENT = 50  # rounded up: replacements that start before what they replace stops

_PACKAGES = ("online", "evaluation", "paramserver", "replay", "refusals")
_BY_REPLICAS = ("limits", "tokens", "origins", "hosts")
_AT_ONCE = ("start_wait_s",)  # the process that starts and changes everything alone asks for it
_BY_RESTART = ("task", "learner", "params", "classes")  # of a model: they make its spec


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes that new settings make, as dotted names.

    Attributes
    ----------
    restart
        Only a restart of the service can change these.
    rolling
        Replicas know these from their start: each is replaced.
    scaled
        Only the number of replicas, or not even that.
    """

    restart: tuple[str, ...]
    rolling: tuple[str, ...]
    scaled: bool


def changes(old: Settings, new: Settings) -> Changes:
    """Compare the settings that a service runs with new ones."""
    restart = [
        name
        for name in Settings.model_fields
        if name not in ("replicas", "models", *_AT_ONCE, *_BY_REPLICAS)
        and getattr(old, name) != getattr(new, name)
    ]
    rolling = [name for name in _BY_REPLICAS if getattr(old, name) != getattr(new, name)]
    if [m.name for m in old.models] != [m.name for m in new.models]:
        restart.append("models")
    else:
        for was, model in zip(old.models, new.models, strict=True):
            for name in ModelSettings.model_fields:
                if getattr(was, name) != getattr(model, name):
                    found = restart if name in _BY_RESTART else rolling
                    found.append(f"models.{model.name}.{name}")
    return Changes(tuple(restart), tuple(rolling), old.replicas != new.replicas)


@dataclass(frozen=True, slots=True)
class Origin:
    """The facts that a service was started with: a replica must find the same where it runs.

    Attributes
    ----------
    host
        Name of the service's machine.
    key
        Fingerprint of the key that signs tokens.
    specs
        Hash of each model's spec, by the model's name.
    """

    host: str
    key: str
    specs: Mapping[str, str]

    @classmethod
    def here(cls, settings: Settings, specs: Mapping[str, str]) -> Origin:
        """Return the origin of this process."""
        return cls(socket.gethostname(), _fingerprint(Keys.from_file(settings.key_path)), specs)

    def check_place(self, settings: Settings) -> None:
        """Refuse a machine that does not see the service's files.  Raises StartRefused."""
        host = socket.gethostname()
        if host == self.host:
            return
        if settings.journal == "sqlite":
            raise StartRefused(
                f"a replica was started on {host}, and the SQLite journal is on {self.host}",
                "Put `journal: redis://host:6379/0` into the settings",
            )
        path = settings.key_path
        if not path.exists() or _fingerprint(Keys.from_file(path)) != self.key:
            raise StartRefused(
                f"{path} on {host} is not the key file of {self.host}",
                "Copy it to every node, or name one that all of them see: key_file",
            )

    def check_spec(self, name: str, spec: str) -> None:
        """Refuse code that has changed since the service's start.  Raises StartRefused."""
        if spec != self.specs[name]:
            raise StartRefused(
                f"model {name}: its code has changed since the service started",
                "Restart the service with --relearn or --fresh, or put the old code back",
            )


def code() -> str:
    """Hash of the service's own source files, as they are on the disk of this machine now."""
    here = Path(__file__).parent
    files = sorted(p for name in _PACKAGES for p in (here.parent / name).rglob("*.py"))
    found = hashlib.sha256()
    for file in (*files, *sorted(here.glob("*.html"))):
        found.update(file.read_bytes())
    return found.hexdigest()


def _fingerprint(keys: Keys) -> str:
    return hashlib.sha256(b"fingerprint" + keys.secret).hexdigest()[:16]


def application(settings: Settings, origin: Origin, version: int | None = None) -> Any:
    """The replicas as an application of Ray Serve.

    Parameters
    ----------
    origin
        What a replica compares itself with.
    version
        Replicas of another version are replaced; with the same one, only their number changes.
        None: as Serve finds it, from the code and these arguments.
    """
    from ray import serve

    from online.deployment import Replica

    limits = settings.limits
    deployment = serve.deployment(
        Replica,
        name="Replica",
        **scaling.options(settings.replicas),
        max_ongoing_requests=limits.ongoing_max,
        max_queued_requests=2 * limits.ongoing_max,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        health_check_period_s=_HEALTH_S,
        graceful_shutdown_timeout_s=_STOP_REPLICA_S,
        graceful_shutdown_wait_loop_s=0.1,
        ray_actor_options={"num_cpus": 0.01},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
        max_surge_percent=_SURGE_PERCENT,
    )
    if version is not None:
        # Serve makes up a version at each call, which would replace every replica to scale.
        deployment = deployment.options(version=str(version), _internal=True)
    return deployment.bind(settings.model_dump(mode="json", context=WITH_SECRETS), origin)


def be_patient(wait_s: float) -> None:
    """Let Serve wait so long for its proxies: it has a constant and no setting for that."""
    from ray.serve._private import api, client

    for module in (api, client):
        if hasattr(module, "HTTP_PROXY_TIMEOUT"):
            module.HTTP_PROXY_TIMEOUT = wait_s


def deploy(settings: Settings, origin: Origin, version: int) -> None:
    """Bring the replicas to these settings; returns when all of them answer.

    Raises StartRefused if replicas do not start.
    """
    from ray import serve

    try:
        serve.run(application(settings, origin, version), name=APP)
    except RuntimeError as error:
        said = serve.status().applications[APP].deployments["Replica"].message
        raise StartRefused(
            f"the replicas do not start: {reason(said) or error}", "Mend what it says"
        ) from error


def reason(said: str) -> str:
    """The error that a replica's constructor raised, out of Serve's message with its traceback."""
    errors = re.findall(r"^(?:\w+\.)*\w+(?:Error|Refused|\w*Exception)?: .+", said, re.MULTILINE)
    return errors[-1] if errors else said.strip().rpartition("\n")[2]
