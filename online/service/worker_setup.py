"""A process of a Ray of the service's own begins here, so nothing heavy is imported."""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from evaluation.deferred_imports import SERVE, DeferredImports, install

FLAG: Final = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""The variable in which Ray finds what its processes do first."""

HOOK: Final = f"{__name__}.begin"

_BODY: Final = {
    "code": "no_replica",
    "message": "no replica can be reached: they are started, or all were just restarted",
    "field": None,
    "hint": "Send it again: none has seen it",
}
ABSENT: Final = 'content-type application/json string "{}" hdr Retry-After 5'.format(
    json.dumps({"error": _BODY}).replace('"', r"\"")
)
"""What HAProxy answers while it knows no replica, in the words of its configuration."""

_TEMPLATES: Final = "ray.serve._private.haproxy_templates"
_UNKNOWN: Final = (
    "http-request return status 404 content-type text/plain lf-string \"Path '%[path]' not "
    'found. Ping http://.../-/routes for available routes."'
)


def begin() -> None:
    """Begin a process of Ray: every one of them does this first."""
    without_tables()
    without_unknown_paths()


def without_unknown_paths() -> None:
    """Let a HAProxy that was told of no application yet say so, and not that there is no such path.

    Every path is the application's, so it has nothing else to say that for: it has just begun, or
    begun again after it died.  Serve has no setting for the answer; its text is changed before it
    is imported, and left alone if it is another one (:func:`unlike` says so).
    """
    if _TEMPLATES in sys.modules or _UNKNOWN not in _text(module := _templates()):
        return
    known = f"http-request return status 503 {ABSENT}"
    module.HAPROXY_CONFIG_TEMPLATE = _text(module).replace(_UNKNOWN, known)
    sys.modules[_TEMPLATES] = module


def unlike() -> str | None:
    """Return what to warn of if this Ray's text for HAProxy is not the one that is changed here."""
    if _UNKNOWN in _text(_templates()):
        return None
    return (
        f"Ray {version('ray')} has another text for HAProxy than this version knows: while one "
        "begins again after it died, callers get 404 in plain text, not 503 no_replica"
    )


def _templates() -> Any:
    """The module of Serve's texts for HAProxy as its file is, not imported; None without one."""
    import ray

    place = Path(ray.__file__).parent / "serve" / "_private" / "haproxy_templates.py"
    spec = importlib.util.spec_from_file_location(_TEMPLATES, place)
    if spec is None or spec.loader is None or not place.exists():
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _text(module: Any) -> str:
    """The text for HAProxy, empty where a module has none."""
    return str(getattr(module, "HAPROXY_CONFIG_TEMPLATE", ""))


def without_tables() -> None:
    """Import Ray and Serve without pandas and pyarrow, which they have for tables to send.

    No message of ours carries one.  Whoever else imports them has them.
    """
    install(DeferredImports(SERVE, absent=True))
    from ray._private import arrow_serialization

    arrow_serialization._register_custom_datasets_serializers = _nothing


def _nothing(context: Any) -> None:
    """Have Ray's pickles know no tables of pyarrow."""
