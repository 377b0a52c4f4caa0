"""This module prints the tables of `python -m benchmarks`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated, Any

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
Rows = Annotated[int | None, typer.Option(help="only so many rows of the stream")]


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
