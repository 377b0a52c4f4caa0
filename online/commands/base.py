"""Shared by all commands: common options, reading settings, and reaching the running service."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, tzinfo
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

from online.client.simple_client import Answer, SimpleClient
from online.errors import ConfigError, StartRefused
from refusals import installing, meant, reason
from replay.plain import PlainStream, plain

if TYPE_CHECKING:  # imported where they are used, because most commands need few of them
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
    """The options that most commands have: service, model, and output as data or text."""

    model: Model = None
    path: FileOption = None
    state_dir: StateDir = None
    as_json: AsJson = False

    def settings(self) -> Settings:
        """Read the settings, see :func:`load_settings`."""
        return load_settings(self.path, state_dir=self.state_dir)

    def reached(self, url: str | None = None) -> Reached:
        """URL and token of the service, see :func:`service`."""
        return service(self.path, self.state_dir, url)

    def connect(self, timeout_s: float = 60.0) -> SimpleClient:
        """Make a client of the running service.  Raises StartRefused if none runs."""
        return client_of(self.reached(), timeout_s)

    def asked(self) -> tuple[SimpleClient, str]:
        """Make a client of the running service, and find the name of the model there."""
        client = self.connect()
        return client, pick(client, self.model)


def common(
    *, model: bool = True, as_json: bool = True
) -> Callable[[Callable[Concatenate[Context, _Options], None]], Callable[..., None]]:
    """Add the common options to a command, which gets them as one :class:`Context`.

    Parameters:
        model, as_json: False for a command without that option.
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
    """Read the settings from a file, else from ./online.yaml if it exists, else use the defaults.

    A Python file gives the settings of one process that serves the model in it.
    """
    from online.settings import config

    path = _file(path)
    if path is not None and path.suffix == ".py":
        from online.models.loading.model_file import settings_of

        given = {name: value for name, value in overrides.items() if value is not None}
        return config.load(None, {**settings_of(path), **given}, config.environment())
    return config.load(path, overrides, config.environment())


def _file(path: Path | None) -> Path | None:
    """The given settings file, else ./online.yaml if it exists."""
    return Path("online.yaml") if path is None and Path("online.yaml").exists() else path


def in_private(settings: Settings) -> Settings:
    """Set the umask of `state_mode` for files that this process creates; return the settings."""
    os.umask(settings.umask)
    return settings


class Reached(NamedTuple):
    """URL of a service, and the token for requests to it.

    ``changing``: since when it applies new settings (POSIX seconds); None: it does not.
    """

    url: str
    token: str | None
    changing: float | None = None


def service(path: Path | None, state_dir: Path | None, url: str | None = None) -> Reached:
    """Find the running service of the settings, or the one at ``url``.

    Raises StartRefused if none runs.
    """
    from online.service.state.run_file import running
    from online.settings.glimpse import environment, given_token, glimpse

    if url is not None:  # an unknown server must not get the tokens of these settings
        return Reached(url, given_token(environment()))
    seen = glimpse(_file(path), state_dir, environment())
    if seen is not None:
        with contextlib.suppress(StartRefused):  # else read all settings, which may report why
            return _reached(running(seen.state_dir), seen.token)
    from online.settings.config import own_token

    settings = load_settings(path, state_dir=state_dir)
    token = own_token(settings, environment())
    return _reached(running(settings.state_dir), token)


def _reached(facts: Mapping[str, Any], token: str | None) -> Reached:
    return Reached(facts["url"], token, facts.get("changing"))


def client_of(reached: Reached, timeout_s: float = 30.0) -> SimpleClient:
    """Make a client of a service."""
    return SimpleClient(reached.url, reached.token, timeout_s)


def pick(client: SimpleClient, model: str | None, option: str = "--model") -> str:
    """Name of the served model that an option gives; may be omitted if there is only one."""
    served = (str(m["model"]) for m in checked(client.get("/v1/models"))["models"])
    return only({name: name for name in served}, model, option=option)


def pick_model(settings: Settings, name: str | None) -> ModelSettings:
    """The model of the settings that an option gives; may be omitted if there is only one."""
    from online.settings.config import DEFAULT_MODEL

    known = {model.name: model for model in settings.models}
    if name is not None and name not in known and [*known] == [DEFAULT_MODEL["name"]]:
        hint = f"Without --config only {next(iter(known))} is served: name your settings file"
        raise ConfigError("--model", f"{name!r} is not served", hint)
    return only(known, name)


def only(
    known: Mapping[str, T], name: str | None, are: str = "are served",
    is_not: str = "is not served", option: str = "--model",
) -> T:  # fmt: skip
    """The entry of this name, or the only entry.  Raises ConfigError."""
    if name is None and len(known) == 1:
        return next(iter(known.values()))
    if name is not None and name in known:
        return known[name]
    what = f"several models {are}" if name is None else f"{name!r} {is_not}"
    hint = meant(name or "", known, f"Name one of: {', '.join(known)}")
    raise ConfigError(option, what, hint)


def need_table_packages() -> None:
    """Check that the packages that read tables are installed.  Raises StartRefused."""
    from evaluation.deferred_imports import absent

    try:
        import pyarrow
    except ImportError as error:
        raise StartRefused(
            f"reading tables needs a package that is missing ({error})", installing("rescore")
        ) from None
    with absent(["pandas"]):  # pyarrow would import it, which takes half a second
        pyarrow.array([0])


def agreed(text: str, question: str, *, more: str = "") -> None:
    """Ask the user at the terminal to confirm.  Raises StartRefused without a yes."""
    if not somebody():
        raise StartRefused(f"{text}; there is no terminal to confirm it", "Confirm it with --yes")
    print(f"{text}{more}", file=sys.stderr)
    if not typer.confirm(question, err=True):
        raise StartRefused("nothing was changed", "Answer y, or give --yes")


def somebody() -> bool:
    """Whether a user at a terminal can answer questions."""
    return sys.stdin.isatty()


def checked(response: Answer) -> dict[str, Any]:
    """The response's data.  Raises StartRefused with the message of an error response."""
    try:
        data = response.json()
    except ValueError:
        data = None
    if isinstance(data, dict) and response.status_code < 300:
        return data
    hint = "Check the URL, and proxies in front of the service: another program answers there"
    error = data.get("error") if isinstance(data, dict) else None
    if not isinstance(error, dict) or "message" not in error:
        error = {"message": f"{response.status_code} {response.text[:200]}", "hint": hint}
    hint = error.get("hint") or "See `online status`"
    if response.status_code in (401, 403):
        hint = TOKEN_REMEDY
    raise StartRefused(error["message"], hint)


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Return a console for the terminal; pass external texts through :func:`readable` first.

    Emoji codes are off, so a name such as ``always:coffee:`` is shown as it is.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    file = stream.beneath if isinstance(stream, PlainStream) else stream
    return Console(file=file, width=width, emoji=False)


def table(*columns: str, right: Collection[str] = (), fold: bool = False) -> Table:
    """Make an empty table with these columns; those in ``right`` are right-aligned."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    for column in columns:
        side: Literal["left", "right"] = "right" if column in right else "left"
        made.add_column(column, justify=side, overflow="fold" if fold else "ellipsis")
    return made


def readable(data: Any) -> Any:
    """Escape all texts in the data, so that neither the terminal nor rich interprets them."""
    if isinstance(data, str):
        from rich.markup import escape

        return escape(plain(data))
    if isinstance(data, dict):
        return {readable(key): readable(value) for key, value in data.items()}
    return [readable(value) for value in data] if isinstance(data, list) else data


def bar(what: str, *, hidden: bool) -> Progress:
    """Make a progress bar on standard error; disabled if that is no terminal."""
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
    """Show rows, rows per second and remaining time on standard error, if that is a terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn(what), BarColumn(), TextColumn("{task.completed:,.0f} rows"),
        TextColumn("{task.speed:,.0f} rows/s"), TimeRemainingColumn(),
        console=console(stderr=True), disable=hidden or not sys.stderr.isatty(), transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def span(seconds: float) -> str:
    """Format a duration for humans."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_LENGTH: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_POSIX: Final = re.compile(r"\d{9,11}|-?\d+\.\d+")  # 20260131 is a date, and 2026 is neither


def duration(option: str, text: str) -> float:
    """Parse a duration such as ``90s`` or ``7d`` into seconds.  Raises ConfigError."""
    match = _LENGTH.fullmatch(text.strip())
    value = 0.0 if match is None else float(match[1]) * _UNITS[match[2]]
    if not 0 < value < 1e10:
        raise ConfigError(option, f"{text!r} is no length of time", "Write 90s, 30m, 1h or 7d")
    return value


def moment(option: str, text: str, zone: tzinfo | None = None) -> float:
    """Parse a duration before now, an ISO 8601 time, or POSIX seconds into POSIX seconds.

    ``zone``: of a time that names none; None: the local one.  Raises ConfigError.
    """
    text = text.strip()
    if _LENGTH.fullmatch(text):
        return time.time() - duration(option, text)
    if _POSIX.fullmatch(text):
        return float(text)
    try:
        when = datetime.fromisoformat(text)
        return (when if when.tzinfo else when.replace(tzinfo=zone)).timestamp()
    except (ValueError, OverflowError):
        remedy = "Write it like 90m, 2h, 7d, 4w or 2026-01-31T14:00"
        raise ConfigError(option, f"{text!r} is not a time", remedy) from None


@contextlib.contextmanager
def replacing(option: str, target: Path) -> Iterator[Path]:
    """Yield the path of a file that replaces the target when the context ends without an error.

    So neither Ctrl-C nor a full disk leaves half a file, or loses the one before.  A pipe or a
    device is written itself.  Raises ConfigError if the target can't be written.
    """
    whole = target.is_file() or not target.exists()
    file = target.resolve() if whole else target
    part = file.with_name(f"{file.name}.part") if whole else file
    try:
        yield part
        if whole:
            part.replace(file)
    except OSError as error:
        hint = "Name a file in a writable folder"
        raise ConfigError(option, f"{target}: {reason(error)}", hint) from None
    finally:
        if whole:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
