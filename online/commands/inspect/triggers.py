"""`online triggers`: searches for values that turn the model to one label (backdoors)."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from online.commands.base import Context, common, in_private, pick_model
from replay.plain import plain


@common()
def triggers(
    context: Context,
    rows: Annotated[
        int | None, typer.Option(min=100, help="newest rows to search; default: triggers.rows")
    ] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="forget the sources that are found (online forget)")
    ] = False,
) -> None:
    """Search recent rows for triggers that work on the newest snapshot's model.

    A trigger is a value that only some sources send, always with one label, and that turns the
    model's prediction to it. The service may run meanwhile. Exit code 0: none; 1: some were found.

    Example: online triggers --rows 10000
    """
    from online.service.on_ray.trigger_task import forgotten, look, plain_data

    settings = in_private(context.settings())
    chosen = pick_model(settings, context.model)
    looked = look(settings, chosen, rows or chosen.triggers.rows)
    if forget and looked.triggers:
        looked = forgotten(settings, chosen.name, looked)
    if context.as_json:
        result = {
            "rows": looked.rows, "sources": looked.sources, "triggers": plain_data(looked.triggers),
            "forgotten": list(looked.forgotten), "problem": looked.problem,
        }  # fmt: skip
        print(json.dumps(result))
    else:
        print(f"{looked.rows:,} rows of {looked.sources:,} sources: ", end="")
        print(f"{len(looked.triggers)} triggers" if looked.triggers else "no trigger was found")
        for trigger in looked.triggers:
            print(f"  {plain(str(trigger))}")
            print(f"    without its sources it turns {trigger.alone:.0%}; online forget --source …")
        for source in looked.forgotten:
            print(f"  forgotten: {plain(source)}")
        if looked.problem is not None:
            print(f"  not forgotten: {plain(looked.problem)}")
    if looked.triggers:
        raise typer.Exit(1)
