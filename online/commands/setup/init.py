"""`online init`: writes settings and a model for a table, and a first score; or asks questions."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import yaml

from evaluation.metrics import Task
from online.commands.base import AsJson, bar, somebody
from online.errors import ConfigError
from refusals import installing
from replay.example import Features, Label

if TYPE_CHECKING:
    from evaluation.summary import Summary
    from online.commands.setup.init_rows import Taken
    from online.models.base import Model
    from online.tables.guess import Guess

_CANDIDATE_ROWS: Final = 5_000  # for the comparison of learners
_ROWS: Final = 100_000
_SHOWN: Final = 40  # columns

_LINEAR: Final = '''from online.models.selfrate import SelfRate


def build():
    """A linear model that needs no learning rate; river's models or your own can stand here."""
    return SelfRate({text})
'''
_FTRL: Final = '''from online.models.ftrl import Ftrl


def build():
    """A linear model on hashed words; river's models or your own can stand here."""
    return Ftrl({text})
'''
_SOURCES: Final = {"linear": _LINEAR, "ftrl": _FTRL}


def init(
    table: Annotated[
        Path | None, typer.Argument(help="rows with labels: .csv, .tsv, .jsonl (.gz) or .parquet")
    ] = None,
    folder: Annotated[Path, typer.Option(help="where the files are written")] = Path(),
    name: Annotated[str | None, typer.Option(help="name of the model")] = None,
    label: Annotated[str | None, typer.Option(help="column of the label")] = None,
    task: Annotated[
        str | None, typer.Option(help="binary, multiclass, regression or choose")
    ] = None,
    action: Annotated[
        str | None, typer.Option(help="--task choose: column of the chosen action")
    ] = None,
    probability: Annotated[
        str | None,
        typer.Option(help="--task choose: column of the action's probability; none: there is none"),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="most rows that are played")] = _ROWS,
    force: Annotated[bool, typer.Option("--force", help="replace existing files")] = False,
    as_json: AsJson = False,
) -> None:
    """Write online.yaml and model.py for a table, and play it: a score beside simple baselines.

    The role of each column is guessed, and written to the file with the reason. Without a table a
    few questions are asked.

    Example: online init clicks.csv

    For a log of choices (--task choose: an action, its reward, its probability if known, and the
    context's features) it writes only online.yaml, and shows what the model would have earned.

    Example: online init ratings.parquet --label stars --task regression

    Example: online init log.csv --task choose --probability none
    """
    from evaluation.errors import EvaluationError

    places = [folder / "online.yaml", folder / "model.py"][: 1 if task == "choose" else 2]
    _check(table, [] if force else places)
    name = None if name is None else _valid(name)
    named = {"--label": label, "--action": action, "--probability": probability}
    if task == "choose":
        _choices(table, places[0], name, named, rows, as_json=as_json)
        return
    _of_labels(named)
    wanted = _task_of(task)
    if table is None:
        _write(places, *_asked(name, wanted, label))
        print(f"wrote {places[0]} and {places[1]}\n\n  online serve {places[0]}")
        return
    from online.tables.first_look import open_table
    from online.tables.guess import guess

    guessed = guess(open_table(table, _columns(named)), label, wanted)
    model_name = _name(name, table)
    try:
        taken = _taken(model_name, guessed, rows)
        learner, begun = _learner(guessed, taken), time.monotonic()
        score, n = _played(guessed, learner, taken, hidden=as_json)
    except EvaluationError as error:
        raise ConfigError(str(table), str(error), "Name another --label, or correct it") from None
    elapsed = time.monotonic() - begun
    source = _source(model_name, table, guessed, learner)
    _write(places, _settings(model_name, guessed, n, taken.limits), source)
    if as_json:
        counts = {"rows": n, "refused": taken.refused, "seconds": round(elapsed, 1)}
        shown = {"model": model_name, **_guessed(guessed), "learner": learner, **counts}
        print(json.dumps({**shown, **_scores(score)}))
        return
    _say(guessed, places, score, n, taken)


def _columns(named: Mapping[str, str | None]) -> set[str]:
    """Return the columns that options name."""
    return {column for column in named.values() if column is not None}


def _guessed(guess: Guess) -> dict[str, Any]:
    columns = {c.name: {"kind": c.kind, "why": c.why} for c in guess.columns}
    return {"task": guess.task, "label": guess.label, "columns": columns}


def _check(table: Path | None, places: list[Path]) -> None:
    """Refuse a missing table, and files that exist already."""
    if table is not None and not table.exists():
        raise ConfigError("TABLE", f"there is no file {table}", "Name an existing one")
    if existing := [str(place) for place in places if place.exists()]:
        remedy = "Say --force to replace it, or --folder for another place"
        raise ConfigError("--folder", f"already there: {', '.join(existing)}", remedy)


def _of_labels(named: Mapping[str, str | None]) -> None:
    """Refuse options for choices if the task has labels."""
    if misplaced := [
        option for option in ("--action", "--probability") if named[option] is not None
    ]:
        raise ConfigError(misplaced[0], "the task is not choose", "Say --task choose, too")


def _task_of(text: str | None) -> Task | None:
    if text is not None and text not in ("binary", "multiclass", "regression"):
        remedy = "binary, multiclass, regression or choose"
        raise ConfigError("--task", f"{text!r} is no task", remedy)
    return text  # type: ignore[return-value]


def _valid(name: str) -> str:
    """Return the model's name, if the settings file may have it."""
    from online.settings.model import NAME
    from online.settings.wording import PLAIN

    if re.fullmatch(NAME, name) is None:
        raise ConfigError("--name", f"{name[:80]!r} is no name of a model", PLAIN[NAME])
    return name


def _name(name: str | None, table: Path) -> str:
    """The given name, or a valid model name made from the file's name."""
    stem = table.name.removesuffix(".gz").rpartition(".")[0]
    return name or re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-._")[:64] or "model"


def _choices(
    table: Path | None,
    place: Path,
    name: str | None,
    named: Mapping[str, str | None],
    rows: int,
    *,
    as_json: bool,
) -> None:
    """Write the settings for a log of choices, and report what they would have earned."""
    from online.commands.setup.init_choices import earned, kind_of, logged_of, say, settings_text
    from online.tables.first_look import open_table

    if table is None:
        raise ConfigError("TABLE", "no log of choices", "Name a .csv or .parquet file")
    log, model_name = logged_of(open_table(table, _columns(named)), named), _name(name, table)
    made = earned(log, rows, hidden=as_json)
    _write([place], settings_text(model_name, log, made.rows))
    if not as_json:
        say(log, place, made)
        return
    columns = {c.name: {"kind": kind_of(log, c), "why": c.why} for c in log.found.columns}
    constant, alone = made.constant
    result = {
        "model": model_name, "task": "choose", "actions": list(log.shares), "columns": columns,
        "rows": made.rows, "reward": made.reward, "earned": made.model,
        "constant": {"action": constant, "reward": alone},
    }  # fmt: skip
    print(json.dumps(result))


# -- the first score -------------------------------------------------------------------------------


class _Learner:
    """Adapts a model of the service to the methods by which streams are played."""

    def __init__(self, learner: str, guess: Guess) -> None:
        from online.models.loading.load import load

        params = {"text": guess.named("text")}
        self._model: Model = load(
            learner, params, task=guess.task, classes=None, key=b"\0" * 32, base_dir=Path()
        ).model
        self._task = guess.task

    def predict_one(self, x: Features) -> Label | None:
        """Return the predicted label of a row."""
        return self._model.predict(x).label

    def predict_proba_one(self, x: Features) -> dict[Label, float]:
        """Return the probability of each label; empty for regression."""
        return dict(self._model.predict(x).probabilities or {})

    def learn_one(self, x: Features, y: Label) -> None:
        """Learn one row of the stream."""
        self._model.learn(x, y, 1.0)


def _taken(name: str, guess: Guess, most: int) -> Taken:
    """The rows that the service takes under the settings that are going to be written."""
    from online.commands.setup.init_rows import Taken
    from online.settings.model import ModelSettings

    made = yaml.safe_load(_settings(name, guess, 0, {}))
    return Taken(ModelSettings.model_validate(made["models"][0]), guess, most)


def _learner(guess: Guess, taken: Taken) -> str:
    """The built-in learner that does better on the first rows; with texts there are two."""
    from evaluation.prequential import prequential

    if not guess.named("text"):
        return "linear"
    scores = {}
    for learner in _SOURCES:
        rows = taken.pairs(_CANDIDATE_ROWS)
        total = prequential(_Learner(learner, guess), rows, guess.task).total
        scores[learner] = -(total.mae or 0.0) if guess.task == "regression" else _balanced(total)
    return max(scores, key=lambda learner: scores[learner])


def _balanced(total: Summary) -> float:
    return total.balanced_accuracy or total.accuracy or 0.0


def _played(guess: Guess, learner: str, taken: Taken, *, hidden: bool) -> tuple[Summary, int]:
    """Play the table, test then learn; returns the score and the number of rows."""
    from evaluation.prequential import prequential

    n = 0
    with bar("playing", hidden=hidden) as progress:
        task = progress.add_task("", total=None)

        def counted() -> Iterator[tuple[Features, Label]]:
            nonlocal n
            for n, row in enumerate(taken.pairs(sys.maxsize), 1):
                if n % 500 == 0:
                    progress.update(task, completed=n)
                yield row

        total = prequential(_Learner(learner, guess), counted(), guess.task).total
    if not n and taken.refused:
        remedy = "Name another --label, or change the table"
        raise ConfigError(str(guess.table.path), f"a service refuses its rows: {taken.why}", remedy)
    if not n:
        raise ConfigError(str(guess.table.path), f"no row has a {guess.label}", "Name --label")
    return total, n


def _scores(score: Summary) -> dict[str, float | None]:
    names: tuple[str, ...] = (
        "accuracy",
        "balanced_accuracy",
        "majority",
        "no_change",
        "kappa_m",
        "kappa_t",
    )
    if score.task == "regression":
        names = ("mae", "rmse", "mean_mae", "last_mae", "r2")
    return {name: getattr(score, name) for name in names}


# -- files -----------------------------------------------------------------------------------------


def _settings(name: str, guess: Guess, n: int, limits: Mapping[str, int]) -> str:
    """The text of online.yaml."""
    file = guess.table.path.name
    lines = [
        f"# Guessed by `online init` from {n:,} rows of {file}: change whatever is not so.",
        "cluster: embedded        # one process; without this line two replicas on Ray",
        "models:",
        f"  - name: {scalar(name)}",
        f"    task: {guess.task}",
    ]
    if guess.task == "binary" and guess.classes != (False, True):
        classes = dict(zip(("negative", "positive"), guess.classes, strict=True))
        lines.append(f"    classes: {scalar(classes)}")
    lines += ["    learner: model.py:build", *_declared(guess)]
    if limits:
        lines.append(f"limits: {scalar(dict(limits))}    # rows of the table need that much")
    lines += ["", f"# The columns of {file}:"]
    width = max(len(column.name) for column in guess.columns)
    kinds = max(len(column.kind) for column in guess.columns)
    for column in guess.columns:
        lines.append(f"#   {column.name:<{width}}  {column.kind:<{kinds}}  {column.why}")
    notes = {
        "category": 'Send a category as text, also if it is a number: "17".',
        "event_id": "Send an event_id as such, beside the features: a repeat counts once.",
        "time": "Send a time as event_time, in POSIX seconds, beside the features. "
        "What is older than dedupe_window (7 days) is answered `expired`, and not learned.",
        "left_out": "What is left_out was not learned.",
    }
    lines += [f"# {text}" for kind, text in notes.items() if guess.named(kind)]  # type: ignore[arg-type]
    lines += ["", "# The first row as a request:", f"#   {_request(name, guess)}"]
    return written(lines)


def _declared(guess: Guess) -> list[str]:
    """Lines with the features' types, and an example where there is a typical value."""
    from online.tables.guess import FEATURES

    lines = ["    features:             # other names are left out and reported; without this: any"]
    for column in guess.columns:
        if column.kind in FEATURES:
            value = guess.examples.get(column.name)
            declared: Any = column.kind
            if value is not None:
                declared = {"type": column.kind, "example": value}
            lines.append(f"      {scalar(column.name)}: {scalar(declared)}")
    return lines


def _request(name: str, guess: Guess) -> str:
    """A command that teaches the table's first row, without its time, which may be long ago."""
    row = next(guess.rows())
    body: dict[str, Any] = {"features": row.features, "label": row.label}
    if row.event_id is not None:
        body["event_id"] = row.event_id
    text = json.dumps(body, ensure_ascii=False).replace("'", "\\u0027")
    return f"curl http://127.0.0.1:8000/v1/models/{name}/feedback -d '{text}'"


def scalar(value: Any) -> str:
    """Format a value as YAML in one line, with quotes where YAML needs them (such as for `no`).

    Letters beyond ASCII stay as they are, unless another character has to be escaped by YAML.
    """
    text = ""
    for letters in (True, False):
        text = yaml.dump(
            value, Dumper=_OneLine, default_flow_style=True, sort_keys=False, width=sys.maxsize,
            allow_unicode=letters,
        )  # fmt: skip
        text = text.removesuffix("\n").removesuffix("\n...")
        if text.isprintable():
            break
    return text


class _OneLine(yaml.SafeDumper):
    """A YAML dumper that double-quotes texts that would break the line."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_OneLine.add_representer(str, _text)


def printable(text: str) -> str:
    r"""Return the text in one line, with non-printable characters escaped as in JSON: ``\u2028``.

    The file may come from somebody else: a line break in a value would end a comment, and what
    follows would be read as settings, some of which name code.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def written(lines: Iterable[str]) -> str:
    """Join the lines of a settings file; each remains a single line there."""
    return "".join(f"{printable(line)}\n" for line in lines)


def _docstring(text: str) -> str:
    """Format the text as a module's docstring, which it can't terminate."""
    inside = printable(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"""{inside}"""\n\n'


def _source(name: str, table: Path, guess: Guess, learner: str) -> str:
    """The text of model.py."""
    text = guess.named("text")
    given = f"text={text!r}" if text else ""
    head = _docstring(f"The model {name}, as `online init` has written it for {table.name}.")
    return head + _SOURCES[learner].format(text=given)


def _write(places: list[Path], *texts: str) -> None:
    for place, text in zip(places, texts, strict=True):
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(place.name + ".part")
        part.write_text(text, encoding="utf-8")
        part.replace(place)


def _asked(name: str | None, task: Task | None, label: str | None) -> tuple[str, str]:
    """Settings and model from the answers of the user at the terminal."""
    if not somebody():
        raise ConfigError("TABLE", "no table, and no terminal", "Name a .csv or .parquet file")
    if label is not None:
        raise ConfigError("--label", "there is no table to find it in", "Name a table")
    model_name = name or _valid(typer.prompt("What is the model called?", default="model"))
    tasks = typer.prompt(
        "What does it answer: binary (yes or no), multiclass (one of some), regression (a number)?",
        default="binary",
    )
    chosen = task or _task_of(tasks)
    words = typer.prompt("Which features are texts (names with commas; none: just Enter)?", "")
    text = [word.strip() for word in words.split(",") if word.strip()]
    settings = [
        "cluster: embedded        # one process; without this line two replicas on Ray",
        "models:", f"  - name: {scalar(model_name)}", f"    task: {chosen}",
        "    learner: model.py:build",
    ]  # fmt: skip
    head = _docstring(f"The model {model_name}, as `online init` has written it.")
    source = head + _LINEAR.format(text=f"text={text!r}" if text else "")
    return written(settings), source


def _say(guess: Guess, places: list[Path], score: Summary, n: int, taken: Taken) -> None:
    from online.messages.model_status import short

    print(f"{printable(guess.table.path.name)}: a {guess.task} task by its label, {guess.label}")
    width = max(len(column.name) for column in guess.columns)
    for column in guess.columns[:_SHOWN]:
        print(f"  {column.name:<{width}}  {column.kind}: {column.why}")
    if len(guess.columns) > _SHOWN:
        print(f"  and {len(guess.columns) - _SHOWN:,} more, all listed in {places[0]}")
    scores = "  ".join(f"{name} {short(value)}" for name, value in _scores(score).items())
    print(f"\nplayed {n:,} rows, each asked before it was learned:\n  {scores}")
    if taken.refused:
        print(f"{taken.refused:,} rows were left out: a service refuses them. {taken.why}")
    print(f"\nwrote {places[0]} and {places[1]}; the first one lists what was guessed\n")
    print(f"  online serve {places[0]}\n")
    print("It starts empty. To teach it the table, before or meanwhile:\n")
    print(f"  {_backfill(guess, places[0])}{lacking()}\n")
    words = ["online", "stream", str(guess.table.path), "--label", guess.label, "--rate", "max"]
    print("Or play it to the running service, each row asked before it is learned:\n")
    print(f"  {shlex.join([*words, '--config', str(places[0])])}")


def _backfill(guess: Guess, settings: Path) -> str:
    """The command that teaches the model the table from which the settings were guessed."""
    words = ["online", "backfill", "--config", str(settings), "--input", str(guess.table.path)]
    words += ["--label", guess.label]
    for name in guess.named("event_id"):
        words += ["--event-id", name]
    return shlex.join(words)


def lacking() -> str:
    """Text that names the package which the command needs and lacks; empty if it is installed."""
    installed = importlib.util.find_spec("pyarrow") is not None
    return "" if installed else f"\n\nwhich needs pyarrow: {installing('rescore')}"
