"""`online audit`: lists and exports the audit log: who decided what, when and from where."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from online.commands.base import Context, common, console, moment, readable, replacing, table
from online.errors import ConfigError, StartRefused

if TYPE_CHECKING:
    from online.audit.chain import Read
    from online.settings.config import Settings

app = typer.Typer(
    help="The audit log: who decided what, when and from where.", no_args_is_help=True
)

Act = Annotated[str | None, typer.Option(help="this kind only: freeze, rollback, decide, pin …")]
Who = Annotated[str | None, typer.Option(help="name of a token, or `the service` itself")]
OfModel = Annotated[str | None, typer.Option("--model", help="about this model only")]
Since = Annotated[
    str | None, typer.Option(help="since: 2h, 7d, or a local time as 2026-01-31T14:00")
]

_COLUMNS: Final = ("number", "at", "act", "model", "who", "origin", "about", "fault")


@app.command("list")
@common(model=False)
def audit_list(
    context: Context,
    act: Act = None,
    who: Who = None,
    model: OfModel = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, help="most lines that are shown, newest")] = 100,
) -> None:
    """List decisions, the newest last, verifying each line.

    Works with the service running or stopped.  Exit code 1 if a line was altered; `online fsck`
    also finds missing lines.

    Example: online audit list --since 7d --who alice
    """
    settings = context.settings()
    entries = _chosen(settings, act, who, model, since)[-limit:]
    if context.as_json:
        print(json.dumps(entries))
    else:
        rows = table("line", "when", "what", "model", "who", "from", "", fold=True)
        for one in readable(entries):
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["at"] or 0))
            details = ", ".join(f"{k} {v}" for k, v in one["about"].items() if k != "sha256")
            wrong = f"[red]{one['fault']}[/red] " if one["fault"] else ""
            rows.add_row(
                str(one["number"]), when, one["act"], one["model"] or "–", one["who"],
                one["origin"] or "–", f"{wrong}{details}",
            )  # fmt: skip
        console().print(rows) if entries else print("no such decisions")
    _end(entries)


@app.command("export")
@common(model=False, as_json=False)
def audit_export(
    context: Context,
    out: Annotated[Path, typer.Argument(help="file to write: .jsonl or .csv")],
    act: Act = None,
    who: Who = None,
    model: OfModel = None,
    since: Since = None,
) -> None:
    """Write decisions to a file, one per line: JSON lines or CSV, by the file's suffix.

    Exit code 1 if a line was altered; it is in the file, with its fault.

    Example: online audit export decisions.jsonl --since 30d
    """
    if out.suffix not in (".jsonl", ".csv"):
        raise ConfigError("OUT", f"{out} is neither .jsonl nor .csv", "Use one of these endings")
    entries = _chosen(context.settings(), act, who, model, since)
    if out.suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS)
        writer.writeheader()
        writer.writerows({**one, "about": json.dumps(one["about"])} for one in entries)
        written = text.getvalue()
    else:
        written = "".join(json.dumps(one) + "\n" for one in entries)
    with replacing("OUT", out) as part:
        part.write_text(written)
    print(f"{len(entries):,} decisions are in {out}", file=sys.stderr)
    _end(entries)


def _end(checked: list[dict[str, Any]]) -> None:
    if wrong := sum(one["fault"] is not None for one in checked):
        print(f"{wrong:,} lines are not as they were written: online fsck", file=sys.stderr)
        raise typer.Exit(1)


def _chosen(
    settings: Settings, act: str | None, who: str | None, model: str | None, since: str | None
) -> list[dict[str, Any]]:
    """The selected decisions as plain data, oldest first."""
    from online.audit.chain import Signer
    from online.audit.checking import all_lines
    from online.audit.log import keys_of
    from online.settings.places import open_journal

    begin = 0.0 if since is None else moment("--since", since)
    place = settings.state_dir / "journal.db"
    if settings.journal == "sqlite" and not place.exists():  # opening it would create one
        raise StartRefused(f"there is no journal {place}", "Name its folder with --state-dir")
    keys = keys_of(settings.key_path)
    if not keys:
        raise StartRefused(
            f"the keys in {settings.key_path} can't be read; they are needed to verify lines",
            "Run it as the user of the service, or name its settings file with --config",
        )
    with contextlib.closing(open_journal(settings)) as journal:
        entries = map(_plain, Signer(keys).read(all_lines(journal)))
        return [
            one
            for one in entries
            if (one["at"] or begin) >= begin
            and (act is None or one["act"] == act)
            and (who is None or one["who"] == who)
            and (model is None or one["model"] == model)
        ]


def _plain(read: Read) -> dict[str, Any]:
    entry = read.entry
    if entry is None:
        empty: dict[str, Any] = dict.fromkeys(_COLUMNS)
        return {**empty, "number": read.number, "act": "?", "who": "?", "about": {},
                "fault": read.fault}  # fmt: skip
    return {
        "number": read.number, "at": entry.at, "act": entry.act, "model": entry.model,
        "who": entry.who, "origin": entry.origin, "about": entry.about, "fault": read.fault,
    }  # fmt: skip
