"""Searches for triggers in a model's journal and newest snapshot, in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import ray

from online.models.loading.from_settings import load_model
from online.rows.history import Decisions
from online.rows.in_order import rows_after
from online.rows.prediction_ids import Keys
from online.service.parts.command_settings import settings_file, without_settings
from online.service.processes import begun
from online.settings.config import Settings
from online.settings.glimpse import environment
from online.settings.model import ModelSettings
from online.settings.places import open_journal
from online.trust.triggers import LearnedRow, Search, Trigger
from replay import codec
from replay.errors import PayloadFormat, PayloadInvalid
from replay.journal.base import Journal

_FORGET_S: Final = 3_600.0


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Result of a search for triggers.

    Attributes:
        rows, sources: Numbers of rows and of sources that were examined.
        triggers: The triggers that were found.
        forgotten: Sources that were forgotten because of them.
        problem: Why a source could not be forgotten; None if all were.
    """

    rows: int
    sources: int
    triggers: tuple[Trigger, ...]
    forgotten: tuple[str, ...] = ()
    problem: str | None = None


def look(settings: Settings, model: ModelSettings, rows_max: int) -> SearchResult:
    """Search the newest rows for triggers that work on the model of the newest snapshot.

    Raises:
        StartRefused: There is no snapshot.
        SnapshotMissing, SnapshotCorrupt, LearnerUnusable: The snapshot can't be used.
    """
    from online.rescore.snapshot import scored  # needs pyarrow, which serving does not

    made = scored(model, settings)
    keys = Keys.from_file(settings.key_path)
    loaded = load_model(model, settings, keys.secret, keys.old_secrets)
    with contextlib.closing(open_journal(settings)) as journal:
        decisions = Decisions(made.spec)
        decisions.read(journal, model.name)
        rows = list(learned_rows(journal, model.name, decisions, rows_max))
    triggers = Search(rows, made.make(), loaded.build).triggers()
    return SearchResult(len(rows), len({row.source for row in rows}), tuple(triggers))


def learned_rows(
    journal: Journal, model: str, decisions: Decisions, rows_max: int
) -> Iterator[LearnedRow]:
    """Yield those of the newest ``rows_max`` rows of the journal that the model has learned."""
    newest = journal.follow(model, 2**62, 1).upto
    low, reach = 0, rows_max
    while reach < newest:  # rows of other models lie between
        low = newest - reach
        page = journal.follow(model, low, rows_max)
        if len(page.rows) == rows_max:
            break
        low, reach = 0, reach * 4
    for row in rows_after(journal, model, low):
        if not (row.source and decisions.learned(row)):
            continue
        with contextlib.suppress(PayloadFormat, PayloadInvalid):
            example = codec.decode(row.payload)
            if example.scored:
                yield LearnedRow(row.source, example.features, example.label)


def search_task(data: dict[str, Any], model: str) -> Any:
    """Start a search as a Ray task; returns the reference of its :class:`SearchResult`.

    The task ends with this process.  With ``triggers.on_trigger: forget`` it forgets the sources.
    """
    return ray.remote(_looked).options(num_cpus=0, max_retries=0).remote(data, model)


def _looked(data: dict[str, Any], name: str) -> SearchResult:
    settings, model = begun(data, name)
    looked = look(settings, model, model.triggers.rows)
    if model.triggers.on_trigger != "forget" or not looked.triggers:
        return looked
    return forgotten(settings, name, looked)


def forgotten(settings: Settings, model: str, looked: SearchResult) -> SearchResult:
    """Forget each named source in turn by ``online forget``."""
    done: list[str] = []
    problem = None
    names = dict.fromkeys(source for trigger in looked.triggers for source in trigger.sources)
    with settings_file(settings, "forget-") as file:
        for source in names:
            problem = _forget(file, model, source)
            if problem is not None:
                break
            done.append(source)
    return SearchResult(looked.rows, looked.sources, looked.triggers, tuple(done), problem)


def _forget(file: Path, model: str, source: str) -> str | None:
    """Forget one source; returns the reason for a failure, else None."""
    command = [sys.executable, "-m", "online", "forget", "--yes", "--json", f"--source={source}"]
    command += [f"--model={model}", f"--config={file}"]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=_FORGET_S, check=False,
            env=without_settings(environment()),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"online forget --source {source} took more than {_FORGET_S:.0f} s"
    if ended.returncode:
        return ended.stderr.strip()[-500:] or f"online forget ended with {ended.returncode}"
    return None


def plain_data(triggers: Sequence[Trigger]) -> list[dict[str, Any]]:
    """The triggers as plain data, with a text for operators."""
    return [{**msgspec.to_builtins(trigger), "text": str(trigger)} for trigger in triggers]
