"""Serving a Python file directly: which object in it is the model, and its task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from online.errors import ConfigError
from online.models.loading import objects
from online.models.loading.load import load_file, made_by

_NAMES: Final = ("model", "make", "build")


def settings_of(path: Path) -> dict[str, Any]:
    """Return the settings of a service that serves the file's model in one process.

    The model is what the file names ``model``, ``make`` or ``build``, or else the only public
    object that it defines; ``task`` and ``name`` may be defined there, too.  Raises ConfigError and
    LearnerUnusable, which name the file.
    """
    module, _ = load_file(str(path), path)
    chosen = _chosen(path, vars(module))
    value = vars(module)[chosen]
    made = _made(path, chosen, value)
    task = getattr(module, "task", None) or objects.task_of(made)
    if task is None:
        words = " or ".join(f'"{one}"' for one in objects.possible_tasks(made))
        raise ConfigError(
            str(path),
            f"{type(made).__name__} may be for several tasks",
            f"Write into the file: task = {words}",
        )
    name = getattr(module, "name", None) or path.stem
    model = {"name": name, "task": task, "learner": f"{path.name}:{chosen}"}
    return {"cluster": "embedded", "base_dir": str(path.resolve().parent), "models": [model]}


def _made(path: Path, name: str, value: Any) -> Any:
    """Return the object that the file calls its model, or what its factory makes."""
    objects.check_recipe(str(path), value)
    if not objects.makes_models(value):
        return value
    made = made_by(f"{path}:{name}", value, {})
    objects.check_recipe(str(path), made)
    return made


def _chosen(path: Path, names: dict[str, Any]) -> str:
    for name in _NAMES:
        if name in names:
            return name
    own = names["__name__"]
    candidates = [
        name
        for name, value in names.items()
        if not name.startswith("_")
        and (hasattr(value, "learn_one") or callable(value))
        and (getattr(value, "__module__", None) == own or not callable(value))
    ]
    if len(candidates) != 1:
        problem = f"defines {', '.join(candidates)}" if candidates else "defines no model"
        raise ConfigError(str(path), f"it {problem}", "Call the one that is to be served `model`")
    return candidates[0]
