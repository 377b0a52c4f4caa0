"""A process of its own finds out whether the models of the next replica load, and why not.

Ray Serve notices that a replica is gone, starts another process, imports everything and tells only
then that a model can't be loaded.  This takes a small part of that.  A process of its own reads the
files as they are by now, and ends alone if a model's code ends the process that imports it.  What
that code starts ends with it, and it ends itself if nobody waits for it any more.
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
_SAID_BYTES: Final = 65_536  # of what it says on its error output, the last


def why_not(settings: Settings, specs: Mapping[str, str]) -> str | None:
    """Return why a model of the settings does not load as the one that serves; None: all do.

    Parameters:
        specs: By the model's name: hash of the spec that the service was started with.
    """
    from online.service.on_ray.rollout import (
        reason,  # it imports Ray, which the other process does not
    )

    data = settings.model_dump(mode="json", context=WITH_SECRETS)
    told = json.dumps({"settings": data, "specs": dict(specs), "path": sys.path})
    words = [sys.executable, "-m", __name__]
    with tempfile.TemporaryFile() as said:  # no pipe: what the code starts would hold it open
        code = _run(words, told, said)
        if code is None:  # whether they load is not known then
            return None
        if code < 0:
            return f"the process that loads the models was ended by signal {-code}"
        said.seek(max(said.seek(0, os.SEEK_END) - _SAID_BYTES, 0))
        return reason(said.read().decode(errors="replace")) if code else None


def _run(words: list[str], told: str, said: IO[bytes]) -> int | None:
    """Run it in a group of its own, which ends with it; returns its code, None: not in time."""
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said,
            start_new_session=True,
        )  # fmt: skip
    except OSError:
        return None
    try:
        process.communicate(told.encode(), timeout=_WAIT_S)
        return process.returncode
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _load() -> None:
    """Load each model as a replica does.  Raises what a replica raises."""
    told = json.load(sys.stdin)
    signal.alarm(_WAIT_S)  # by then nobody waits for it
    sys.path[:] = told["path"]
    settings = Settings.model_validate(told["settings"])
    keys, origin = Keys.from_file(settings.key_path), Origin.here(settings, told["specs"])
    for model in settings.models:
        loaded = load_model(model, settings, keys.secret, keys.old_secrets)
        origin.check_spec(model.name, loaded.spec_hash)


if __name__ == "__main__":
    _load()
