"""The commands share what is here: options, settings, and the way to the running service."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Concatenate,
    Final,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeVar,
)

import typer

from online.client.asking import Answer, Asking
from online.errors import ConfigError, StartRefused
from refusals import meant
from replay.plain import PlainStream, plain

if TYPE_CHECKING:  # imported where they are used: a question to the service needs few of them
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from online.settings.config import Settings
    from online.settings.model import ModelSettings

T = TypeVar("T")

TOKEN_REMEDY = (
    "Commands send ONLINE_TOKEN, or else the first of tokens.admin in the settings file (--config)"
)

File = Annotated[Path | None, typer.Argument(help="settings file; none: online.yaml if it is here")]
FileOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="settings file; a running service is asked with its tokens.admin, or ONLINE_TOKEN",
    ),
]
StateDir = Annotated[Path | None, typer.Option("--state-dir", help="state folder of the service")]
AsJson = Annotated[bool, typer.Option("--json", help="print data as JSON")]
Model = Annotated[str | None, typer.Option("--model", help="which model, if several are served")]

_Options = ParamSpec("_Options")


@dataclass(frozen=True, slots=True)
class Context:
    """The options that most commands have: which service, which model, data or words."""

    model: Model = None
    path: FileOption = None
    state_dir: StateDir = None
    as_json: AsJson = False

    def settings(self) -> Settings:
        """The settings that are meant, see :func:`load_settings`."""
        return load_settings(self.path, state_dir=self.state_dir)

    def reached(self, url: str | None = None) -> Reached:
        """Where the service is, see :func:`service`."""
        return service(self.path, self.state_dir, url)

    def connect(self, timeout_s: float = 60.0) -> Asking:
        """The way to the running service.  Raises StartRefused if none runs."""
        return client_of(self.reached(), timeout_s)

    def asked(self) -> tuple[Asking, str]:
        """The way to the running service, and the model that is meant there."""
        client = self.connect()
        return client, pick(client, self.model)


def common(
    *, model: bool = True, as_json: bool = True
) -> Callable[[Callable[Concatenate[Context, _Options], None]], Callable[..., None]]:
    """Give a command the common options behind its own: it takes them as one :class:`Context`.

    ``model``, ``as_json``: False for a command without that option.
    """
    left_out = {name for name, on in (("model", model), ("as_json", as_json)) if not on}
    names = [one.name for one in fields(Context) if one.name not in left_out]

    def with_options(
        command: Callable[Concatenate[Context, _Options], None],
    ) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*args: Any, **given: Any) -> None:
            context = Context(**{name: given.pop(name) for name in names if name in given})
            command(context, *args, **given)

        own = inspect.signature(command, eval_str=True)
        options = inspect.signature(Context, eval_str=True).parameters
        added = [options[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in names]
        parameters = [*list(own.parameters.values())[1:], *added]
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return with_options


def load_settings(path: Path | None, **overrides: Any) -> Settings:
    """Settings from the file named, else from ./online.yaml if it is there, else the defaults.

    Of a file of Python: one process that serves the model in it.
    """
    from online.settings import config

    path = _file(path)
    if path is not None and path.suffix == ".py":
        from online.models.loading.model_file import settings_of

        given = {name: value for name, value in overrides.items() if value is not None}
        return config.load(None, {**settings_of(path), **given}, config.environment())
    return config.load(path, overrides, config.environment())


def _file(path: Path | None) -> Path | None:
    """The settings file that is meant: without one named it is that of this folder, if any."""
    return Path("online.yaml") if path is None and Path("online.yaml").exists() else path


def in_private(settings: Settings) -> Settings:
    """The settings; what this process makes from now on is for those of `state_mode` only."""
    os.umask(settings.umask)
    return settings


class Reached(NamedTuple):
    """Where a service is, and the token that it is asked with."""

    url: str
    token: str | None


def service(path: Path | None, state_dir: Path | None, url: str | None = None) -> Reached:
    """The running service of the settings, or the one at ``url``.

    Raises StartRefused if none runs.
    """
    from online.service.run_file import running
    from online.settings.glimpse import environment, given_token, glimpse

    if url is not None:  # whoever answers there is not to be told the tokens of these settings
        return Reached(url, given_token(environment()))
    seen = glimpse(_file(path), state_dir, environment())
    if seen is not None:
        with contextlib.suppress(StartRefused):  # else all settings are read: they may be wrong
            return Reached(running(seen.state_dir)["url"], seen.token)
    from online.settings.config import own_token

    settings = load_settings(path, state_dir=state_dir)
    token = own_token(settings, environment())
    return Reached(running(settings.state_dir)["url"], token)


def client_of(reached: Reached, timeout_s: float = 30.0) -> Asking:
    """The way to a service."""
    return Asking(reached.url, reached.token, timeout_s)


def pick(client: Asking, model: str | None, option: str = "--model") -> str:
    """The model meant by an option: the only one served, unless it is named."""
    served = (str(m["model"]) for m in checked(client.get("/v1/models"))["models"])
    return only({name: name for name in served}, model, option=option)


def pick_model(settings: Settings, name: str | None) -> ModelSettings:
    """The model of the settings that is meant: the only one, unless it is named."""
    from online.settings.config import DEFAULT_MODEL

    known = {model.name: model for model in settings.models}
    if name is not None and name not in known and [*known] == [DEFAULT_MODEL["name"]]:
        hint = f"Without a settings file there is {next(iter(known))} alone: name yours by --config"
        raise ConfigError("--model", f"{name!r} is not served", hint)
    return only(known, name)


def only(
    known: Mapping[str, T], name: str | None, are: str = "are served",
    is_not: str = "is not served", option: str = "--model",
) -> T:  # fmt: skip
    """The one that is named, or the only one that there is.  Raises ConfigError."""
    if name is None and len(known) == 1:
        return next(iter(known.values()))
    if name is not None and name in known:
        return known[name]
    what = f"several models {are}" if name is None else f"{name!r} {is_not}"
    hint = meant(name or "", known, f"Name one of: {', '.join(known)}")
    raise ConfigError(option, what, hint)


def agreed(text: str, question: str, *, more: str = "") -> None:
    """Ask whoever sits there for a yes.  Raises StartRefused without one."""
    if not somebody():
        raise StartRefused(f"{text}; nobody is here to say yes", "Say it with --yes")
    print(f"{text}{more}", file=sys.stderr)
    if not typer.confirm(question, err=True):
        raise StartRefused("nothing was changed", "Say y, or --yes")


def somebody() -> bool:
    """Whether anybody is there to answer a question."""
    return sys.stdin.isatty()


def checked(response: Answer) -> dict[str, Any]:
    """The answer's data, or its error as ours."""
    if response.status_code >= 400:
        try:
            error = response.json()["error"]
        except (ValueError, KeyError, TypeError):  # not ours: of what stands in front
            error = {"message": f"{response.status_code} {response.text[:200]}"}
        hint = error.get("hint") or "See `online status`"
        if response.status_code in (401, 403):
            hint = TOKEN_REMEDY
        raise StartRefused(error["message"], hint)
    data: dict[str, Any] = response.json()
    return data


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Return a console for the terminal; texts from outside go through :func:`readable` first.

    A name between colons is no picture: ``always:coffee:`` stays what it is.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    file = stream.beneath if isinstance(stream, PlainStream) else stream
    return Console(file=file, width=width, emoji=False)


def table(*columns: str, right: Collection[str] = (), fold: bool = False) -> Table:
    """An empty table with these columns, those named in ``right`` for numbers."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    for column in columns:
        side: Literal["left", "right"] = "right" if column in right else "left"
        made.add_column(column, justify=side, overflow="fold" if fold else "ellipsis")
    return made


def readable(data: Any) -> Any:
    """The data of an answer with texts that neither a terminal nor rich takes for orders."""
    if isinstance(data, str):
        from rich.markup import escape

        return escape(plain(data))
    if isinstance(data, dict):
        return {readable(key): readable(value) for key, value in data.items()}
    return [readable(value) for value in data] if isinstance(data, list) else data


def bar(what: str, *, hidden: bool) -> Progress:
    """A progress bar on standard error; none if that is no terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console(stderr=True), disable=hidden or not sys.stderr.isatty(), transient=True,
    )  # fmt: skip


@contextlib.contextmanager
def counting(what: str, *, hidden: bool) -> Iterator[Callable[[int, int], None]]:
    """Rows, rows a second and the time left on standard error; nothing if that is no terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn(what), BarColumn(), TextColumn("{task.completed:,.0f} rows"),
        TextColumn("{task.speed:,.0f} rows/s"), TimeRemainingColumn(),
        console=console(stderr=True), disable=hidden or not sys.stderr.isatty(), transient=True,
    ) as shown:  # fmt: skip
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def span(seconds: float) -> str:
    """A length of time for people."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


_UNITS: Final = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def moment(option: str, text: str) -> float:
    """POSIX seconds of a time, or of a length of time ago.  Raises ConfigError."""
    unit = _UNITS.get(text[-1:])
    try:
        if unit is not None:
            return time.time() - float(text[:-1]) * unit
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        remedy = "As 90m, 2h, 7d, 4w or 2026-01-31T14:00"
        raise ConfigError(option, f"no time: {text!r}", remedy) from None
