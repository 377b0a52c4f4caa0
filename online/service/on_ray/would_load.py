"""A process of its own finds out whether the models of the next replica load, and why not.

Ray Serve notices that a replica is gone, starts another process, imports everything and tells only
then that a model can't be loaded.  This takes a small part of that.  A process of its own reads the
files as they are by now, and ends alone if a model's code ends the process that imports it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from online.models.loading.from_settings import load_model
from online.rows.prediction_ids import Keys
from online.service.on_ray.origin import Origin
from online.settings.access_tokens import WITH_SECRETS
from online.settings.config import Settings

_WAIT_S: Final = 60.0


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
    try:
        ended = subprocess.run(words, input=told, capture_output=True, text=True, timeout=_WAIT_S)
    except (OSError, subprocess.TimeoutExpired):  # whether they load is not known then
        return None
    if ended.returncode < 0:
        return f"the process that loads the models was ended by signal {-ended.returncode}"
    return reason(ended.stderr) if ended.returncode else None


def _load() -> None:
    """Load each model as a replica does.  Raises what a replica raises."""
    told = json.load(sys.stdin)
    sys.path[:] = told["path"]
    settings = Settings.model_validate(told["settings"])
    keys, origin = Keys.from_file(settings.key_path), Origin.here(settings, told["specs"])
    for model in settings.models:
        loaded = load_model(model, settings, keys.secret, keys.old_secrets)
        origin.check_spec(model.name, loaded.spec_hash)


if __name__ == "__main__":
    _load()
