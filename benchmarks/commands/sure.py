"""Tables of `python -m benchmarks` about how sure answers are."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands.table import AsJson, Rows, app, one_of, show


@app.command()
def confidence(
    stream: Annotated[
        list[str] | None, typer.Option(help="a stream of the table; may be given again")
    ] = None,
    peer: Annotated[
        Path | None, typer.Option(help="Python of an environment with online-conformal==1.0.2")
    ] = None,
    groups: Annotated[
        bool, typer.Option("--groups", help="people of acs by race, sex and disability instead")
    ] = False,
    rows: Rows = None,
    as_json: AsJson = False,
) -> None:
    """Coverage of sets and intervals, with labels at once, 48 and 500 rows late, beside SAOCP.

    Needs the data sets in ONLINE_DATA_DIR.  Example: python -m benchmarks confidence --stream elec2
    """
    from benchmarks.quality import confidence as bench
    from online.settings.config import data_dir

    data = data_dir()
    if data is None:
        raise typer.BadParameter("set ONLINE_DATA_DIR: the streams are read from there")
    names = stream or [*bench.PROVE, *bench.UNSEEN]
    told = partial(print, file=sys.stderr)
    if groups:
        by = bench.run_groups(data, most=rows, progress=told)
        show("coverage of groups, with one threshold and with parts of it", by, as_json=as_json)
        return
    found = bench.run(names, data, peer=peer, most=rows, progress=told)
    show(
        "sets and intervals that are to have the label in 90 of 100 answers", found, as_json=as_json
    )


@app.command()
def calibration(
    stream: Annotated[
        list[str] | None, typer.Option(help="a stream of the table; may be given again")
    ] = None,
    learner: Annotated[
        list[str] | None, typer.Option(help="linear, logreg, ftrl or forest; may be given again")
    ] = None,
    rows: Rows = None,
    as_json: AsJson = False,
) -> None:
    """Log loss and calibration error before and after probabilities are corrected by labels.

    Needs the data sets in ONLINE_DATA_DIR.  Example: python -m benchmarks calibration --rows 5000
    """
    from benchmarks.quality import calibration as bench
    from online.settings.config import data_dir

    names, learners = one_of(stream, bench.STREAMS), one_of(learner, bench.LEARNERS)
    if (data := data_dir()) is None:
        raise typer.BadParameter("set ONLINE_DATA_DIR: the streams are read from there")
    told = partial(print, file=sys.stderr)
    found = bench.run(names, data, learners=learners, most=rows, progress=told)
    show("probabilities before and after", found, as_json=as_json)
