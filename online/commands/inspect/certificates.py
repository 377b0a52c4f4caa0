"""`online certificates`: lists and verifies certificates of forgetting, and shows the key."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from online.audit import certificates
from online.audit.log import keys_of
from online.commands.base import Context, common, console, readable, table
from online.errors import StartRefused
from online.rebuild import certify

app = typer.Typer(
    help="Certificates of forgetting: list them, verify one, show the key.", no_args_is_help=True
)


def _public_keys(context: Context) -> list[str]:
    """The public keys of the service's keys; the present signing key is first."""
    settings = context.settings()
    if not (keys := keys_of(settings.key_path)):
        raise StartRefused(
            f"no key can be read from {settings.key_path}",
            "Run it as the user of the service, or name its folder with --state-dir",
        )
    return certificates.public_keys(keys)


@app.command("key")
@common(model=False)
def certificates_key(context: Context) -> None:
    """Print the public keys that verify certificates; the present signing key is first.

    Ed25519, 32 bytes as hexadecimal digits; one for each key of the service's key file.

    Example: online certificates key
    """
    keys = _public_keys(context)
    print(json.dumps({"keys": keys}) if context.as_json else "\n".join(keys))


@app.command("list")
@common(model=False)
def certificates_list(context: Context) -> None:
    """List the certificates in the state folder, verifying each.

    Exit code 1 if one is invalid.

    Example: online certificates list
    """
    settings, keys = context.settings(), _public_keys(context)
    rows: list[dict[str, Any]] = []
    for file in sorted((settings.state_dir / certify.FOLDER).glob("*.json")):
        document = certify.read(file)
        faults = certificates.faults(document, keys)
        statement = {} if faults else document["certificate"]
        rows.append(
            {
                "file": str(file),
                **{name: statement.get(name) for name in ("done", "model", "source", "count")},
                "at": statement.get("erased", {}).get("at") or statement.get("forgotten_at"),
                "faults": faults,
            }
        )
    if context.as_json:
        print(json.dumps(rows))
    else:
        columns = ("at", "done", "model", "source", "count", "faults", "file")
        shown = table(*columns)
        for row in readable(rows):
            texts = {**row, "faults": "; ".join(row["faults"])}
            shown.add_row(*(str("" if texts[c] is None else texts[c]) for c in columns))
        console().print(shown)
    if any(row["faults"] for row in rows):
        raise typer.Exit(1)


@app.command("verify")
@common(model=False)
def certificates_verify(
    context: Context,
    file: Annotated[Path, typer.Argument(help="the certificate's file")],
    key: Annotated[
        str | None,
        typer.Option("--key", help="public key, 64 hexadecimal digits; none: this service's"),
    ] = None,
) -> None:
    """Verify a certificate: its signature, and that its events are the digests' difference.

    Exit code 1 if it is not good.

    Example: online certificates verify forgotten.json
    """
    keys = _public_keys(context) if key is None else [key.lower()]
    document = certify.read(file)
    faults = certificates.faults(document, keys)
    if context.as_json:
        print(json.dumps({"good": not faults, "faults": faults}))
    elif faults:
        print(f"{file}: NOT GOOD: {'; '.join(faults)}", file=sys.stderr)
    else:
        statement = document["certificate"]
        print(
            f"{file}: good: {statement['count']:,} events of {statement['source']} "
            f"are {statement['done']}, model {statement['model']}"
        )
    if faults:
        raise typer.Exit(1)
