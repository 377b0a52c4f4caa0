"""Serving takes no more than `pip install .` brings: what only extras bring can't be imported here.

Which packages those are comes from ``pyproject.toml`` and from the metadata of what is installed.
"""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Final
from unittest import mock

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import online
import paramserver
import replay

ROOT: Final = Path(__file__).parents[3]
PRODUCT: Final = {"online", "paramserver", "replay", "evaluation", "refusals"}
EXTRAS: Final = {"torch", "sklearn", "onnx", "onnxruntime", "redis", "pyarrow", "pandas"}
BLOCK: Final = """
import sys
from importlib.machinery import PathFinder
class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        return None if top in absent else super().find_spec(name, path, target)
absent = set(sys.stdin.read().split())
begun_with = set(sys.modules)  # what the environment's own start files import
sys.meta_path[:] = [Installed if f is PathFinder else f for f in sys.meta_path]
"""
BESIDE: Final = {"edge", "models", "rescore", "tables"}
# `online backfill` reads tables, with the extra `rescore`; pytest imports its plugin itself
TABLES: Final = {"online.rebuild.backfill"}
PYTEST: Final = {"online.service.pytest_plugin"}
MODEL: Final = """
from online.commands.base import load_settings
from online.models.loading.from_settings import load_model
settings = load_settings(None)
model = load_model(settings.models[0], settings, b"s" * 32).model
model.learn({"length": 1.0}, True, 1.0)
print(model.predict({"length": 1.0}).label)
"""


def _brought() -> set[str]:
    """The distributions that a plain installation brings, by their canonical names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(text) for text in project["dependencies"]]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        for extra in ("", *wanted.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                texts = requires(name) or []
            except PackageNotFoundError:  # for another platform or version of Python
                continue
            for needed in map(Requirement, texts):
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    waiting.append(needed)
    return {name for name, _ in seen}


def _absent() -> set[str]:
    """The top-level modules installed here that a plain installation would not have."""
    brought = _brought()
    # Ray puts a folder of its own copies there once it is imported; they are no installation.
    installed = [place for place in sys.path if "thirdparty_files" not in place]
    with mock.patch.object(sys, "path", installed):
        owned = packages_distributions()
    return {
        module
        for module, owners in owned.items()
        if module not in PRODUCT and not {canonicalize_name(o) for o in owners} & brought
    }


def _served() -> list[str]:
    """The modules of the service's processes: the command line, and the replicas', servers' parts.

    What the rooms beside (exports, scoring, tables) have is imported by these where serving
    needs it.
    """
    found = pkgutil.walk_packages(online.__path__, "online.")
    names = [m.name for m in found if not m.ispkg and m.name.split(".")[1] not in BESIDE]
    for package in (paramserver, replay):
        names += [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
    return sorted({*names, "online.models.loading.load", "evaluation.streams"} - TABLES - PYTEST)


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code],
        input=" ".join(_absent()),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_the_absent_are_those_of_the_extras_and_none_of_a_plain_installation() -> None:
    absent = _absent()
    assert absent >= EXTRAS | {"pytest", "hypothesis"}
    assert not absent & {"ray", "river", "numpy", "scipy", "msgspec", "fastapi", "starlette"}


def test_serving_imports_nothing_that_only_extras_bring() -> None:
    imports = "".join(f"import {name}\n" for name in _served())
    run = _run(
        imports + MODEL + "import json\nprint(json.dumps(sorted(set(sys.modules) - begun_with)))\n"
    )
    assert run.returncode == 0, run.stderr
    label, modules = run.stdout.splitlines()
    assert label == "True"
    imported = set(json.loads(modules))
    assert imported >= {
        "online.service.on_ray.deployment",
        "online.service.on_ray.challenger_process",
        "online.commands.operate.serve",
    }
    assert not {name.partition(".")[0] for name in imported} & _absent()


@pytest.mark.parametrize("module", ["pyarrow", "online.rescore.snapshot"])
def test_a_module_that_needs_an_extra_is_noticed(module: str) -> None:
    """The negative control: the second is what serving once imported."""
    run = _run(f"import {module}\n")
    assert run.returncode != 0
    assert "No module named 'pyarrow'" in run.stderr
