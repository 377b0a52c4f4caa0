"""What the commands share: options, settings, and the way to the running service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from online import config
from online.errors import ConfigError, StartRefused

File = Annotated[Path | None, typer.Argument(help="settings file; none: online.yaml if it is here")]
FileOption = Annotated[Path | None, typer.Option("--config", help="settings file")]
StateDir = Annotated[Path | None, typer.Option("--state-dir", help="state folder of the service")]
AsJson = Annotated[bool, typer.Option("--json", help="print data as JSON")]
Model = Annotated[str | None, typer.Option("--model", help="which model, if several are served")]


def load_settings(path: Path | None, **overrides: Any) -> config.Settings:
    """Settings from the file named, else from ./online.yaml if it is there, else the defaults."""
    if path is None and Path("online.yaml").exists():
        path = Path("online.yaml")
    return config.load(path, overrides, config.environment())


def service(path: Path | None, state_dir: Path | None) -> dict[str, Any]:
    """Facts of the running service."""
    from online.names import running

    return running(load_settings(path, state_dir=state_dir))


def connect(path: Path | None, state_dir: Path | None, timeout_s: float = 60.0) -> httpx.Client:
    """A client of the running service.  Raises StartRefused if none runs."""
    return httpx.Client(base_url=service(path, state_dir)["url"], timeout=timeout_s)


def pick(client: httpx.Client, model: str | None) -> str:
    """The model meant: the only one served, unless it is named."""
    served = [m["model"] for m in checked(client.get("/v1/models"))["models"]]
    if model is None and len(served) == 1:
        return str(served[0])
    if model in served:
        return str(model)
    raise ConfigError("--model", f"{model!r} is not served", f"Name one of: {', '.join(served)}")


def checked(response: httpx.Response) -> dict[str, Any]:
    """The answer's data, or its error as ours."""
    if response.status_code >= 400:
        try:
            error = response.json()["error"]
        except (ValueError, KeyError, TypeError):  # not ours: of what stands in front
            error = {"message": f"{response.status_code} {response.text[:200]}"}
        raise StartRefused(error["message"], error.get("hint") or "See `online status`")
    data: dict[str, Any] = response.json()
    return data


def bar(what: str, *, hidden: bool) -> Progress:
    """A progress bar on standard error; none if that is no terminal."""
    return Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), disable=hidden or not sys.stderr.isatty(), transient=True,
    )  # fmt: skip


def span(seconds: float) -> str:
    """A length of time for people."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
