"""This module prints the tables of `python -m benchmarks`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from online.commands.base import console

app = typer.Typer(
    name="benchmarks",
    help="Measured tables, each beside a peer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="print data as JSON")]
Rows = Annotated[int | None, typer.Option(help="only so many rows of a stream")]
Streams = Annotated[
    list[str] | None, typer.Option(help="a stream of the table; may be given again")
]
Seeds = Annotated[int, typer.Option(help="runs of each case", min=1)]
First = Annotated[int, typer.Option(help="first seed", min=0)]
Replicas = Annotated[list[int] | None, typer.Option(help="how many; both by default")]

T = TypeVar("T")


def one_of(given: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """Return the names that were given, or all that are known if none was.

    Raises BadParameter, which says what is known, for a name that is not.
    """
    names = list(known)
    for name in given or ():
        if name not in names:
            known_names = ", ".join(map(repr, names))
            raise typer.BadParameter(f"{name!r} is not known; known are: {known_names}")
    return list(given or names)


def needed(data: Path | None, what: str) -> Path:
    """The folder of real streams.  Raises BadParameter if ONLINE_DATA_DIR names none."""
    if data is None:
        raise typer.BadParameter(f"set ONLINE_DATA_DIR: {what} are read from there")
    return data


def progress(line: object) -> None:
    """Print a line on standard error at once."""
    print(line, file=sys.stderr, flush=True)


def followed(lines: Iterable[T], text: Callable[[T], str] = str) -> list[T]:
    """The lines, each of which is printed on standard error as soon as it is measured."""
    found = []
    for line in lines:
        progress(text(line))
        found.append(line)
    return found


def verdict(title: str, rows: Iterable[Any], *, as_json: bool) -> typer.Exit:
    """Show rows; return the end of the command: exit code 1 if one is not good.

    A row whose ``good`` is None is not judged.
    """
    data = list(rows)
    show(title, data, as_json=as_json)
    return typer.Exit(0 if all(row.good is not False for row in data) else 1)


def show_result(result: Any, *, as_json: bool = False) -> None:
    """Show the fields of one dataclass, and whether it is good, a line each."""
    data = {**asdict(result), "good": result.good}
    if as_json:
        print(json.dumps(data))
        return
    for name, value in data.items():
        print(f"{name.replace('_', ' ')}: {value}")


def show(title: str, rows: Iterable[Any], *, as_json: bool) -> None:
    """Dataclasses as a table, or as JSON."""
    data = [asdict(row) for row in rows]
    if as_json:
        print(json.dumps(data))
        return
    print_table(title, data)


def print_table(title: str, data: list[dict[str, Any]]) -> None:
    """Rows of the same keys."""
    table = Table(title=title, box=None, pad_edge=False)
    for name in data[0]:
        table.add_column(name.replace("_", " "), justify="left" if name == "what" else "right")
    for row in data:
        table.add_row(*(_cell(value) for value in row.values()))
    console(width=None if sys.stdout.isatty() else 160).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return (
            f"{value:.3g}"
            if abs(value) < 0.001
            else f"{value:,.4f}"
            if value < 1
            else f"{value:,.1f}"
        )
    return str(value)
