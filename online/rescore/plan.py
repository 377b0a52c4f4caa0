"""The plan of a run, which is written once so that a resumed run does the same."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from evaluation.metrics import Task
from online.rescore.scorer import Method
from online.tables.layout import Input, Layout, Shard

FORMAT: Final = 2


class Plan(msgspec.Struct, frozen=True):
    """Describes what one run scores, and with which model.

    Attributes:
        model, task, spec, version, snapshot: The model's name, its task, the hash of its spec, and
            the snapshot's version and name.
        classes: Names of the two labels of a binary task; () for the labels themselves.
        method: How rows are scored, see :mod:`online.rescore.scorer`.
        begun_at: POSIX seconds; the ``scored_at`` of every score.
        since, changed: An earlier run of the same shards, whose scores are reused for rows without
            any of these features (see :mod:`online.rescore.sparse`); "" for none.
        ends: By feature: lower and upper bound, and the values that replace numbers below and above
            (see :mod:`online.learning.bounds`).
        within: Range of valid scores.
    """

    format: int
    run: str
    model: str
    task: Task
    spec: str
    version: str
    snapshot: str
    classes: tuple[str | int | bool, ...]
    method: Method
    begun_at: float
    layout: Layout
    inputs: tuple[Input, ...]
    shards: tuple[Shard, ...]
    since: str = ""
    changed: tuple[str, ...] = ()
    ends: dict[str, tuple[float, float, float, float]] = {}
    within: tuple[float, float] = (0.0, 1.0)

    @property
    def rows(self) -> int:
        """Number of rows of all inputs."""
        return sum(one.rows for one in self.inputs)

    def file_of(self, shard: Shard) -> str:
        """Path of the shard's input file."""
        return self.inputs[shard.input].path


def asked(
    form: int, model: str, spec: str, snapshot: str, layout: Layout, inputs: tuple[Input, ...]
) -> str:
    """Hash of a run's inputs and model; equal for the same files and the same model."""
    files = [(one.place, one.path, one.size, one.changed_at) for one in inputs]
    parts = (form, model, spec, snapshot, layout, files)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def alike(a: Plan, b: Plan) -> bool:
    """Whether two plans score the same rows in the same shards alike, apart from the weights."""

    def parts(plan: Plan) -> tuple[object, ...]:
        shards = [msgspec.structs.replace(shard, sampled=()) for shard in plan.shards]
        about = (plan.format, plan.model, plan.task, plan.spec, plan.classes, plan.method)
        return (*about, plan.layout, plan.inputs, shards)

    return parts(a) == parts(b)


def encode(plan: Plan) -> bytes:
    """Encode the plan as JSON."""
    return msgspec.json.encode(plan)


def decode(data: bytes) -> Plan:
    """Decode a plan.  Raises msgspec.DecodeError."""
    return msgspec.json.decode(data, type=Plan)
