"""A process of a Ray of the service's own begins here, so nothing heavy is imported."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, Final

from evaluation.put_off import SERVE, PutOff, install

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
    is imported, and left alone if it is another one.
    """
    import ray

    place = Path(ray.__file__).parent / "serve" / "_private" / "haproxy_templates.py"
    spec = importlib.util.spec_from_file_location(_TEMPLATES, place)
    if _TEMPLATES in sys.modules or spec is None or spec.loader is None or not place.exists():
        return
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known = f"http-request return status 503 {ABSENT}"
    module.HAPROXY_CONFIG_TEMPLATE = module.HAPROXY_CONFIG_TEMPLATE.replace(_UNKNOWN, known)
    sys.modules[_TEMPLATES] = module


def without_tables() -> None:
    """Import Ray and Serve without pandas and pyarrow, which they have for tables to send.

    No message of ours carries one.  Whoever else imports them has them.
    """
    install(PutOff(SERVE, absent=True))
    from ray._private import arrow_serialization

    arrow_serialization._register_custom_datasets_serializers = _nothing


def _nothing(context: Any) -> None:
    """Have Ray's pickles know no tables of pyarrow."""
