"""Checks in a separate process whether the models of the next replica load, and why not.

Ray Serve reports that a model can't be loaded only after it has noticed the lost replica, started a
new process and imported everything; this check takes a small part of that time.  The separate
process reads the files as they are now.  If a model's code ends the process that imports it, only
this one ends.  Processes that the code starts are ended with it, and it ends by itself if its
parent no longer waits for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import IO, Final

from online.models.loading.from_settings import load_model
from online.rows.prediction_ids import Keys
from online.service.on_ray.origin import Origin
from online.settings.access_tokens import WITH_SECRETS
from online.settings.config import Settings

_WAIT_S: Final = 60
_ERROR_BYTES: Final = 65_536  # the end of its error output that is read


def why_not(settings: Settings, specs: Mapping[str, str]) -> str | None:
    """Return why a model of the settings does not load as the one that serves; None: all do.

    Parameters:
        specs: By the model's name: hash of the spec that the service was started with.
    """
    # Imported here: it imports Ray, which the separate process does not need.
    from online.service.on_ray.rollout import reason

    data = settings.model_dump(mode="json", context=WITH_SECRETS)
    given = json.dumps({"settings": data, "specs": dict(specs), "path": sys.path})
    words = [sys.executable, "-m", __name__]
    with tempfile.TemporaryFile() as errors:  # a pipe would be held open by what the code starts
        code = _run(words, given, errors)
        if code is None:  # then it is unknown whether they load
            return None
        if code < 0:
            return f"the process that loads the models was ended by signal {-code}"
        errors.seek(max(errors.seek(0, os.SEEK_END) - _ERROR_BYTES, 0))
        return reason(errors.read().decode(errors="replace")) if code else None


def _run(words: list[str], given: str, errors: IO[bytes]) -> int | None:
    """Run a command in a process group that ends with it; return its code, or None if too late."""
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
    except OSError:
        return None
    try:
        process.communicate(given.encode(), timeout=_WAIT_S)
        return process.returncode
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _load() -> None:
    """Load each model as a replica does.  Raises what a replica raises."""
    given = json.load(sys.stdin)
    signal.alarm(_WAIT_S)  # the parent no longer waits by then
    sys.path[:] = given["path"]
    settings = Settings.model_validate(given["settings"])
    keys, origin = Keys.from_file(settings.key_path), Origin.here(settings, given["specs"])
    for model in settings.models:
        loaded = load_model(model, settings, keys.secret, keys.old_secrets)
        origin.check_spec(model.name, loaded.spec_hash)


if __name__ == "__main__":
    _load()
