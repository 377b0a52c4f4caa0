"""`online edge`: publishes signed releases of a model to browsers and devices, step by step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from online.commands.base import Context, common, in_private, pick_model, span
from online.commands.publish.export import (
    ends_of,
    freshness,
    golden_rows,
    labels_outside,
    left_behind,
    restored,
    signing_key,
    targets_of,
)
from online.errors import ConfigError
from online.settings.config import Settings
from online.settings.model import ModelSettings

if TYPE_CHECKING:
    from online.edge.export import Asked, Exported
    from online.edge.releases.channel import Channel, Reports
    from online.edge.releases.folder import Folder
    from paramserver.core.state import SnapshotState
    from replay.example import Features

app = typer.Typer(
    help="Publish a model to browsers and devices, and withdraw it.", no_args_is_help=True
)

GOLDEN: Final = 24
"""Golden rows that devices verify before they use a release; the export itself verifies all."""

Keys = Annotated[
    Path | None,
    typer.Option("--keys", help="folder of the keys; default: edge-keys in the state folder"),
]
ValidDays = Annotated[
    float, typer.Option(help="days for which devices may use the manifest", min=0.0001, max=3650)
]


@app.command()
@common(model=False)
def keygen(
    context: Context,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="a new signing key, under the existing root key")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="with --rotate: existing keys stay valid")
    ] = False,
    new_root: Annotated[
        bool, typer.Option("--new-root", help="with --rotate: also a new root key")
    ] = False,
    keys: Keys = None,
    valid_days: ValidDays = 7.0,
) -> None:
    """Make the keys: root.pem signs the list of keys, signing.pem signs manifests.

    Devices contain the public root key.  Store root.pem elsewhere afterwards: it is needed again
    only for --rotate, which also signs published releases again.

    Example: online edge keygen

    Example: online edge keygen --rotate
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from online.edge.releases import roots

    settings = in_private(context.settings())
    place = _keys_place(settings, keys)
    chain_path = place / "roots.json"
    if chain_path.exists() != rotate:
        problem = "there are keys already" if not rotate else "there are no keys yet"
        remedy = "Make new ones: --rotate" if not rotate else "Make the first ones without --rotate"
        raise ConfigError("--keys", f"{place}: {problem}", remedy)
    signing = Ed25519PrivateKey.generate()
    if rotate:
        chain = chain_path.read_bytes()
        by = signing_key(place / "root.pem", "--keys")
        root = Ed25519PrivateKey.generate() if new_root else by
        old = roots.followed(chain).keys if keep else ()
        chain = roots.extended(chain, by, roots.spelled(root), (*old, roots.spelled(signing)), root)
    else:
        by = root = Ed25519PrivateKey.generate()
        chain = roots.extended(None, root, roots.spelled(root), (roots.spelled(signing),))
    made = {"signing.pem": signing} if root is by and rotate else {
        "root.pem": root, "signing.pem": signing
    }  # fmt: skip
    _write_keys(place, chain, made)
    signed = (
        [_sign_again(settings, place, m, valid_days) for m in settings.models] if rotate else []
    )
    followed = roots.followed(chain)
    summary: dict[str, Any] = {
        "version": followed.version, "root": followed.root, "keys": list(followed.keys),
        "place": str(place), "signed_again": [name for name in signed if name],
    }  # fmt: skip
    if context.as_json:
        print(json.dumps(summary))
        return
    print(f"keys in {place}; list {followed.version} of them, root key for devices:")
    print(followed.root)
    if summary["signed_again"]:
        print(f"signed again: {', '.join(summary['signed_again'])}")
    print("Take root.pem away: it is needed again for --rotate only.")


@app.command()
@common()
def publish(
    context: Context,
    snapshot: Annotated[
        str | None, typer.Argument(help="its name, or its file; default: the newest")
    ] = None,
    percent: Annotated[
        int, typer.Option(help="share of devices that get it at once", min=1, max=100)
    ] = 1,
    targets: Annotated[
        str,
        typer.Option(
            "--targets", help="of edgepack, edgepack64, onnx, onnx64, c99, tfjs, litert, coreml"
        ),
    ] = "edgepack",
    stream: Annotated[
        str | None,
        typer.Option(help="stream or table with golden rows; default: the journal's newest"),
    ] = None,
    steps: Annotated[
        bool,
        typer.Option("--steps", help="quantize weights: small deltas, scores off by up to .005"),
    ] = False,
    every: Annotated[
        float | None, typer.Option("--every", help="seconds: publish each newer snapshot", min=1)
    ] = None,
    keys: Keys = None,
    valid_days: ValidDays = 7.0,
) -> None:
    """Publish a snapshot as the next release: verified, signed, and for few devices at first.

    Devices that have one of the three previous releases get a delta.  The service need not run; if
    it does, it serves the release from now on.  Devices get a few golden rows, from the journal
    unless --stream names others.  With --steps the weights are multiples of a step, so that deltas
    are small; the manifest states the error.  With --every, a release that fails its check on
    devices is halted.

    Example: online edge publish --percent 100

    Example: online edge publish --percent 100 --every 60
    """
    wanted = targets_of(targets)
    if snapshot is not None and every is not None:
        raise ConfigError("--every", "a snapshot is named as well", "Leave one of the two out")
    from online.challenger.promotion import as_stored

    settings = as_stored(in_private(context.settings()))
    served = pick_model(settings, context.model)
    place = _keys_place(settings, keys)
    signing_key(place / "signing.pem", "--keys")
    last: Any = None
    while True:
        state, built = restored(settings, served, snapshot)
        if state.version != last:
            last = state.version
            rows = golden_rows(settings, served, stream)
            origin = "journal" if stream is None else "stream"
            golden = _golden(_folder(settings, served), origin)
            made = _exported(settings, served, state, built, rows, wanted, golden, steps=steps)
            channel, whole = _publish(settings, served, place, made, percent, valid_days)
            _print(channel, context.as_json, served.name)
            if not context.as_json:
                _print_left_out(made, whole)
        if every is None:
            return
        try:
            time.sleep(every)
        except KeyboardInterrupt:  # between two releases: there is nothing that it cuts off
            return
        _halt_if_bad(settings, served, place, valid_days, context.as_json)


def _print_left_out(made: Exported, whole: Mapping[int, str]) -> None:
    """Print the targets that were not made, and the releases from which there is no delta."""
    for name, reason in made.left_out.items():
        print(f"left out: {name}: {reason}")
    for sequence, reason in whole.items():
        print(f"no difference from release {sequence}: {reason}")


@app.command()
@common()
def promote(
    context: Context,
    to: Annotated[
        int | None, typer.Option("--to", help="percent; default: the next of 1, 10, 50, 100")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="even if its check failed on some devices")
    ] = False,
    keys: Keys = None,
    valid_days: ValidDays = 7.0,
) -> None:
    """Give the newest release to more devices.

    It is refused if devices report that the release failed its check there.  At 100 % it only signs
    the release with a new expiry: do so before it expires.

    Example: online edge promote
    """
    from online.edge.releases.channel import Reports

    def more(channel: Channel, reports: Reports) -> Channel:
        return channel.promoted(to, Reports() if force else reports)

    _change_share(context, more, keys, valid_days)


@app.command()
@common()
def halt(context: Context, keys: Keys = None, valid_days: ValidDays = 7.0) -> None:
    """Withdraw the newest release: devices return to the previous one.

    Example: online edge halt
    """
    _change_share(context, lambda channel, _: channel.stopped(), keys, valid_days)


@app.command()
@common()
def rollback(
    context: Context,
    to: Annotated[
        int | None, typer.Option("--to", help="sequence; default: the last release for all devices")
    ] = None,
    keys: Keys = None,
    valid_days: ValidDays = 7.0,
) -> None:
    """Publish an older release's weights again, with a higher sequence, for all devices.

    Example: online edge rollback --to 16
    """
    from online.edge.export import with_deltas

    settings = in_private(context.settings())
    served = pick_model(settings, context.model)
    place = _keys_place(settings, keys)
    folder = _folder(settings, served)

    def returned(channel: Channel) -> tuple[Channel, Mapping[str, bytes]]:
        old = channel.named(to)
        about, differences, _ = with_deltas(folder, channel, old.about, {})
        return channel.returned(about), differences

    _print(_change(folder, place, valid_days, returned), context.as_json, served.name)


@app.command()
@common()
def status(context: Context) -> None:
    """Show the release, its share of devices, and its expiry.

    Example: online edge status
    """
    settings = in_private(context.settings())
    served = pick_model(settings, context.model)
    folder = _folder(settings, served)
    channel = folder.channel()
    expires = lost = None
    if channel.releases:
        expires = json.loads(folder.head()[0])["expires"]
        lost = left_behind(settings, served, channel.newest.about)
    _print(channel, context.as_json, served.name, expires, folder.reports(channel.sequence), lost)


def _exported(
    settings: Settings, served: ModelSettings, state: SnapshotState, built: Any,
    rows: list[Features], targets: list[str], golden: Asked, *, steps: bool,
) -> Exported:  # fmt: skip
    from online.edge.export import Steps, export

    how_fresh = freshness(settings, served, state)
    folder = _folder(settings, served)
    return export(
        built,
        served.task,
        rows,
        about={"model": served.name, "freshness": how_fresh, **_learning(served)},
        shown=labels_outside(served),
        targets=targets,
        asked=golden,
        steps=Steps(folder.newest_pack()) if steps else None,
        ends=ends_of(served, state),
    )


def _golden(folder: Folder, origin: str) -> Asked:
    """The golden rows that devices have, if they may be reused; else new ones are made."""
    from online.edge.export import Asked

    features, held = folder.golden_rows(origin) or ((), ())
    return Asked(GOLDEN, origin, features, held)


def _learning(served: ModelSettings) -> dict[str, Any]:
    """Manifest entry about learning on devices, if the service accepts their deltas."""
    devices = served.devices
    return {} if devices is None else {"learn": {"rate": devices.rate, "clip": devices.clip}}


def _publish(
    settings: Settings, served: ModelSettings, place: Path, made: Exported, percent: int,
    valid_days: float,
) -> tuple[Channel, Mapping[int, str]]:  # fmt: skip
    """Add the release to the channel; also return the releases without a delta, and why."""
    from online.edge.export import with_deltas

    files = {sha256(data).hexdigest(): data for data in made.files.values()}
    folder = _folder(settings, served)
    whole: dict[int, str] = {}

    def published(channel: Channel) -> tuple[Channel, Mapping[str, bytes]]:
        about, differences, without = with_deltas(folder, channel, made.manifest, files)
        whole.update(without)
        about["freshness"] = {**about["freshness"], "rows_since": _rows_since(channel, about)}
        channel = channel.published(about, percent)
        named = channel.newest.files()
        every = files | differences
        return channel, {digest: data for digest, data in every.items() if digest in named}

    return _change(folder, place, valid_days, published), whole


def _rows_since(channel: Channel, about: Mapping[str, Any]) -> int:
    """Rows learned since the previous release; for the first one, all of them."""
    before = channel.releases[-1].about["freshness"]["events"] if channel.releases else 0
    return max(int(about["freshness"]["events"]) - int(before), 0)


def _change_share(
    context: Context,
    change: Callable[[Channel, Reports], Channel],
    keys: Path | None,
    valid_days: float,
) -> None:
    """Change the newest release's share of devices, and sign it."""
    settings = in_private(context.settings())
    served = pick_model(settings, context.model)
    folder, place = _folder(settings, served), _keys_place(settings, keys)
    channel = _change(
        folder, place, valid_days, lambda old: (change(old, folder.reports(old.sequence)), {})
    )
    _print(channel, context.as_json, served.name)


def _halt_if_bad(
    settings: Settings, served: ModelSettings, place: Path, valid_days: float, as_json: bool
) -> None:
    folder = _folder(settings, served)

    def stopped(channel: Channel) -> tuple[Channel, Mapping[str, bytes]]:
        bad = folder.reports(channel.sequence).bad is not None
        can = not channel.halted and channel.before is not None
        return channel.stopped() if bad and can else channel, {}

    channel = folder.channel()
    if stopped(channel)[0] is channel:  # without the lock: most often there is nothing to do
        return
    channel = _change(folder, place, valid_days, stopped)
    if channel.halted:  # it is not if another release has been published meanwhile
        _print(channel, as_json, served.name, None, folder.reports(channel.sequence))


def _sign_again(
    settings: Settings, place: Path, served: ModelSettings, valid_days: float
) -> str | None:
    """Sign the release with the present key; returns the model's name, or None without one."""
    folder = _folder(settings, served)
    if not folder.channel().releases:
        return None
    _change(folder, place, valid_days, lambda channel: (channel.again(), {}))
    return served.name


def _change(
    folder: Folder,
    place: Path,
    valid_days: float,
    change: Callable[[Channel], tuple[Channel, Mapping[str, bytes]]],
) -> Channel:
    """Change the channel, and sign it with the key at ``place``; all of it within the lock.

    Parameters:
        change: Returns the new channel, and the files to publish by hash.  The same channel:
            nothing is signed.
    """
    key = signing_key(place / "signing.pem", "--keys")
    with folder.locked():
        before = folder.channel()
        channel, files = change(before)
        if channel is not before:
            _publish_roots(folder, place)
            folder.publish(channel, channel.head(time.time(), valid_days * 86_400.0), key, files)
    return channel


def _keys_place(settings: Settings, keys: Path | None) -> Path:
    return keys or settings.state_dir / "edge-keys"


def _folder(settings: Settings, served: ModelSettings) -> Folder:
    from online.edge.releases.folder import Folder

    return Folder(settings.state_dir / "edge" / served.name)


def _write_keys(place: Path, chain: bytes, made: Mapping[str, Any]) -> None:
    from cryptography.hazmat.primitives import serialization as form

    from online.edge.releases.folder import write

    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, key in made.items():
        pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        write(place / f"{name}.new", pem, 0o600)
    write(place / "roots.json", chain)
    for name in made:  # if interrupted, all keys are there, under one of the two names
        (place / f"{name}.new").replace(place / name)


def _publish_roots(folder: Folder, place: Path) -> None:
    from online.edge.releases.folder import write

    write(folder.path / "roots.json", (place / "roots.json").read_bytes())


def _print(
    channel: Channel, as_json: bool, model: str, expires: float | None = None,
    reports: Reports | None = None, left_behind_by: str | None = None,
) -> None:  # fmt: skip
    before = channel.before
    summary: dict[str, Any] = {
        "model": model,
        "sequence": channel.sequence,
        "revision": channel.revision,
        "percent": channel.percent,
        "halted": channel.halted,
        "before": None if before is None else before.sequence,
        "kept": [release.sequence for release in channel.releases],
        "left_behind_by": left_behind_by,
    }
    summary |= {} if expires is None else {"expires": expires}
    summary |= {} if reports is None else {"reports": asdict(reports)}
    if as_json:
        print(json.dumps(summary))
        return
    if not channel.releases:
        print(f"model {model}: nothing is published. Publish it: online edge publish")
        return
    target = channel.newest.about["targets"]
    state = "halted: no device takes it" if channel.halted else f"{channel.percent} % of devices"
    print(f"model {model}: release {channel.sequence}.{channel.revision}, {state}")
    if left_behind_by is not None:
        print(f"  OLD: a {left_behind_by} came after it. Publish again: online edge publish")
    for name, one in target.items():
        sent = "".join(f", difference {delta['size']:,}" for delta in one.get("deltas", ()))
        print(f"  {name}: {one['size']:,} bytes{sent}")
    if reports is not None:
        print(
            f"  {reports.used:,} devices report that they use it, {reports.failed:,} that it failed"
        )
        if reports.compared:
            print(
                f"  on {reports.differing:,} of {reports.compared:,} devices that compared, labels "
                "differ from the service's"
            )
    if before is not None and channel.percent < 100:
        print(f"  others use release {before.sequence}")
    if expires is not None:
        left = expires - time.time()
        when = f"{datetime.fromtimestamp(expires, UTC):%Y-%m-%d %H:%M} UTC"
        print(f"  {'expires' if left > 0 else 'EXPIRED'} {when} ({span(abs(left))})")
