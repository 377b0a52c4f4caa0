"""`online export`: exports a snapshot as files for browsers and devices."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from online.commands.base import Context, common, console, pick_model, table
from online.errors import ConfigError, StartRefused
from online.settings.config import Settings, data_dir
from online.settings.model import ModelSettings
from refusals import reason

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from online.edge.export import Exported
    from paramserver.core.state import SnapshotState
    from replay.example import Features, Label
    from replay.journal.base import Row

_GOLDEN_ROWS = 128


@common()
def export(
    context: Context,
    snapshot: Annotated[
        str | None,
        typer.Argument(help="its name, from `snapshot list`, or its file; default: the newest"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="folder of the files")] = Path("edge"),
    targets: Annotated[
        str,
        typer.Option(
            "--targets",
            help="of edgepack, edgepack64, onnx, onnx64, c99, tfjs, litert, coreml; all: these. "
            "Only by name, because they are approximate: onnx16, onnx8 (fewer bits per weight). "
            "A model that chooses has one: choices",
        ),
    ] = "all",
    stream: Annotated[
        str | None,
        typer.Option(help="stream or table with golden rows; default: the journal's newest"),
    ] = None,
    sign: Annotated[
        Path | None, typer.Option("--sign", help="Ed25519 private key (PEM) for the manifest")
    ] = None,
    since: Annotated[
        Path | None, typer.Option("--since", help="an older edgepack: also write a delta from it")
    ] = None,
    valid_days: Annotated[
        float, typer.Option(help="days for which clients may use the manifest", min=0.01)
    ] = 7.0,
) -> None:
    """Export a snapshot as edgepack (browser, Node), ONNX and C99, each proved equivalent.

    Each file is run on rows of the journal and on generated edge cases, by its own runtime, and is
    written only if its predictions are the model's.  Works without a running service.

    Example: online export --state-dir ./state --out edge --targets edgepack,onnx

    Example: online export 3-120 --stream elec2 --sign key.pem --since edge/prices.edgepack
    """
    from online.challenger.promotion import as_stored
    from online.edge.export import with_delta

    key = None if sign is None else signing_key(sign)
    old = None if since is None else _read(since)
    settings = as_stored(context.settings())
    served = pick_model(settings, context.model)
    state, built = restored(settings, served, snapshot)
    rows = golden_rows(settings, served, stream)
    about = _about(settings, served, state, time.time(), valid_days)
    made = _made(served, state, built, rows, about, targets)
    if old is not None:
        made = with_delta(made, old)
    _write(out, made, key)
    _print(out, made, as_json=context.as_json)


def _made(
    served: ModelSettings,
    state: SnapshotState,
    built: Any,
    rows: Sequence[Features],
    about: Mapping[str, Any],
    targets: str,
) -> Exported:
    """Export the targets that an option names.  Raises ConfigError, EdgeError."""
    from online.edge import choices
    from online.edge.export import EXACT
    from online.edge.export import export as make
    from online.models.rewards import RewardModel

    ends = ends_of(served, state)
    if isinstance(built, RewardModel) and targets in ("all", choices.TARGET):
        return choices.export(built, ends, rows, about)
    return make(
        built,
        served.task,
        rows,
        about=about,
        shown=labels_outside(served),
        targets=list(EXACT) if targets == "all" else targets_of(targets),
        ends=ends,
    )


def targets_of(text: str) -> list[str]:
    """Parse the targets that an option names.  Raises ConfigError."""
    from online.edge.export import TARGETS

    wanted = [t.strip() for t in text.split(",")]
    if unknown := [t for t in wanted if t not in TARGETS]:
        raise ConfigError(
            "--targets", f"{unknown[0]!r} is not a target", f"Name some of: {', '.join(TARGETS)}"
        )
    return wanted


def _about(
    settings: Settings, served: ModelSettings, state: SnapshotState, now: float, valid_days: float
) -> dict[str, Any]:
    return {
        "model": served.name,
        "sequence": int(now * 1000),  # higher than before, even if old weights are published again
        "created": round(now, 3),
        "expires": round(now + valid_days * 86_400.0, 3),
        "freshness": freshness(settings, served, state),
    }


def freshness(settings: Settings, served: ModelSettings, state: SnapshotState) -> dict[str, Any]:
    """Return the manifest's entries about the snapshot's age and the model's quality.

    ``trained_through``: the newest contained row that the journal still has, and when it was
    received.  ``quality``: prequential accuracy (regression: mean error), and its number of rows.
    ``drift``: state of the stream, if it was monitored.
    """
    from evaluation.metrics import summarise
    from online.learning.counters import DIGEST, METRICS
    from online.watch.drift import STATES
    from paramserver.core.replicas import DRIFT

    values = state.values
    made: dict[str, Any] = {
        "version": list(state.version),
        "snapshot_at": round(state.created_at, 3),
        "spec": state.spec[:16],
        "rewrite": state.rewrite,
        "events": values[DIGEST].data["count"] if DIGEST in values else sum(state.clock.values()),
    }
    if (row := _newest(settings, served, state)) is not None:
        made["trained_through"] = {"event": f"{row.partition}:{row.offset}", "at": round(row.at, 3)}
    counters = values[METRICS].data if METRICS in values else {}
    name = served.purpose.metric
    if (score := summarise(served.task, counters)[name]) is not None:
        made["quality"] = {name: round(score, 4), "rows": int(counters["n"])}
    if (level := state.metrics.get(DRIFT)) is not None:
        made["drift"] = STATES[int(level)]
    return made


def left_behind(settings: Settings, served: ModelSettings, about: Mapping[str, Any]) -> str | None:
    """Name the newest rewrite that has undone rows which a release has learned; None without one.

    Also None if it is unknown: for releases of older versions, and without the journal.
    """
    from online.settings.places import open_journal
    from paramserver.core import rewrites

    fresh = about["freshness"]
    if "rewrite" not in fresh or not _has_journal(settings):
        return None
    partition, _, offset = fresh.get("trained_through", {}).get("event", "0:0").partition(":")
    newest = None
    with contextlib.closing(open_journal(settings)) as journal:
        for control in journal.controls(served.name, 0):
            if control.kind in rewrites.REWRITES and control.seq > fresh["rewrite"]:
                taken = rewrites.Undone(rewrites.note_of(control).taken())
                # A rollback to a snapshot after the release does not affect it.
                if control.kind != rewrites.ROLLBACK or taken.has(int(partition), int(offset)):
                    newest = control.kind
    return newest


def _has_journal(settings: Settings) -> bool:
    return settings.journal != "sqlite" or (settings.state_dir / "journal.db").exists()


def _newest(settings: Settings, served: ModelSettings, state: SnapshotState) -> Row | None:
    """The newest row that the snapshot has learned and the journal still has, or None."""
    from online.settings.places import open_journal

    if not _has_journal(settings):
        return None
    rows: list[Row] = []
    with contextlib.closing(open_journal(settings)) as journal:
        for part in journal.partitions(served.name):
            last = part.end if part.id in state.closed else state.clock.get(part.id, 0)
            rows += journal.read(part.id, last, 1) if last > part.trimmed else ()
    return max(rows, key=lambda row: row.seq, default=None)


def ends_of(
    served: ModelSettings, state: SnapshotState
) -> dict[str, tuple[float, float, float, float]]:
    """Return by feature the bounds to which the service clips numbers: see ``Bounds.ends``."""
    from online.learning.bounds import Bounds

    bounds = Bounds.of(state.values, on=served.filters != "none")
    return bounds.ends(bounds.names)


def restored(
    settings: Settings, served: ModelSettings, snapshot: str | None
) -> tuple[SnapshotState, Any]:
    """Load the snapshot; return it, and the model with its state."""
    from online.models.loading.from_settings import load_model
    from online.rows.prediction_ids import Keys
    from online.settings.places import snapshots_of, snapshots_path
    from online.settings.whole import cut_of
    from paramserver.snapshots.chain import read, read_file
    from paramserver.snapshots.history import parse_name
    from paramserver.snapshots.places import lineage_place

    if not settings.key_path.exists():
        raise StartRefused(
            f"{settings.key_path} is missing: no service has run on {settings.state_dir}",
            "Name the service's folder with --state-dir",
        )
    keys = Keys.from_file(settings.key_path)
    loaded = load_model(served, settings, keys.secret, keys.old_secrets)
    if served.shards > 1:
        _, state = cut_of(settings, served, loaded.spec_hash, snapshot)
    elif snapshot is not None and Path(snapshot).is_file():
        state = read_file(Path(snapshot))
    else:
        stored = snapshots_of(settings, served.name, loaded.spec_hash)
        name = snapshot and Path(snapshot).name.removesuffix(".snapshot")
        versions = {n: parsed[0] for n in stored.names() if (parsed := parse_name(n))}
        if name is None and not versions:
            place = lineage_place(snapshots_path(settings), served.name, loaded.spec_hash)
            raise StartRefused(
                f"model {served.name} has no snapshot in {place}",
                "Publish one: online snapshot create; or name the state folder with --state-dir",
            )
        state = read(stored, name or max(versions, key=versions.__getitem__))
    if state.spec != loaded.spec_hash:
        raise StartRefused(
            f"the snapshot is of another spec of model {state.model} ({state.spec[:16]})",
            "Export it with the settings that it was learned with",
        )
    loaded.model.reset(state.values)
    return state, loaded.model


def golden_rows(settings: Settings, served: ModelSettings, stream: str | None) -> list[Features]:
    """Rows of the stream, or the journal's newest rows; empty if there is no journal."""
    if stream is not None:
        from online.tables.streams import stream_of

        opened = stream_of(stream, data_dir(), task=served.task)
        return [x for x, _ in islice(opened.rows, _GOLDEN_ROWS)]
    from online.settings.places import open_journal
    from replay import codec

    if not _has_journal(settings):
        return []
    rows: list[tuple[int, Features]] = []
    with contextlib.closing(open_journal(settings)) as journal:
        parts = sorted(journal.partitions(served.name), key=lambda p: -p.id)
        for part in parts:
            first = max(part.trimmed + 1, part.end - _GOLDEN_ROWS + 1)
            for row in journal.read(part.id, first, part.end - first + 1):
                if row.verdict in ("accepted", "clipped") and not codec.is_erased(row.payload):
                    example = codec.decode(row.payload)
                    rows += [(row.seq, example.features)] if example.moved is None else []
            if len(rows) >= _GOLDEN_ROWS:
                break
    newest = sorted(rows, key=lambda row: row[0])[-_GOLDEN_ROWS:]
    return [features for _, features in newest]


def labels_outside(served: ModelSettings) -> dict[Label, Label]:
    """Map from the model's labels to the labels that callers use."""
    if served.task != "binary" or served.classes is None:
        return {}
    return {False: served.classes["negative"], True: served.classes["positive"]}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError("--since", f"{path}: {error.strerror}", "Name an edgepack") from None


def signing_key(path: Path, option: str = "--sign") -> Ed25519PrivateKey:
    """Load the private key from a PEM file.  Raises ConfigError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    remedy = "Make one: online edge keygen"
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(option, f"{path}: {reason(error)}", remedy) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(option, f"{path} holds another kind of key", remedy)
    return key


def _write(out: Path, made: Exported, key: Ed25519PrivateKey | None) -> None:
    """Write the files, the manifest last, because clients find the others through it."""
    from online.edge import manifest
    from online.edge.releases import folder

    files = dict(made.files)
    files["manifest.json"] = manifest.canonical(made.manifest)
    if key is not None:
        files["manifest.json"], files["manifest.sig"] = manifest.sign(made.manifest, key)
    for name in sorted(files, key=lambda n: n.startswith("manifest")):
        folder.write(out / name, files[name])


def _print(out: Path, made: Exported, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"manifest": made.manifest, "left_out": made.left_out}))
        return
    rows = table("target", "file", "bytes", "golden rows", "largest difference")
    for name, target in made.manifest["targets"].items():
        parity = target["parity"]
        cells: Sequence[str] = (
            name, target["file"], f"{target['size']:,}", str(parity["rows"]),
            f"{parity['max_abs']:.1e}",
        )  # fmt: skip
        rows.add_row(*cells)
    console().print(rows)
    print(f"in {out}, with manifest.json and golden rows")
    for name, why in made.left_out.items():
        print(f"left out: {name}: {why}")
