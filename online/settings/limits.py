"""The bounds of the whole service, as a part of its settings."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from online.settings.tokens import WEIGHT_MAX
from online.settings.tree import Tree

RETRY_WINDOW_S: Final = 86_400.0
"""Ids are kept this much longer than ``dedupe_window`` promises; no event may be further ahead."""


class Limits(Tree):
    """Bounds of the service.  At a bound new work is refused; accepted work is never dropped."""

    body_bytes_max: int = Field(1_048_576, ge=1_024, description="bytes per request body")
    rows_max: int = Field(1_000, ge=1, le=100_000, description="rows per request")
    actions_max: int = Field(256, ge=1, le=10_000, description="actions per choice")
    slots_max: int = Field(64, ge=1, le=10_000, description="slots per choice")
    products_max: int = Field(
        500_000, ge=1_000, description="products of features (interactions) per choice"
    )
    features_max: int = Field(4_096, ge=1, description="features per row")
    explain_max: int = Field(
        512, ge=8, description="predictions to explain one answer; two are needed per feature"
    )
    explain_s: float = Field(
        1, gt=0, description="time to explain one answer; learning pauses, predictions continue"
    )
    nearest_rows: int = Field(
        2_000, ge=1, le=100_000, description="newest rows that are searched for the nearest ones"
    )
    names_max: int = Field(
        100_000, ge=1, description="names of which a model keeps state: features, words, actions"
    )
    names_share: float = Field(
        0.5, gt=0, le=1, description="share of names_max that one source may use"
    )
    names_s: float = Field(
        5_000, gt=0, description="new names per second that a replica learns, all sources together"
    )
    classes_max: int = Field(256, ge=2, description="distinct labels of a model; more are refused")
    text_bytes_max: int = Field(1_024, ge=16, description="bytes of a feature's name or text value")
    token_bytes_max: int = Field(
        8_192, ge=256, description="bytes of a prediction's id; longer ones become stored joins"
    )
    clock_skew_s: float = Field(
        3_900, ge=0, description="how far an id's time may lie ahead of a clock that was set back"
    )
    joins_queue_max: int = Field(
        10_000,
        ge=1,
        description="predictions that wait to be written for a stored join; a source with a token "
        "may use at most half of the room that the others leave",
    )
    ongoing_max: int = Field(256, ge=2, description="requests that a replica processes at once")
    listeners_max: int = Field(
        64, ge=0, description="open pages to which a replica pushes changes; others poll"
    )
    report_wait_s: float = Field(
        60, gt=0, description="time to make a report that is requested over HTTP"
    )
    body_wait_s: float = Field(
        20, gt=0, description="time for a body to arrive, and for a response to be read"
    )
    upload_idle_s: float = Field(
        60, gt=0, description="an upload ends if no complete line arrives for this long"
    )
    uploads_share: float = Field(
        0.25, gt=0, le=1, description="share of the upload slots that one token may use"
    )
    queue_max: int = Field(
        10_000, ge=1, description="learn: background: rows of a replica that wait to be learned"
    )
    feedback_wait_s: float = Field(
        10, gt=0, description="time that feedback waits for its journal commit"
    )
    standstill_s: float | None = Field(
        10,
        ge=1,
        description="a process of the service that is stopped, or holds the journal and does not "
        "answer, is ended",
    )
    retain_mb: int = Field(64, ge=1, description="deltas kept until a snapshot includes them")
    disk_low_mb: int = Field(
        256, ge=0, description="free disk space, below it no feedback is taken"
    )
    adopt_s: float = Field(
        10, ge=1, description="a dead replica's rows are learned by others within this time"
    )
    journal_mb_max: int | None = Field(
        None, ge=1, description="size of the journal: its files, or the memory of the Redis server"
    )
    halves_max: int = Field(
        100_000, ge=1, description="predictions and labels of a model that wait for each other"
    )
    waiting_labels_max: int = Field(
        16, ge=1, le=1_000, description="labels from different sources that wait for one prediction"
    )
    banned_max: int = Field(1_000, ge=1, description="banned sources per model")
    sources_max: int = Field(
        100_000, ge=16, description="sources per model of which statistics are kept"
    )
    table_rows_max: int | None = Field(None, ge=1_000, description="rows of an embedding table")
    held_rows_max: int = Field(
        1_000_000,
        ge=1_000,
        description="rows that replicas with `cache.rows` hold, as recorded by the server; the "
        "replicas beyond receive all changed rows",
    )
    table_sights: int = Field(1, ge=1, le=100, description="pushes before a table's row is kept")
    shared_server_mb: float = Field(
        8, ge=0, description="models with no larger snapshot share a process of parameter servers"
    )
    audit_lines_max: int = Field(
        100_000, ge=100, description="lines of the audit log; it is trimmed at a tenth more"
    )
    root_rows_max: int = Field(1_000, ge=1, description="rows of a root set")
    weight_max: float = Field(
        2.0,
        ge=1,
        le=WEIGHT_MAX,
        description="largest weight of an event while filters are on; a token may have its own",
    )
