"""Names, places and models that follow from the settings: every process derives the same ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from online.config import ModelSettings, Settings
from online.errors import StartRefused
from online.models.load import Loaded, load


def server_name(model: str) -> str:
    """Name of the model's parameter server actor."""
    return f"ParameterServer:{model}"


def journal_path(settings: Settings) -> Path:
    """The journal of all models."""
    return settings.state_dir / "journal.db"


def snapshots_path(settings: Settings) -> Path:
    """Snapshots of all lineages of all models."""
    return settings.state_dir / "snapshots"


def run_path(settings: Settings) -> Path:
    """What runs now: URL and processes, for the other commands and for cleaning up."""
    return settings.state_dir / "run.json"


def load_model(model: ModelSettings, settings: Settings, secret: bytes) -> Loaded:
    """The model that the settings describe, untrained.  ``secret`` seals pickled state."""
    return load(
        model.learner,
        model.params,
        task=model.task,
        classes=None if model.classes is None else {k: v for k, v in model.classes.items()},
        key=secret,
        base_dir=settings.base_dir,
    )


def running(settings: Settings) -> dict[str, Any]:
    """Facts of the service that runs on this state folder.  Raises StartRefused if none does."""
    try:
        facts: dict[str, Any] = json.loads(run_path(settings).read_text())
    except (OSError, ValueError):
        facts = {}
    if not facts.get("url"):
        raise StartRefused(
            f"no service runs on {settings.state_dir}",
            "Start it with `online serve`, or name its folder with --state-dir",
        )
    return facts
