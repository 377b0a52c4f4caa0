"""`online models`: checks learners, compares them with today's defaults, seals, and reshards."""

from __future__ import annotations

import contextlib
import inspect
import json
import secrets
import time
import traceback
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from evaluation.metrics import Task
from online.client.simple_client import SimpleClient
from online.commands.base import AsJson, Context, checked, common, load_settings, pick, replacing
from online.errors import ConfigError, StartRefused
from online.models.base import Model
from online.settings.anomaly import Anomaly
from online.settings.config import Settings, data_dir
from online.settings.purposes import PURPOSES
from replay.example import Features, Label

app = typer.Typer(help="Learners: list, check, seal, upgrade, reshard.", no_args_is_help=True)

_N = 90
_LOOK_S = 0.2
_RESHARD_S = 240.0
_NOT_PARAMS = ("artifact", "keys")  # set by settings of their own
_NAMES = ("a", "b", "c", "d")
_LABELS: dict[str, Sequence[Label]] = {
    "binary": (False, True), "multiclass": ("apple", "pear", "quince")
}  # fmt: skip

HINTS = {
    "answers before learning": "Answer before the first row, and rows with names not met before",
    "structure is stable": "Keep what is learned out of `structure`",
    "predict changes nothing": "Insert nothing while answering: drop unknown names, draw nothing",
    "many is one by one": "Let predict_many give what predict gives, also for rows of other names",
    "delta composes": "Let cut give all that rows have changed since the cut before",
    "cut empties the delta": "Begin a new delta at each cut, reset and start",
    "reset is exact": "Let reset forget everything that is not in the values",
    "replicas agree": "Name blocks and keys by what they mean, not by the order of rows",
    "rebase keeps the open delta": "Put new values under what was learned since the cut",
    "input is left alone": "Copy the features: neither change nor keep the caller's dict",
    "blocks are not shared": "Give and take copies of blocks",
    "reset after an error": "Let reset also undo what a row that raised has done",
    "refused weight changes nothing": "Raise WeightUnsupported before anything else",
    "growth is bounded": "Add keys only for names that are new",
    "notes are optional": "Keep notes short; learn a row with none, or with others', all the same",
}
"""Remedy for each failed check, by the check's name."""


_KNOWN_ERRORS = {
    "NominalSplitterReg": "River's AMRules has no splitter for texts: leave them out, or put "
    "preprocessing.OneHotEncoder in front",
    "division by zero, at variance_ratio_split_criterion.py": "River's regression rules and trees "
    "divide by the variance of the labels of a leaf, which is 0 when all are equal: the row is "
    "answered `failed`, and the model goes on as it was",
}
"""Causes of errors in third-party models, by a part of the error's text."""


@app.command("list")
def listed(as_json: AsJson = False) -> None:
    """Show the built-in learners, with their params and defaults.

    Example: online models list
    """
    from online.models.loading.load import BUILT_IN

    rows: list[dict[str, Any]] = []
    for name, factory in BUILT_IN.items():
        params = {
            p.name: None if p.default is p.empty else p.default
            for p in inspect.signature(factory).parameters.values()
            if p.name not in _NOT_PARAMS
        }
        rows.append({"learner": name, "about": _first(factory.__doc__ or ""), "params": params})
    if as_json:
        print(json.dumps({"models": rows}, default=list))
        return
    for row in rows:
        print(f"{row['learner']:<8}  {row['about']}")
        given = ", ".join(
            f"{name}: {json.dumps(v, default=list)}" for name, v in row["params"].items()
        )
        print(f"          params: {given or 'none'}")
    print("or file.py:factory, module:factory, of river, scikit-learn, torch or your own;")
    print("onnx:FILE and mlflow:FOLDER, which are served as they are")


def _first(text: str) -> str:
    """The first paragraph of a text, in one line."""
    return " ".join(text.split("\n\n")[0].split())


@app.command("check")
def check(
    learner: Annotated[
        str,
        typer.Argument(help="file.py:factory, module:factory or a built-in; file.py: its build"),
    ],
    task: Annotated[str, typer.Option(help="binary, multiclass, regression or anomaly")] = "binary",
    params: Annotated[str, typer.Option(help="params of the factory, as JSON")] = "{}",
    stream: Annotated[
        str | None, typer.Option(help="stream or table with rows; none: generated rows")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the checks that every model of the service must pass.

    The model is queried, trained, cut, merged and restored as by replicas.  Exit code 1: a check
    failed; the observation and a remedy are shown.

    Example: online models check model.py:build --params '{"lr": 0.1}'

    Example: online models check model.py --task multiclass --stream rows.csv
    """
    from online.models.loading.checks import CheckFailed, lacking, yield_checks
    from online.models.loading.load import load

    place = learner if not learner.endswith(".py") else f"{learner}:build"
    loaded = load(
        place, _params(params), task=_task(task), classes=None, base_dir=Path(),
        key=secrets.token_bytes(),  # that nobody can have sealed anything with
        threshold=Anomaly().threshold if task == "anomaly" else None,
    )  # fmt: skip
    rows = _rows(loaded.model, _task(task), stream)
    if stream is None and (names := lacking(loaded.build, rows[0][0])):
        many = "columns" if names[1:] else "column"
        remedy = "Give rows of yours: --stream rows.csv"
        raise ConfigError(
            "--stream", f"the generated rows have no {many} {', '.join(names)}", remedy
        )
    failures = []
    for one in yield_checks():
        name = one.__name__.removeprefix("check_").replace("_", " ")
        try:
            one(loaded.build, rows)
        except CheckFailed as error:
            failures.append(
                {"check": name, "good": False, "seen": error.reason, "hint": HINTS[name]}
            )
        except Exception as error:  # a user's model may raise anything
            seen, hint = _raised(error)
            failures.append(
                {"check": name, "good": False, "seen": seen, "hint": hint or HINTS[name]}
            )
        else:
            failures.append({"check": name, "good": True})
        if not as_json:
            _show(failures[-1], one.__doc__ or "")
    good = all(row["good"] for row in failures)
    if as_json:
        print(json.dumps({"learner": place, "good": good, "checks": failures}))
    else:
        _conclude(loaded.model, good=good)
    raise typer.Exit(0 if good else 1)


@app.command("seal")
def seal(
    pickled: Annotated[
        Path,
        typer.Argument(
            help="a pickle, or a folder of MLflow, that you trust: its code runs when it is served"
        ),
    ],
    out: Annotated[
        Path | None, typer.Argument(help="the sealed file; a folder is sealed in place")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option("--settings", help="settings file that names the service's key")
    ] = None,
) -> None:
    """Seal a pickled model with the service's key, so that it can be served.

    Nothing is unpickled.  Serve a file with `learner: sealed` and `artifact: OUT`, a folder
    that MLflow has saved with `learner: mlflow:FOLDER`.

    Example: online models seal model.pkl model.sealed --settings online.yaml

    Example: online models seal mlruns/model --settings online.yaml
    """
    from online.models.artifacts.sealed import seal as sealed
    from online.models.artifacts.sealed import seal_folder
    from online.models.errors import BlobUntrusted
    from online.rows.prediction_ids import Keys

    if pickled.is_dir():
        if out is not None:
            remedy = "Leave OUT out, or copy the folder first"
            raise ConfigError("OUT", "a folder is sealed in its place", remedy)
        try:
            n = seal_folder(pickled, Keys.from_file(load_settings(settings).key_path).secret)
        except (OSError, BlobUntrusted) as error:
            raise ConfigError(
                "FILE", f"{pickled}: {error}", "Give a folder of plain files"
            ) from None
        print(f"{pickled}: {n:,} files under the seal of the service's key")
        return
    if out is None:
        raise ConfigError("OUT", "none is given", "Name the sealed file that is to be written")
    try:
        data = pickled.read_bytes()
    except OSError as error:
        raise ConfigError("FILE", f"{pickled}: {error.strerror}", "Name an existing file") from None
    keys = Keys.from_file(load_settings(settings).key_path)
    with replacing("OUT", out) as part:
        part.write_bytes(sealed(data, keys.secret))
    print(f"{out}: {len(data):,} bytes under the seal of the service's key")


@app.command("upgrade")
@common(model=False)
def upgrade(
    context: Context,
    model: Annotated[str | None, typer.Argument(help="model; default: the only one")] = None,
    stop: Annotated[bool, typer.Option("--stop", help="end the comparison")] = False,
    wait: Annotated[float, typer.Option(min=0, help="seconds to wait for the comparison")] = 120.0,
) -> None:
    """Compare a model that keeps older defaults with today's defaults, as its challenger.

    A model keeps the defaults with which it began.  This builds the same learner with today's
    defaults as its challenger: it learns the whole journal, then new rows, without serving, and
    both scores are shown.  Promote it with: online promote.  With --wait 0 the command only begins;
    repeat it, or see online status.

    Example: online models upgrade clicks
    """
    client = context.connect()
    name = pick(client, model, "NAME")
    done = checked(client.post(f"/v1/models/{name}/upgrade", json={"on": not stop}))
    compared = None if stop else _compared(client, name, done["params"], wait)
    if context.as_json:
        print(json.dumps({**done, "model": name, "challenger": compared}))
        return
    if stop:
        print(f"{name}: no challenger of today's defaults from now on")
        return
    print(f"{name}: {json.dumps(done['params'])} learns beside it")
    if compared is None or compared["state"] != "learning" or not compared["rows"]:
        print("  nothing is compared yet: online status")
        return
    _show_scores(compared)


def _compared(
    client: SimpleClient, name: str, params: dict[str, Any], wait_s: float
) -> dict[str, Any] | None:
    """The challenger's standing once it has learned all rows, or when the time is up."""
    deadline = time.monotonic() + wait_s
    while True:
        compared: dict[str, Any] | None = None
        try:
            compared = checked(client.get(f"/v1/models/{name}"))["challenger"]
        except StartRefused:  # replicas are being replaced
            if time.monotonic() > deadline:
                raise
        if compared is not None and compared["params"] != params:
            compared = None  # of a replica that will be replaced
        done = (
            compared is not None and compared["state"] == "learning" and not compared["behind_rows"]
        )
        if done or time.monotonic() > deadline:
            return compared
        time.sleep(_LOOK_S)


def _show_scores(compared: dict[str, Any]) -> None:
    """Print both scores side by side, and the commands for a decision."""
    losses = compared["champion_loss"], compared["challenger_loss"]
    score = "accuracy" if losses[0] is not None else "error"  # regression: the mean error
    low, high = compared["interval"]
    print(f"  {'':10}{'serves':>10}{'of today':>10}   on {compared['rows']:,} rows")
    print(f"  {score:10}{compared['champion']:>10.4f}{compared['challenger']:>10.4f}")
    if losses[0] is not None and losses[1] is not None:
        print(f"  {'log loss':10}{losses[0]:>10.4f}{losses[1]:>10.4f}")
    print(f"  {compared['verdict']}: difference of scores {low:+.3f} … {high:+.3f}")
    if compared["behind_rows"]:
        print(f"  {compared['behind_rows']:,} rows behind: online status")
    print("  let it serve: online promote; end it: online models upgrade --stop")


@app.command("reshard")
@common(model=False)
def reshard(
    context: Context,
    shards: Annotated[int, typer.Option("--shards", help="new number of servers", min=1)],
    model: Annotated[str | None, typer.Argument(help="model; default: the only one")] = None,
) -> None:
    """Change a model's number of parameter servers while it answers.

    The new servers begin with the state of the old ones at one moment, and learn later rows; then
    the replicas switch to them.  A service with `cluster: embedded` is stopped and started with
    another `shards` in its settings file.  Exit code 1 if it was refused; the old servers then go
    on.  Until the new ones have begun, the request is withdrawn by giving the present number, or
    after four minutes.

    Example: online models reshard clicks --shards 4
    """
    from online.service.state.run_file import running

    client, settings = context.connect(), context.settings()
    name = pick(client, model, "NAME")
    serves = running(settings.state_dir).get("specs", {}).get(name)  # the journal must be here
    spec, before, request = _request(settings, name, shards, serves)
    if request is not None:
        _wait_for_reshard(settings, name, spec, request)
    if context.as_json:
        print(json.dumps({"model": name, "before": before, "shards": shards, "spec": spec}))
    elif request is None:
        print(f"{name}: the request was withdrawn; {before} parameter servers serve as before")
    else:
        print(f"{name}: {shards} parameter servers serve, instead of {before}")
        print(f"  to make it permanent, write `shards: {shards}` into the settings file")


def _request(
    settings: Settings, name: str, shards: int, serves: str | None
) -> tuple[str, int, tuple[int, str] | None]:
    """Write the request to the journal.

    Parameters:
        serves: Spec that is served; the file may have changed since the service read it.

    Returns:
        The spec that is to serve, the present number of servers, and the request's row with the
        spec of one server; None instead of the last pair: a pending request was withdrawn.

    Raises:
        StartRefused, ConfigError: It can't be fulfilled.
    """
    from online.challenger.promotion import as_stored
    from online.models.loading.from_settings import load_model
    from online.rebuild import reshard as resharding
    from online.rows.prediction_ids import Keys
    from online.settings.config import EMBEDDED
    from online.settings.places import open_journal

    if settings.cluster == EMBEDDED:
        raise StartRefused(
            "a service in one process takes another number of parameter servers at a start only",
            f"Stop it, write `shards: {shards}` into the settings of {name}, and start it again",
        )
    given = {one.name: one.shards for one in settings.models}
    serving = {one.name: one for one in as_stored(settings).models}.get(name)
    if serving is None:
        remedy = "Name the settings file that the service was started with: --config"
        raise StartRefused(f"these settings have no model {name!r}", remedy)
    by_spec = resharding.specs_of(serving, settings)
    now = by_spec.get(serves or "")
    if serves is None or now is None:
        raise StartRefused(
            f"the settings file describes another model {name} than the one that serves",
            "Start the service again with the file, or name the one that it was started with: "
            "--config",
        )
    one = next(iter(by_spec))
    if now == shards:
        with contextlib.closing(open_journal(settings)) as journal:
            if resharding.withdraw(journal, name, one) is None:
                message = f"model {name} has {shards} parameter servers"
                raise StartRefused(message, "Name another number")
        return serves, now, None
    try:
        wanted = serving.made_as({"shards": shards})
    except ValueError as error:
        why = str(error).splitlines()
        raise ConfigError(
            "--shards", " ".join(why[2:3] or why).strip(), "See docs/scale.md"
        ) from None
    keys = Keys.from_file(settings.key_path)
    spec = load_model(wanted, settings, keys.secret, keys.old_secrets).spec_hash
    with contextlib.closing(open_journal(settings)) as journal:
        resharding.check_can(journal.controls(name, 0), name, serves)
        request = resharding.saying(by_spec, given[name], now, shards, done=False, why="operator")
        seq = resharding.record_request(journal, name, request)
    return spec, now, (seq, one)


def _wait_for_reshard(settings: Settings, name: str, spec: str, request: tuple[int, str]) -> None:
    """Wait until every replica answers with the spec.  Raises StartRefused if it has failed.

    A request that has not begun when the time is up is withdrawn: it would block other decisions.
    """
    from online.rebuild.reshard import withdraw
    from online.service.state.run_file import running
    from online.settings.places import open_journal
    from paramserver.core.resharding import RESHARD

    (seq, one), deadline = request, time.monotonic() + _RESHARD_S
    while running(settings.state_dir).get("specs", {}).get(name) != spec:
        with contextlib.closing(open_journal(settings)) as journal:
            since = [c.payload for c in journal.controls(name, seq) if c.kind == RESHARD]
            late = time.monotonic() > deadline
            if late and not since and withdraw(journal, name, one, seq) is not None:
                raise StartRefused(
                    f"{name} keeps its parameter servers: new ones have not begun within "
                    f"{_RESHARD_S:.0f} s, and the request was withdrawn",
                    "See what `online serve` says",
                )
        if any(json.loads(message)["why"] == "failed" for message in since):
            raise StartRefused(
                f"{name} keeps its parameter servers: new ones could not be started, or the "
                "request was withdrawn",
                "See what `online serve` says",
            )
        if late:
            raise StartRefused(
                f"{name} gets other parameter servers, and its replicas have not switched to them "
                f"within {_RESHARD_S:.0f} s",
                "See what `online serve` says",
            )
        time.sleep(_LOOK_S)


def _show(row: dict[str, Any], promise: str) -> None:
    print(f"{'ok  ' if row['good'] else 'FAIL'}  {row['check']}")
    if not row["good"]:
        print(f"      promised: {' '.join(promise.split())}")
        print(f"      seen: {row['seen']}")
        print(f"      {row['hint']}")


def _raised(error: Exception) -> tuple[str, str | None]:
    """Describe what a model has raised and where, and the cause if it is known."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    seen = f"{type(error).__name__}: {error}, at {place}"
    return seen, next((hint for part, hint in _KNOWN_ERRORS.items() if part in seen), None)


def _conclude(model: Model, *, good: bool) -> None:
    if not good:
        print("the model can't be served as it is")
    elif not model.learns:
        print("the model is good; it never changes, and is the same in every replica")
    elif model.mergeable:
        print("the model is good; what replicas learn is merged")
    else:
        print(f"the model is good; each replica learns all rows ({model.why_not_mergeable})")


def _task(text: str) -> Task:
    known = [name for name in PURPOSES if name != "choose"]
    if text not in known:
        raise ConfigError("--task", f"{text!r} is no task", ", ".join(known))
    return PURPOSES[text].labels


def _params(text: str) -> dict[str, object]:
    try:
        params = json.loads(text)
    except ValueError as error:
        raise ConfigError(
            "--params", f"no JSON: {error}", "As in --params '{\"lr\": 0.1}'"
        ) from None
    if not isinstance(params, dict):
        raise ConfigError("--params", "it is no JSON object", "As in --params '{\"lr\": 0.1}'")
    return params


def _rows(model: Model, task: Task, stream: str | None) -> list[tuple[Features, Label]]:
    """Rows of the stream, or generated rows whose label follows from their features."""
    if stream is not None:
        from online.tables.streams import stream_of

        opened = stream_of(stream, data_dir(), task=task)
        if opened.task != task:
            hint = f"Say --task {opened.task}, or name another stream"
            raise ConfigError("--stream", f"{stream} is {opened.task}, not {task}", hint)
        return list(islice(opened.rows, _N))
    import random

    draw = random.Random(7)
    estimator = getattr(model, "estimator", model)  # of a model that travels whole
    inputs = getattr(estimator, "inputs", _NAMES)
    names = getattr(inputs, "names", inputs)
    labels = getattr(estimator, "labels", None) or _LABELS.get(task, ())
    rows: list[tuple[Features, Label]] = []
    for _ in range(_N):
        x = {name: draw.gauss(1.0, 2.0) for name in names}
        total = sum(value * (-1) ** i for i, value in enumerate(x.values()))
        label: Label = total
        if labels:
            label = labels[min(max(int(total + len(labels) / 2), 0), len(labels) - 1)]
        rows.append((dict(x), label))
    return rows
