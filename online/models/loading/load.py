"""Loading a model from the ``learner`` setting, with the hash of its spec.

Stored state is only loaded into a model with the same spec.  The spec is everything that decides
how rows turn into state: source and name of the factory, its parameters, task, classes, the
estimator's structure, and river's version if the state is a pickle.  It covers the factory's own
file, not what that file imports.

With ``state_of: structure`` the spec leaves out source, name and parameters: any model that is
built alike takes the state.  An object that a program passes in
(:mod:`online.models.loading.objects`) has no source, so its spec is always of this kind.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib
import inspect
import json
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import river
from river import base, linear_model, optim

from evaluation.metrics import Task
from online.models.adapters.linear import Linear, why_not_mergeable
from online.models.adapters.opaque import Opaque
from online.models.artifacts import mlflow_model, onnx_model
from online.models.artifacts.sealed import sealed
from online.models.auto import Auto
from online.models.base import Model, Trainable
from online.models.detector import detecting, trees
from online.models.errors import LearnerUnusable
from online.models.fm import fm
from online.models.ftrl import Ftrl
from online.models.limited import behind, scale_of
from online.models.loaded import Loaded
from online.models.loading import objects
from online.models.loading.from_settings import SCALED
from online.models.rewards import Rewards
from online.models.selfrate import SelfRate
from online.models.structure import steps
from online.settings.model import StateOf, Training
from refusals import installing, meant


def logreg(lr: float = 0.05, l2: float = 0.0, scale: bool | str = "limited") -> Any:
    """Logistic regression by SGD with rate ``lr``, behind the scaler ``scale``."""
    model = linear_model.LogisticRegression(optim.SGD(_positive("lr", lr)), l2=_penalty(l2))
    return behind(scale, model)


def softmax(lr: float = 0.05, l2: float = 0.0, scale: bool | str = "limited") -> Any:
    """Softmax regression by SGD with rate ``lr``, behind the scaler ``scale``."""
    model = linear_model.SoftmaxRegression(optim.SGD(_positive("lr", lr)), l2=_penalty(l2))
    return behind(scale, model)


def linreg(lr: float = 0.01, l2: float = 0.0, scale: bool | str = "limited") -> Any:
    """Linear regression by SGD with rate ``lr``, behind the scaler ``scale``."""
    model = linear_model.LinearRegression(optim.SGD(_positive("lr", lr)), l2=_penalty(l2))
    return behind(scale, model)


def ftrl(
    alpha: float = 0.5,
    beta: float = 1.0,
    l1: float = 0.0,
    l2: float = 0.0,
    bits: int = 22,
    seed: int = 0,
    text: Sequence[str] = (),
    scale: bool | str = "limited",
) -> Any:
    """FTRL-Proximal on hashed features; those in ``text`` are bags of words."""
    names = text if isinstance(text, str) else tuple(text)
    return Ftrl(alpha, beta, l1, l2, bits, seed, names, scale_of(scale))


def linear(text: Sequence[str] = (), bits: int = 22, seed: int = 0) -> Any:
    """Linear experts with several rates, weighted by their losses, on hashed features."""
    return SelfRate(text if isinstance(text, str) else tuple(text), bits, seed)


def auto(text: Sequence[str] = (), bits: int = 22, seed: int = 0) -> Any:
    """The experts of ``linear`` on three views: numbers as they are, bent, and in pairs."""
    return Auto(text if isinstance(text, str) else tuple(text), bits, seed)


def mlp(
    inputs: Sequence[str] = (),
    hidden: int = 32,
    outputs: int = 1,
    lr: float = 0.05,
    scale: bool | str | None = None,
    seed: int = 0,
    artifact: str | None = None,
    ids: Mapping[str, int] | None = None,
    width: int = 8,
) -> Any:
    """A torch network of one hidden layer of ReLU, by SGD with rate ``lr``.

    ``inputs`` are the names of the features; ``outputs``: 1, or one for each label 0, 1, 2 …;
    ``artifact``: a ``state_dict`` to start from, by ``torch.save`` or as ``.safetensors``.
    ``ids``: inputs that are identifiers, with the rows of their embedding tables, ``width`` wide.
    ``scale``: limited, but plain if there are ids, which exports support with that scaler only.
    """
    scaled = scale_of(("plain" if ids else "limited") if scale is None else scale)
    if not inputs:
        raise LearnerUnusable("mlp", "it has no inputs", "Give the names of the features: inputs")
    try:
        import torch

        from online.models.network import Network, weights_from
    except ImportError as error:
        wanted = f"Install it: {installing('torch')}"
        raise LearnerUnusable("mlp", f"it needs torch: {error}", wanted) from None
    torch.manual_seed(seed)
    first: list[Any] = []
    wide = len(inputs)
    if ids:
        from online.models.embedded import Embedded
        from online.models.features.inputs import Inputs

        Inputs("mlp", inputs, scale=scaled, ids=ids)  # says what is wrong with them
        first = [Embedded(inputs, ids, width)]
        wide = first[0].outputs
    module = torch.nn.Sequential(
        *first, torch.nn.Linear(wide, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, outputs)
    )
    if artifact is not None:
        module.load_state_dict(weights_from(artifact))
    sgd = partial(torch.optim.SGD, lr=_positive("lr", lr))
    return Network(module, inputs, sgd, scale=scaled, ids=ids)


PLAIN: Final = Training()
_UNSTEADY: Final = (
    "its factory builds something else each time",
    "Draw numbers from a seed, and leave the artifact alone while it is served",
)

BUILT_IN: Mapping[str, Callable[..., Any]] = {
    "logreg": logreg,
    "softmax": softmax,
    "linreg": linreg,
    "ftrl": ftrl,
    "fm": fm,
    "linear": linear,
    "rewards": Rewards,
    "auto": auto,
    "mlp": mlp,
    "anomaly": trees,
    "sealed": sealed,
}


_NO_STRANGERS: Final = ("<", f"{Path(__file__).parents[2]}/")
_FROZEN: Final[Mapping[str, Callable[[str, Path], Callable[..., Any]]]] = {
    onnx_model.PLACE: onnx_model.factory,
    mlflow_model.PLACE: mlflow_model.factory,
}


def _positive(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise ValueError(f"{name} is a number in (0, 1000000), got {value!r}")
    return float(value)


def _penalty(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e6:
        raise ValueError(f"l2 is a number in [0, 1000000), got {value!r}")
    return float(value)


def load(
    learner: str,
    params: Mapping[str, object],
    *,
    task: Task,
    classes: Mapping[str, object] | None,
    key: bytes,
    base_dir: Path,
    old_keys: Sequence[bytes] = (),
    artifact: Path | None = None,
    training: Training = PLAIN,
    rehearses: bool = False,
    state_of: StateOf = "code",
    threshold: float | None = None,
) -> Loaded:
    """Load the model that ``learner`` names.

    Parameters:
        learner: ``file.py:factory`` (relative to ``base_dir``), ``module:factory``,
            ``onnx:file.onnx``, ``mlflow:folder`` or a built-in name.  The factory is called with
            ``params`` and returns a river estimator, an object with ``predict`` or ``predict_one``
            (and ``learn_one``), a :class:`~online.models.network.Network`, an
            :class:`~online.models.estimator.Estimator`, or a :class:`~online.models.base.Model`; or
            it is such an object, which is copied.
        classes: Names of the two labels of a binary task; part of the spec.
        artifact: A file (relative to ``base_dir``), whose path the factory gets as ``artifact``; a
            hash of its content is part of the spec.
        key: Seals pickled state.
        old_keys: Open state that was sealed before the key was changed.
        training: How a torch network learns; part of the spec.
        rehearses: Whether stored rows are rehearsed, for which ``training`` has other defaults.
        threshold: The rank above which a row is an anomaly; None unless the task is ``anomaly``.
        state_of: Whether the spec has the factory's code and parameters, or only what they build.

    Raises LearnerUnusable, with the value, what is wrong and what to write instead.
    """
    factory, origin = _find(learner, base_dir)
    given = dict(params)
    if artifact is not None:
        given["artifact"] = str(base_dir / artifact)
        origin["artifact"] = _hash(learner, base_dir / artifact)
    if factory is sealed or origin["kind"] in _FROZEN:
        given |= {"keys": (key, *old_keys)} | ({} if factory is sealed else {"classes": classes})

    def make() -> Model:
        made = _wrap(learner, made_by(learner, factory, given), task, key, old_keys, threshold)
        _train(learner, made, training, rehearses=rehearses)
        return made

    model = make()

    def build() -> Model:
        again = make()
        if again.structure != model.structure:
            raise LearnerUnusable(learner, *_UNSTEADY)
        return again

    facts = {"task": task, "classes": None if classes is None else dict(classes)}
    alike = _spec_text(learner, {"kind": "structure", **facts}, model)
    text = alike
    if state_of == "code" and origin["kind"] != "object":
        text = _spec_text(learner, {**origin, "params": _written(learner, params), **facts}, model)
    return Loaded(model, _hash_of(text), text, build, _hash_of(alike))


def _written(learner: str, params: Mapping[str, object]) -> dict[str, object]:
    """Return the parameters for the spec, without a named scaler, which the structure has.

    So a model with ``scale: plain`` can load state from versions that had no such setting.
    """
    named = learner in SCALED and isinstance(params.get("scale"), str)
    return {key: value for key, value in params.items() if key != "scale" or not named}


def _hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _spec_text(learner: str, given: Mapping[str, object], model: Model) -> str:
    """Return the spec as canonical JSON; LearnerUnusable if its params can't be converted."""
    spec = {**given, "structure": model.structure}
    if isinstance(model, Opaque):
        spec["river"] = river.__version__
        if (sklearn := sys.modules.get("sklearn")) is not None:
            spec["sklearn"] = sklearn.__version__
    try:
        return json.dumps(spec, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        problem = f"params {given.get('params')!r:.200}: {error}"
        raise LearnerUnusable(learner, problem, "Give text, numbers, lists and maps") from error


def _hash(learner: str, artifact: Path) -> str:
    try:
        return hashlib.sha256(artifact.read_bytes()).hexdigest()
    except OSError as error:
        remedy = "Name an existing file, relative to the settings file"
        raise LearnerUnusable(learner, f"artifact {artifact}: {error.strerror}", remedy) from error


# -- from the name to the factory ------------------------------------------------------------


def _find(learner: str, base_dir: Path) -> tuple[Callable[..., Any], dict[str, str]]:
    kind, _, path = learner.partition(":")
    if kind in _FROZEN:  # its structure has the hash of its files
        return _FROZEN[kind](learner, base_dir / path), {"kind": kind}
    place, colon, name = learner.rpartition(":")
    if place == objects.PLACE:
        return objects.factory(name), {"kind": "object"}
    if not colon:
        if learner not in BUILT_IN:
            raise LearnerUnusable(
                learner,
                "no built-in learner",
                meant(
                    learner,
                    BUILT_IN,
                    f"Known: {', '.join(BUILT_IN)}; or write file.py:factory, "
                    "module:factory, onnx:file.onnx, mlflow:folder",
                ),
            )
        return BUILT_IN[learner], {"kind": "built-in", "name": learner}
    if place.endswith(".py"):
        module, source = load_file(learner, base_dir / place)
        kind = "file"
    else:
        module, source = _load_module(learner, place)
        kind = f"module {place}"
    factory = getattr(module, name, None)
    objects.check_recipe(learner, factory)  # a module of torch is callable, and builds nothing
    if not callable(factory) and hasattr(factory, "learn_one"):
        factory = partial(copy.deepcopy, factory)
    if not callable(factory):
        known = [
            n
            for n, v in vars(module).items()
            if callable(v) and getattr(v, "__module__", "") == module.__name__
        ]
        near = difflib.get_close_matches(name, known, n=1) or known
        raise LearnerUnusable(
            learner,
            f"{place} has no function or class {name!r}",
            f"It defines: {', '.join(near) or 'none'}",
        )
    return factory, {"kind": kind, "name": name, "source": hashlib.sha256(source).hexdigest()}


def load_file(learner: str, path: Path) -> tuple[types.ModuleType, bytes]:
    """Execute a file as a module named by the hash of its content; return module and bytes.

    So every process can read pickles of another one, whichever directory it runs in, and the code
    that runs is the code that was hashed.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        remedy = "Name an existing file, relative to the settings file"
        raise LearnerUnusable(learner, f"{path}: {error.strerror}", remedy) from error
    name = f"online_learner_{hashlib.sha256(source).hexdigest()[:16]}"
    if (known := sys.modules.get(name)) is not None:
        return known, source
    module = types.ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        missing = isinstance(error, ModuleNotFoundError)
        remedy = "Install it where the service runs" if missing else "Mend the file"
        raise LearnerUnusable(learner, _raised(f"{path} raises", error), remedy) from error
    return module, source


def _load_module(learner: str, place: str) -> tuple[types.ModuleType, bytes]:
    try:
        module = importlib.import_module(place)
    except Exception as error:  # a user's module may raise anything
        remedy = "Install it where the service runs, or write file.py:factory"
        raise LearnerUnusable(
            learner, _raised(f"importing {place!r} raises", error), remedy
        ) from error
    file = inspect.getsourcefile(module)
    return module, Path(file).read_bytes() if file else b""


def made_by(learner: str, factory: Callable[..., Any], params: Mapping[str, object]) -> Any:
    """Return what a user's factory makes.  Raises LearnerUnusable, with the place in its file."""
    signature = inspect.signature(factory)
    try:
        signature.bind(**params)
    except TypeError as error:
        known = ", ".join(signature.parameters) or "none"
        raise LearnerUnusable(
            learner, f"params {dict(params)!r:.200}: {error}", f"It takes: {known}"
        ) from error
    knew_torch = _seed_torch()
    try:
        made = factory(**params)
        if not knew_torch and _seed_torch():  # the factory imported torch
            made = factory(**params)
        return made
    except LearnerUnusable:
        raise
    except Exception as error:  # a user's factory may raise anything
        problem = _raised(f"called with {dict(params)!r:.200} it raises", error)
        raise LearnerUnusable(learner, problem, "Mend the factory or its params") from error


def _seed_torch() -> bool:
    """Seed torch, so that every process builds the same weights; False if it is not imported."""
    if (torch := sys.modules.get("torch")) is None:
        return False
    torch.manual_seed(0)
    return True


def _raised(what: str, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    files = [f.filename for f in frames if not f.filename.startswith(_NO_STRANGERS)]
    place = ""
    if files and "site-packages" not in files[0]:  # the last line in the user's own file
        line = next(f.lineno for f in reversed(frames) if f.filename == files[0])
        place = f" ({files[0]}, line {line})"
    return f"{what} {type(error).__name__}: {error}{place}"


# -- from the object to the model ------------------------------------------------------------


def _wrap(
    learner: str, made: Any, task: Task, key: bytes, old_keys: Sequence[bytes],
    threshold: float | None = None,
) -> Model:  # fmt: skip
    if isinstance(made, type) or made is None:
        got = "None" if made is None else f"the class {made.__name__}"
        raise LearnerUnusable(learner, f"its factory returned {got}", "Return an object")
    if callable(model_for := getattr(made, "model_for", None)):
        try:
            made = model_for(task)
        except LearnerUnusable:
            raise
        except Exception as error:  # its module, loss, optimizer or estimator may raise anything
            problem = _raised("what its factory returned raises", error)
            raise LearnerUnusable(learner, problem, "Mend the factory or its params") from error
    objects.check_recipe(learner, made)
    detector = detecting(learner, made, task, threshold, key=key, old_keys=old_keys)
    if detector is not None:
        return detector
    if all(hasattr(made, verb) for verb in ("predict", "learn", "cut", "rebase", "reset")):
        model: Model = made
        return model
    opaque = partial(Opaque, made, task=task, key=key, old_keys=old_keys)
    if not isinstance(made, base.Base):
        why = getattr(made, "why_not_mergeable", None)
        return opaque(why_not_mergeable=why or "it is a class of your own")
    _check_task(learner, made, task)
    if (why := why_not_mergeable(made)) is None:
        return Linear(made)
    return opaque(why_not_mergeable=why)


def _train(learner: str, model: Model, training: Training, *, rehearses: bool) -> None:
    """Pass the training settings to the model, if any is on.  Raises LearnerUnusable."""
    if isinstance(model, Trainable):
        resolved = training.resolved(rehearses=rehearses)
        if resolved.on:
            model.train(resolved)
    elif unused := training.on:
        raise LearnerUnusable(
            learner,
            f"training.{unused[0]} is for torch networks",
            "Leave it out, and give the estimator's own parameters (l2, clip_gradient, a rate)",
        )


def _check_task(learner: str, estimator: Any, task: Task) -> None:
    final = steps(estimator)[-1]
    name = type(final).__name__
    if type(final).__module__.startswith("river.active"):
        problem = f"{name} answers pairs: a label, and whether to ask for the true one"
        raise LearnerUnusable(learner, problem, "Serve the classifier in it: each label teaches")
    if task == "regression":
        if not isinstance(final, base.Regressor):
            raise LearnerUnusable(
                learner, f"task is regression and {name} is no regressor", "Change one of the two"
            )
        return
    if not isinstance(final, base.Classifier):
        raise LearnerUnusable(
            learner, f"task is {task} and {name} is no classifier", "Change one of the two"
        )
    if task == "multiclass" and not final._multiclass:
        raise LearnerUnusable(
            learner,
            f"task is multiclass and {name} knows two classes only",
            "Use task: binary, softmax, or multiclass.OneVsRestClassifier around it",
        )
