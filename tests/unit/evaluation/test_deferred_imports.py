"""Imports that are put off: what river and Ray Serve do not import, and that nothing lacks it."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from evaluation.deferred_imports import RIVER, SERVE, DeferredImports, ModulePlaceholder, install

_HEAVY = {"scipy.stats", "scipy.special", "scipy.sparse", "sklearn", "pandas", "pyarrow", "joblib"}
_MODELS = "from river import compose, drift, linear_model, naive_bayes, optim, preprocessing, tree"


def after(script: str) -> str:
    """What a process prints that runs the script."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def heavy(script: str) -> set[str]:
    """Those of the heavy libraries that a process has imported after the script."""
    return set(after(f"{script}\nimport sys; print(*{_HEAVY} & sys.modules.keys())").split())


def test_river_is_imported_without_what_its_models_may_never_use() -> None:
    assert heavy(f"import evaluation\n{_MODELS}") == set()
    assert {"scipy.stats", "scipy.special"} <= heavy(_MODELS), "what there would be without it"


def test_whoever_else_imports_the_libraries_has_them() -> None:
    script = (
        f"import evaluation\n{_MODELS}\n"
        "import scipy.special, scipy.stats\nfrom scipy.stats import norm\n"
        "assert norm.cdf(0.0) == 0.5\n"
        "from river.drift import datasets\nimport river.drift.datasets as same\n"
        "assert datasets.AirlinePassengers is same.AirlinePassengers\n"
        "print(type(scipy.stats).__name__, type(scipy.special).__name__)\n"
    )
    assert after(script).split() == ["module", "module"]


_USES = """
from river import drift, linear_model, naive_bayes, preprocessing, proba, optim
import math
two = proba.MultivariateGaussian(seed=1)
for x in ({"a": 1.0, "b": 2.0}, {"a": 2.0, "b": 1.0}, {"a": 0.0, "b": 0.5}):
    two.update(x)
print(round(two({"a": 1.0, "b": 1.0}), 12))
beta = proba.Beta(2, 3)
print(round(beta(0.4), 12), round(beta.cdf(0.4), 12))
watched = drift.KSWIN(alpha=1e-4, seed=1)
print([i for i in range(2000) if (watched.update(float(i % 7 + 50 * (i > 1000))),
                                  watched.drift_detected)[1]][:1])
ad = linear_model.AdPredictor()
ad.learn_one({"a": 1}, True)
print(ad.predict_proba_one({"a": 1}))
print(naive_bayes.MultinomialNB().learn_one({"a": 1}, "x"))
lda = preprocessing.LDA(2, seed=1)
lda.learn_one({"a": 1, "b": 2})
print(sorted(lda.transform_one({"a": 1})))
"""


def test_what_is_used_after_all_is_the_same() -> None:
    now, plainly = after(f"import evaluation\n{_USES}"), after(_USES)
    assert now == plainly
    assert len(now.splitlines()) >= 6


@pytest.mark.parametrize("module", [*RIVER, *SERVE])
def test_each_module_still_imports_what_is_deferred_imports(module: str) -> None:
    """Else the table names something that has gone, or moved."""
    top = Path(str(importlib.util.find_spec(module.partition(".")[0]).origin)).parent  # type: ignore[union-attr]
    place = top.joinpath(*module.split(".")[1:])
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = f"{module}.{base}".rstrip(".")
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    assert set({**RIVER, **SERVE}[module]) <= found


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A library, and modules that import it in several ways."""
    (tmp_path / "put_off_lib.py").write_text("import threading\nVALUE = 7\ndef call(): return 8\n")
    (tmp_path / "put_off_user.py").write_text(
        "import put_off_lib\nfrom put_off_lib import call, VALUE\n"
        "def run(): return call(), put_off_lib.VALUE\n"
    )
    (tmp_path / "put_off_without.py").write_text(
        "try:\n    import put_off_lib\nexcept ImportError:\n    put_off_lib = None\n"
    )
    (tmp_path / "put_off_fails.py").write_text("import put_off_lib\n1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("put_off_"):
            del sys.modules[name]


def test_a_stand_in_is_there_only_while_the_module_is_imported(packages: Path) -> None:
    install(DeferredImports({"put_off_user": ("put_off_lib",), "put_off_fails": ("put_off_lib",)}))
    import put_off_user  # type: ignore[import-not-found]

    assert "put_off_lib" not in sys.modules
    assert isinstance(put_off_user.put_off_lib, ModulePlaceholder)
    with pytest.raises(ZeroDivisionError):
        import put_off_fails  # type: ignore[import-not-found]  # noqa: F401
    assert "put_off_lib" not in sys.modules
    assert put_off_user.run() == (8, 7)
    assert type(sys.modules["put_off_lib"]) is ModuleType
    assert put_off_user.put_off_lib.threading is threading
    with pytest.raises(AttributeError):
        put_off_user.put_off_lib.none  # noqa: B018


def test_what_is_imported_already_needs_no_stand_in(packages: Path) -> None:
    install(DeferredImports({"put_off_user": ("put_off_lib",)}))
    import put_off_lib  # type: ignore[import-not-found]
    import put_off_user  # type: ignore[import-not-found]

    assert put_off_user.put_off_lib is put_off_lib
    assert put_off_user.VALUE == 7


def test_another_thread_gets_the_module_itself(packages: Path) -> None:
    stand_in = ModulePlaceholder("put_off_lib")
    sys.modules["put_off_lib"] = stand_in
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(stand_in.VALUE))
    thread.start()
    thread.join()
    assert found == [7]
    assert type(sys.modules["put_off_lib"]) is ModuleType


def test_a_module_that_does_without(packages: Path) -> None:
    install(DeferredImports({"put_off_without": ("put_off_lib",)}, absent=True))
    import put_off_without  # type: ignore[import-not-found]

    assert put_off_without.put_off_lib is None
    import put_off_lib  # type: ignore[import-not-found]

    assert put_off_lib.VALUE == 7
