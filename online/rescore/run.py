"""Executes a run: plan, score, audit, publish.  Each step can be repeated.

====================================== =======================================================
``current.json``                       pointer to the run that is read, and the runs before
``runs/RUN/plan.json``                 the plan, written first
``runs/RUN/shards/NNNNNN.parquet``     scores; the existence of a file means that it is complete
``runs/RUN/quarantine/NNNNNN.parquet`` rows that were not scored, with the reason
``runs/RUN/weights.msgpack``           weights of a linear model, for comparison by the next run
``runs/RUN/audit.json``                result of reading the files back, with SHA-256 of each
====================================== =======================================================
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow.parquet as pq
from river import linear_model, preprocessing

from evaluation.metrics import Task
from online.models.adapters.linear import Linear
from online.models.base import Model
from online.models.limited import LimitedScaler
from online.models.structure import steps
from online.rescore import audit, plan, published, sparse
from online.rescore.errors import AuditFailed, RunRefused
from online.rescore.plan import FORMAT, Plan
from online.rescore.pool import Deal
from online.rescore.published import Current, Run
from online.rescore.scorer import choose
from online.rescore.stores import Part, Scores
from online.rescore.work import SHARDS, MakeModel
from online.tables import inputs, readers
from online.tables.columns import Rows
from online.tables.errors import InputRefused
from online.tables.layout import Column, Input, Layout, Shard
from online.tables.places import Folder, Location

POINTER: Final = "current.json"
WEIGHTS: Final = "weights.msgpack"
_RUN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_BY_NAME: Final = {
    preprocessing.StandardScaler: "counts", preprocessing.MinMaxScaler: "min", LimitedScaler: "held"
}  # fmt: skip
_SAMPLE: Final = 200
_SEED: Final = 8  # for the rows that are sampled for the audit


@dataclass(frozen=True, slots=True)
class Scored:
    """The model for scoring: ``make`` makes it from the snapshot named ``snapshot``.

    ``ends`` and ``within`` are those of :class:`online.rescore.plan.Plan`.
    """

    name: str
    task: Task
    spec: str
    version: str
    snapshot: str
    make: MakeModel
    classes: tuple[str | int | bool, ...] = ()
    ends: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)
    within: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Request:
    """Describes what a run is requested to do.

    Attributes:
        files: Paths or URIs of files and folders.
        output: Path or URI of the folder of all runs.
        run: The run's id; None: derived from files and model, so that the same request is the same
            run.
        key, time: Columns of the rows' ids, and of the time for which their features are valid.
        ignored: Columns to leave out.
        missing_ok: Whether columns that the model has learned may be missing.
        force: Publish although scores have shifted, or features are older.
        ttl_s: Lifetime of the scores in seconds; None: unlimited.
        declared: Columns that the model's settings declare; None: none.
    """

    files: tuple[str, ...]
    output: str
    run: str | None = None
    key: str | None = None
    time: str | None = None
    ignored: frozenset[str] = frozenset()
    missing_ok: bool = False
    force: bool = False
    ttl_s: float | None = None
    text_bytes_max: int = 1_024
    declared: Mapping[str, Column] | None = None


@dataclass(slots=True)
class Outcome:
    """Describes what a run has done.

    ``scored`` of ``rows`` were scored now; ``skipped`` others have the score of the previously
    published run, which can't have changed, or ``all_because`` says why all were scored.
    ``first_s`` and ``last_s``: the first block read and the last one scored, by the machine's
    monotonic clock.
    """

    run: str
    rows: int
    scored: int = 0
    quarantined: int = 0
    shards: int = 0
    was_published: bool = False
    report: audit.Report | None = None
    stored: int = 0
    skipped: int = 0
    all_because: str = ""
    first_s: float = float("inf")
    last_s: float = 0.0
    warnings: list[str] = field(default_factory=list)


Start = Callable[[Plan, MakeModel], AbstractContextManager[Deal]]
"""Makes the function that scores shards; it may be used within the context."""


def execute(
    request: Request,
    scored: Scored,
    start: Start,
    *,
    store: Scores | None,
    now_s: float,
    progress: Callable[[int, int], None],
) -> Outcome:
    """Execute the run, or what is left of it.

    Parameters:
        progress: Called with the number of rows scored so far, and of all rows.

    Raises:
        InputRefused, LocationFailed, RunRefused, AuditFailed, StoreFailed, RayFailed: Nothing is
            published then.
    """
    folder = Folder(Location(request.output))
    before = pointer(folder)
    made, why = prepare(request, scored, folder, before, now_s)
    outcome = Outcome(made.run, made.rows, all_because=why)
    if before.named(made.run) is not None and (
        store is None or store.current().named(made.run) is not None
    ):
        outcome.was_published = True
        return outcome
    _score(made, scored, folder, start, outcome, progress)
    report = _audited(made, folder, before, force=request.force)
    outcome.report = report
    outcome.quarantined = report.quarantined
    run = _run_of(made, report, request.ttl_s, now_s)
    if store is not None:
        if made.layout.key is None:
            raise RunRefused(made.run, "a store needs keys", "Name their column: --key COLUMN")
        outcome.stored = store.load(run, _parts(made, folder))
        store.point(lambda current: current.to(run, force=request.force))
    # Read again: while this run was scored, others may have been published, removed or returned to.
    folder.write(POINTER, published.encode(pointer(folder).to(run, force=request.force)))
    return outcome


def pointer(folder: Folder) -> Current:
    """The pointer of an output folder.  Raises LocationFailed, RunRefused."""
    try:
        return published.decode(folder.read(POINTER))
    except FileNotFoundError:
        return Current()
    except msgspec.DecodeError as error:
        raise RunRefused(POINTER, f"damaged ({error})", "Put a good copy back") from error


def planned(output: str, run: str) -> Plan | None:
    """The plan of a run that was begun, or None.  Raises RunRefused."""
    if not _RUN.fullmatch(run):
        raise RunRefused(run[:80], "no name of a run", "Use letters, digits, dots and hyphens")
    try:
        data = Folder(Location(output)).read(f"runs/{run}/plan.json")
    except FileNotFoundError:
        return None
    try:
        return plan.decode(data)
    except msgspec.DecodeError as error:
        raise RunRefused(run, f"its plan is damaged ({error})", "Begin another") from error


def prepare(
    request: Request, scored: Scored, folder: Folder, before: Current, now_s: float
) -> tuple[Plan, str]:
    """The run's plan: that of an unfinished run, or a new one, which is written.

    Also returns why all rows are scored although another run was published; "" if they are not.
    """
    model = scored.make()
    known = known_names(model)
    named = (request.key, request.time, *request.ignored, *(request.declared or ()), *known)
    files = inputs.files_of(request.files, named)
    entities: Collection[str] = getattr(model, "entities", ())
    if request.key in entities:
        problem = "scores are stored by it, and the model has offsets by it, which read a feature"
        raise InputRefused(f"column {request.key}", problem, "Name a copy of the column as the key")
    layout = inputs.layout(
        files, key=request.key, time=request.time, ignored=request.ignored, known=known,
        numeric_only=model.numeric_only, missing_ok=request.missing_ok,
        text_bytes_max=request.text_bytes_max, declared=request.declared,
        texts=entities,
    )  # fmt: skip
    asked = plan.asked(FORMAT, scored.name, scored.spec, scored.snapshot, layout, tuple(files))
    name = request.run or asked[:16]
    if (begun := planned(request.output, name)) is not None:
        own = plan.asked(
            begun.format, begun.model, begun.spec, begun.snapshot, begun.layout, begun.inputs
        )
        if own != asked:
            raise RunRefused(
                name, "it was begun with other files, columns or another model",
                "Begin another: leave --run-id out, or give a new one",
            )  # fmt: skip
        return begun, ""
    seed = int(hashlib.sha256(asked.encode()).hexdigest()[:8], 16) + _SEED
    counted, shards = inputs.cut(files, np.random.default_rng(seed))
    columns = {one.name for one in layout.features}
    ends = {name: both for name, both in scored.ends.items() if name in columns}
    method = choose(model, scored.task, _sample(counted, shards, layout).within(ends))
    made = Plan(
        FORMAT, name, scored.name, scored.task, scored.spec, scored.version, scored.snapshot,
        scored.classes, method, now_s, layout, tuple(counted), tuple(shards), ends=ends,
        within=scored.within,
    )  # fmt: skip
    made, why = _reusing(made, model, folder, before)
    folder.write(f"runs/{name}/plan.json", plan.encode(made))
    return made, why


def _reusing(made: Plan, model: Model, folder: Folder, before: Current) -> tuple[Plan, str]:
    """The plan that reuses scores of the previous run, or the unchanged plan and the reason."""
    now = sparse.weights_of(model) if made.method == "columns" else None
    if now is None:
        return made, ""
    folder.write(f"runs/{made.run}/{WEIGHTS}", sparse.encode(now))
    if before.run is None or before.run.name == made.run:
        return made, ""
    base = f"runs/{before.run.name}"
    try:
        old = plan.decode(folder.read(f"{base}/plan.json"))
        if not plan.alike(old, made):
            return made, f"run {before.run.name} was of other files, columns or another model"
        known = sparse.decode(folder.read(f"{base}/{WEIGHTS}"))
    except (FileNotFoundError, msgspec.DecodeError):
        return made, f"the weights of run {before.run.name} are gone"
    names, why = sparse.changed(known, now)
    moved = sparse.moved_ends(old.ends, made.ends)
    if names is None or moved is None:
        return made, f"{why or 'the bound of a number has moved'} since run {before.run.name}"
    changed = tuple(sorted({*names, *moved}))
    return msgspec.structs.replace(made, since=old.run, changed=changed), ""


def known_names(model: Model) -> Collection[str]:
    """Names of the features that a model was built for or has learned; empty: any features."""
    if not isinstance(model, Linear):
        named: Collection[str] = getattr(model, "inputs", ())
        return named
    first, *_ = steps(model.estimator)
    if (by_name := _BY_NAME.get(type(first))) is not None:
        return set(getattr(first, by_name))
    if type(first) is linear_model.SoftmaxRegression:
        return {name for weights in first.weights.values() for name in weights}
    return set(first.weights)


def _sample(files: Sequence[Input], shards: Sequence[Shard], layout: Layout) -> Rows:
    """The first valid rows of the first shard."""
    first = shards[0]
    for piece in readers.read(files[first.input], first, layout):
        if piece.rows.n:
            return piece.rows.take(np.arange(min(_SAMPLE, piece.rows.n)))
    if first.rows and not len(shards) > 1:
        raise InputRefused(files[0].path, "it has no row that can be scored", "See its columns")
    return Rows(0, {})


def _score(
    made: Plan, scored: Scored, folder: Folder, start: Start, outcome: Outcome,
    progress: Callable[[int, int], None],
) -> None:  # fmt: skip
    written = folder.names(f"runs/{made.run}/{SHARDS}")
    left = [shard for shard in made.shards if shard.name not in written]
    done = made.rows - sum(shard.rows for shard in left)
    progress(done, made.rows)
    if not left:
        return
    with start(made, scored.make) as deal, contextlib.closing(_as_generator(deal(left))) as results:
        for one in results:
            outcome.shards += 1
            outcome.scored += one.good - one.skipped
            outcome.skipped += one.skipped
            outcome.first_s = min(outcome.first_s, one.begun_s)
            outcome.last_s = max(outcome.last_s, one.ended_s)
            done += one.good + one.bad
            progress(done, made.rows)


def _as_generator(results: Any) -> Any:
    yield from results


def _audited(made: Plan, folder: Folder, before: Current, *, force: bool) -> audit.Report:
    last = None
    if before.run is not None and before.run.name != made.run:
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            data = folder.read(f"runs/{before.run.name}/audit.json")
            last = msgspec.json.decode(data, type=audit.Report)
    report = audit.examine(made, folder, last, force=force)
    folder.write(f"runs/{made.run}/audit.json", msgspec.json.encode(report))
    if report.blocking:
        raise AuditFailed(made.run, report.blocking)
    return report


def _run_of(made: Plan, report: audit.Report, ttl_s: float | None, now_s: float) -> Run:
    as_of = inputs.newest(made.inputs) if report.newest is None else report.newest
    expires_at = None if ttl_s is None else now_s + ttl_s
    return Run(made.run, made.model, made.version, made.begun_at, as_of, report.scored, expires_at)


def _parts(made: Plan, folder: Folder) -> list[Part]:
    return [Part(shard.name, _reading(made, folder, shard)) for shard in made.shards]


def _reading(
    made: Plan, folder: Folder, shard: Shard
) -> Callable[[], list[tuple[str, str | None, float]]]:
    def read() -> list[tuple[str, str | None, float]]:
        data = folder.read(f"runs/{made.run}/{SHARDS}/{shard.name}")
        table = pq.read_table(io.BytesIO(data), use_threads=False)
        keys, scores = table["key"].to_pylist(), table["score"].to_pylist()
        labelled = "prediction" in table.column_names
        labels = table["prediction"].to_pylist() if labelled else [None] * len(keys)
        return list(zip(keys, labels, scores, strict=True))

    return read
