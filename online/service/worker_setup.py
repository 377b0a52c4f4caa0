"""Setup hook of every process of a local Ray; it runs first, so it imports nothing heavy.

Ray finds it by its path, also in processes of another version of the service.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from evaluation.deferred_imports import SERVE, DeferredImports, install
from online.service import lasting_haproxy
from online.service.parts.garbage import scan_seldom

FLAG: Final = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""The environment variable with the function that each Ray process calls first."""

HOOK: Final = f"{__name__}.begin"


def _answer(code: str, message: str, hint: str, again_s: int) -> str:
    body = {"error": {"code": code, "message": message, "field": None, "hint": hint}}
    text = json.dumps(body).replace('"', r"\"")
    return f'content-type application/json string "{text}" hdr Retry-After {again_s}'


ABSENT: Final = _answer(
    "no_replica",
    "no replica can be reached: they are started, or all were just restarted",
    "Send it again: none has seen it",
    5,
)
"""HAProxy's answer while it knows no replica, in its configuration syntax."""

ENDED: Final = _answer(
    "replica_ended",
    "the replica ended before it had answered: what was sent may have been recorded",
    "Send it again; with the same id it counts once",
    1,
)
"""HAProxy's answer to what a replica was answering when it ended."""

_TEMPLATES: Final = "ray.serve._private.haproxy_templates"
_UNKNOWN: Final = (
    "http-request return status 404 content-type text/plain lf-string \"Path '%[path]' not "
    'found. Ping http://.../-/routes for available routes."'
)


def begin() -> None:
    """Set up a Ray process; each of them calls this first."""
    scan_seldom()
    without_tables()
    without_serializers()
    without_unknown_paths()
    install(lasting_haproxy.Finder())


def begin_joined() -> None:
    """Set up a process on a cluster that was joined.

    HAProxy ends with its manager there: nobody on its host would end one that has outlived Ray, and
    the next one would share its port with it.
    """
    without_unknown_paths()
    install(lasting_haproxy.Finder(outlives=False))


def passed_on(flags: Mapping[str, str]) -> dict[str, Any]:
    """Runtime environment of our processes on a cluster that was joined."""
    hook = f"{__name__}.{begin_joined.__name__}"
    return {"env_vars": dict(flags), "worker_process_setup_hook": hook}


def without_unknown_paths() -> None:
    """Make HAProxy answer 503 while it has no application, instead of 404 for an unknown path.

    All paths belong to the application, so HAProxy sends that 404 only after it has started or
    restarted.  Serve has no setting for the answer: its template is changed before Serve imports
    it, and left alone if its text is not the expected one (see :func:`template_warning`).
    """
    if _TEMPLATES in sys.modules or _UNKNOWN not in _text(module := _templates()):
        return
    known = f"http-request return status 503 {ABSENT}"
    module.HAPROXY_CONFIG_TEMPLATE = _text(module).replace(_UNKNOWN, known)
    sys.modules[_TEMPLATES] = module


def template_warning() -> str | None:
    """Return a warning if this Ray's HAProxy template is not the one that is changed here."""
    if _UNKNOWN in _text(_templates()):
        return None
    return (
        f"Ray {version('ray')} has another text for HAProxy than this version knows: while one "
        "begins again after it died, callers get 404 in plain text, not 503 no_replica"
    )


def _templates() -> Any:
    """Load Serve's module of HAProxy templates without importing Serve; None if there is none."""
    import ray

    path = Path(ray.__file__).parent / "serve" / "_private" / "haproxy_templates.py"
    spec = importlib.util.spec_from_file_location(_TEMPLATES, path)
    if spec is None or spec.loader is None or not path.exists():
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _text(module: Any) -> str:
    """The HAProxy template of the module, or an empty string."""
    return str(getattr(module, "HAPROXY_CONFIG_TEMPLATE", ""))


def without_tables() -> None:
    """Import Ray and Serve without pandas and pyarrow, which they use to send tables.

    No message of this service contains a table.  Other importers still get these packages.
    """
    install(DeferredImports(SERVE, absent=True))
    from ray._private import arrow_serialization

    arrow_serialization._register_custom_datasets_serializers = _nothing


def without_serializers() -> None:
    """Let Ray's messages begin without pydantic, its first version, and starlette.

    Ray imports them in each process to register how it sends what no process that it starts for
    this service sends: validators of pydantic's first version, and the state of an application.
    """
    from ray.util import serialization_addons

    serialization_addons.apply = _nothing


def _nothing(context: Any) -> None:
    """Register no further serializers with Ray."""
