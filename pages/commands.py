"""The page of all commands, made from what parses them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import typer

from online.commands.cli import app

_HEAD: Final = """# Commands

<!-- Made by `python -m pages` from online/commands: change it there. -->

Every command of `online`, with its arguments and options. Commands find the service by its state
folder: give them the same `online.yaml` or `--state-dir`. Exit codes: 0 done, 1 refused or not good
(the reason is on stderr), 2 wrong usage, 130 interrupted. What to use when:
[reference](reference.md#commands), [runbook](runbook.md).
"""


def page() -> str:
    """All commands, groups among them, in the order of `online --help`."""
    whole: Any = typer.main.get_command(app)
    return _HEAD + "".join(_group("online", whole))


def _group(name: str, group: Any) -> Iterator[str]:
    for word, command in group.commands.items():
        called = f"{name} {word}"
        if hasattr(command, "commands"):
            yield from _group(called, command)
        else:
            yield _command(called, command)


def _command(called: str, command: Any) -> str:
    text, examples = [], []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        line = " ".join(paragraph.split())
        if line.startswith("Example: "):
            examples.append(line.removeprefix("Example: "))
        else:
            text.append(line)
    shown = [one for one in command.params if one.name != "help"]
    arguments = [_placed(one) for one in shown if _is_argument(one)]
    usage = " ".join([called, *arguments, *(["[OPTIONS]"] if shown else [])])
    parts = [f"\n## {called}\n", "\n\n".join(text) + "\n"]
    parts.append("```text\n" + "\n".join([usage, *examples]) + "\n```\n")
    if shown:
        rows = "".join(_row(one) for one in shown)
        parts.append(f"| | default | meaning |\n|---|---|---|\n{rows}")
    return "\n".join(parts)


def _is_argument(one: Any) -> bool:
    return not one.opts[0].startswith("-")


def _placed(argument: Any) -> str:
    name = (argument.metavar or argument.name).upper()
    return name if argument.required else f"[{name}]"


def _row(one: Any) -> str:
    if _is_argument(one):
        called = f"`{(one.metavar or one.name).upper()}`"
    else:
        called = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
        if not one.is_flag:
            called += f" {_kind(one)}"
    cells = (called, _default(one), " ".join((one.help or "").split()))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _kind(one: Any) -> str:
    """The kind of value that an option takes, with its bounds."""
    kind: Any = one.type_descriptor.annotation
    if get_origin(kind) in (list, tuple):
        (kind,) = get_args(kind)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if issubclass(kind, Enum):
        return ", ".join(f"`{choice.value}`" for choice in kind)
    if kind not in (int, float):
        return {Path: "a path", str: "text"}.get(kind, "a value")
    if one.min is not None and one.max is not None:
        return f"{one.min:,} … {one.max:,}"
    return "a number" if one.min is None else f"from {one.min:,} on"


def _default(one: Any) -> str:
    if one.required:
        return "**needed**"
    value = getattr(one.default, "value", one.default)
    if value is None or value is False or value == () or callable(value):
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
