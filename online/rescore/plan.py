"""A plan says what a run is going to do; it is made once, so that a resumed run does the same."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from evaluation.metrics import Task
from online.rescore.scorer import Method
from online.tables.layout import Input, Layout, Shard

FORMAT: Final = 1


class Plan(msgspec.Struct, frozen=True):
    """A plan says what one run scores, and with which model.

    Attributes:
        model, task, spec, version, snapshot: What scores: the model's name, its task, the hash of
            its spec, version and name of the snapshot.
        classes: What the two labels of a binary task are called; () for their own names.
        method: How rows are scored, see :mod:`online.rescore.scorer`.
        begun_at: POSIX seconds; the ``scored_at`` of every score.
        since, changed: An earlier run of the same shards, whose scores stand for rows without any
            of these features (see :mod:`online.rescore.sparse`); "" for none.
        ends: By feature, least and greatest number that an answer takes as it is, and what it takes
            instead of one below and one above (see :mod:`online.learning.bounds`).
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
        """Rows of all inputs."""
        return sum(one.rows for one in self.inputs)

    def file_of(self, shard: Shard) -> str:
        """Path of the shard's input."""
        return self.inputs[shard.input].path


def asked(model: str, spec: str, snapshot: str, layout: Layout, inputs: tuple[Input, ...]) -> str:
    """Hash of what a run is asked to do: the same for the same files and the same model."""
    files = [(one.place, one.path, one.size, one.changed_at) for one in inputs]
    parts = (model, spec, snapshot, layout, files)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def alike(a: Plan, b: Plan) -> bool:
    """Whether they do the same with the same rows, in the same shards, but for the weights."""

    def parts(plan: Plan) -> tuple[object, ...]:
        shards = [msgspec.structs.replace(shard, sampled=()) for shard in plan.shards]
        about = (plan.format, plan.model, plan.task, plan.spec, plan.classes, plan.method)
        return (*about, plan.layout, plan.inputs, shards)

    return parts(a) == parts(b)


def encode(plan: Plan) -> bytes:
    """The plan as JSON."""
    return msgspec.json.encode(plan)


def decode(data: bytes) -> Plan:
    """The plan in a file.  msgspec.DecodeError if it is none."""
    return msgspec.json.decode(data, type=Plan)
