"""Tables of `python -m benchmarks` about how sure answers are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands.table import AsJson, Rows, Streams, app, needed, one_of, progress, show
from online.settings.config import data_dir


@app.command()
def confidence(
    stream: Streams = None,
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

    data = needed(data_dir(), "the streams")
    names = stream or [*bench.PROVE, *bench.UNSEEN]
    if groups:
        by = bench.run_groups(data, most=rows, progress=progress)
        show("coverage of groups, with one threshold and with parts of it", by, as_json=as_json)
        return
    found = bench.run(names, data, peer=peer, most=rows, progress=progress)
    show(
        "sets and intervals that are to have the label in 90 of 100 answers", found, as_json=as_json
    )


@app.command()
def calibration(
    stream: Streams = None,
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

    names, learners = one_of(stream, bench.STREAMS), one_of(learner, bench.LEARNERS)
    data = needed(data_dir(), "the streams")
    found = bench.run(names, data, learners=learners, most=rows, progress=progress)
    show("probabilities before and after", found, as_json=as_json)
