"""Publishing for devices: keys, releases in steps, the folder, and what is served of it."""

from __future__ import annotations

import contextlib
import json
import re
import stat
from itertools import islice
from pathlib import Path
from typing import Any, Final

import edge_world as worlds
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from edge_world import Asked
from typer.testing import CliRunner

from evaluation.streams import open_stream
from online.commands.base import load_settings
from online.commands.cli import app
from online.commands.publish import edge, export
from online.edge import manifest
from online.edge.errors import ManifestRefused, PublishRefused
from online.edge.releases import folder, roots
from online.edge.releases.channel import KEEP, Channel, Reports
from online.edge.releases.folder import Folder
from online.edge.targets import deltas
from online.errors import ConfigError
from online.models.loading.from_settings import load_model
from online.rows.prediction_ids import Keys
from online.settings import config
from online.settings.places import open_journal, snapshots_path
from paramserver.core.state import SnapshotState
from paramserver.snapshots.format import encode
from paramserver.snapshots.places import lineage_place, open_snapshots
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict

NOW: Final = 1_800_000_000.0
DOC: Final[dict[str, Any]] = {"spec": 1, "targets": {}}

# -- the commands ----------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder as a service leaves it, with three snapshots: 1-1, 1-2 and 1-3."""
    (tmp_path / "online.yaml").write_text(
        "models:\n- {name: mails, task: binary, learner: logreg}\n"
    )
    settings = config.load(tmp_path / "online.yaml", {"state_dir": tmp_path / "state"}, {})
    keys = Keys.from_file(settings.key_path)
    for count in (1, 2, 3):
        loaded = load_model(settings.models[0], settings, keys.secret, keys.old_secrets)
        place = lineage_place(snapshots_path(settings), "mails", loaded.spec_hash)
        for x, y in islice(open_stream("phishing").rows, 200 * count):
            loaded.model.learn(x, y, 1.0)
        held = SnapshotState(
            "mails", loaded.spec_hash, loaded.spec_text, (1, count), loaded.model.cut(),
            {1: count * 200}, created_at=NOW,
        )  # fmt: skip
        open_snapshots(place).publish(f"1-{count}", encode(held))
    return tmp_path


def run(state: Path, *words: str) -> Any:
    where = ["--config", str(state / "online.yaml"), "--state-dir", str(state / "state")]
    done = CliRunner().invoke(app, ["edge", *words, *where, "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def head(state: Path, sequence: int = 0, revision: int = 0) -> dict[str, Any]:
    """The manifest, as a device checks it."""
    place = Folder(state / "state" / "edge" / "mails")
    data, signature = place.head()
    newest = roots.followed((place.path / "roots.json").read_bytes())
    for key in newest.keys:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        try:
            return manifest.verify(
                data, signature, public, now=NOW / 1e3, model="mails", sequence=sequence,
                revision=revision,
            )  # fmt: skip
        except ManifestRefused as error:
            refused = error
    raise refused


def test_the_life_of_a_release(state: Path) -> None:
    made = run(state, "keygen")
    place = state / "state" / "edge-keys"
    for name in ("root.pem", "signing.pem"):
        assert stat.S_IMODE((place / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    with pytest.raises(ConfigError, match="there are keys already"):
        run(state, "keygen")

    first = run(state, "publish", "1-1", "--percent", "100")
    assert (first["sequence"], first["percent"], first["before"]) == (1, 100, None)
    second = run(state, "publish", "1-2")
    assert (second["sequence"], second["percent"], second["before"]) == (2, 1, 1)
    told = head(state)
    assert told["freshness"]["version"] == [1, 2]
    assert told["cohort"] == {"percent": 1}
    assert told["before"]["sequence"] == 1
    assert len(manifest.canonical(told)) <= 1536
    published = Folder(state / "state" / "edge" / "mails")
    target, (delta,) = told["targets"]["edgepack"], told["targets"]["edgepack"]["deltas"]
    before = json.loads(published.file(told["before"]["sha256"]))["targets"]["edgepack"]
    assert delta["from_sha256"] == before["sha256"]
    assert deltas.apply(published.file(before["sha256"]), published.file(delta["sha256"])) == (
        published.file(target["sha256"])
    )
    golden = json.loads(published.file(target["parity"]["sha256"]))
    assert len(golden["rows"]) == 24 < target["parity"]["rows"], "devices ask some of them"

    assert [run(state, "promote")["percent"] for _ in range(4)] == [10, 50, 100, 100]
    assert "before" not in head(state, 2, 4)
    with pytest.raises(ManifestRefused, match="older"):
        head(state, 2, 5)
    assert run(state, "halt")["before"] == 1
    assert head(state)["cohort"] == {"percent": 0, "halted": True}
    with pytest.raises(PublishRefused, match="halted"):
        run(state, "promote")

    third = run(state, "publish", "1-3")
    assert (third["sequence"], third["before"], third["halted"]) == (3, 1, False)
    back = run(state, "rollback", "--to", "2")
    assert (back["sequence"], back["percent"]) == (4, 100)
    again = head(state)
    assert again["targets"]["edgepack"]["sha256"] == target["sha256"], "the old weights"
    assert len(again["targets"]["edgepack"]["deltas"]) == 2, "from the third and the first"
    assert run(state, "status")["kept"] == [1, 2, 3, 4]

    rotated = run(state, "keygen", "--rotate")
    assert (rotated["version"], rotated["root"]) == (2, made["root"])
    assert rotated["signed_again"] == ["mails"]
    assert not set(rotated["keys"]) & set(made["keys"])
    assert head(state, 4, 1)["sequence"] == 4, "signed by the new key"
    both = run(state, "keygen", "--rotate", "--keep", "--new-root")
    assert len(both["keys"]) == 2
    assert both["root"] != made["root"]
    assert head(state)["revision"] == 2
    here = str(state).encode()
    assert not any(
        here in file.read_bytes() for file in published.path.rglob("*") if file.is_file()
    )


def test_a_rotation_that_stops_half_way_leaves_the_old_keys(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(state, "keygen")
    run(state, "publish")
    whole = folder.write

    def stops(path: Path, data: bytes, mode: int = 0o644) -> None:
        if path.name == "roots.json":
            raise OSError("no space left")
        whole(path, data, mode)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write", stops)
        with pytest.raises(OSError, match="space"):
            run(state, "keygen", "--rotate", "--new-root")
    run(state, "promote")
    assert head(state)["revision"] == 1, "signed by the key that devices know"
    assert run(state, "keygen", "--rotate")["root"] == made["root"]
    assert head(state)["revision"] == 2


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["publish"], "signing.pem"),
        (["publish", "--targets", "floppy"], "'floppy' is not a target"),
        (["keygen", "--rotate"], "there are no keys yet"),
    ],
)
def test_without_keys_nothing_is_published(state: Path, words: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(why)):
        run(state, *words)
    assert not (state / "state" / "edge").exists()
    assert run(state, "status")["sequence"] == 0


# -- the rules -------------------------------------------------------------------------------------


def test_what_a_channel_refuses() -> None:
    empty = Channel()
    for refused in (
        lambda: empty.promoted(None, Reports()),
        empty.stopped,
        lambda: empty.head(NOW, 1.0),
    ):
        with pytest.raises(PublishRefused, match="nothing is published"):
            refused()
    one = empty.published(DOC, 10)
    with pytest.raises(PublishRefused, match="no release before"):
        one.stopped()
    with pytest.raises(PublishRefused, match="not back to 1 %"):
        one.promoted(1, Reports())
    for to in (None, 1, 7):
        with pytest.raises(PublishRefused, match="is kept"):
            one.named(to)
    two = one.promoted(100, Reports()).published(DOC, 1)
    assert two.stopped().before == two.releases[0]
    back = two.promoted(100, Reports()).returned(two.named(None).about)
    assert (back.sequence, back.before) == (3, two.releases[0]), "nobody comes back to the second"
    assert two.published(DOC, 1).before == two.releases[0], "not one that was for few"


def test_heads_only_ever_go_up() -> None:
    channel = Channel().published(DOC, 100)
    pairs = []
    for change in (
        lambda c: c.published(DOC, 1), lambda c: c.promoted(None, Reports()), lambda c: c.stopped(),
        lambda c: c.again(), lambda c: c.published(DOC, 50), lambda c: c.promoted(100, Reports()),
        lambda c: c.stopped(), lambda c: c.published(DOC, 100),
    ):  # fmt: skip
        channel = change(channel)
        made = channel.head(NOW, 60.0)
        pairs.append((made["sequence"], made["revision"]))
        assert made["expires"] == NOW + 60
    assert pairs == sorted(set(pairs))


def test_old_files_go_and_the_one_that_is_used_stays(tmp_path: Path) -> None:
    world = worlds.World(tmp_path)
    world.publish(0, NOW)
    stable = world.folder.channel().newest
    for seed in range(1, 13):
        world.publish(seed, NOW, percent=1)
    channel = world.folder.channel()
    assert len(channel.releases) == KEEP
    assert channel.before == stable
    named = set().union(*(release.files() for release in channel.releases))
    assert {f.name for f in (world.folder.path / "files").iterdir()} == named


def test_two_publishers_at_once(tmp_path: Path) -> None:
    one, other = Folder(tmp_path / "m"), Folder(tmp_path / "m")
    with one.locked(), pytest.raises(PublishRefused, match="another command"), other.locked():
        pass
    with other.locked():
        pass


def test_a_stop_between_channel_and_head_never_uses_a_sequence_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = worlds.World(tmp_path)
    world.publish(1, NOW)
    whole = folder.write

    def stops(path: Path, data: bytes, mode: int = 0o644) -> None:
        if path.name == "head":
            raise OSError("no space left")
        whole(path, data, mode)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write", stops)
        with pytest.raises(OSError, match="space"):
            world.publish(2, NOW)
    assert json.loads(world.folder.head()[0])["sequence"] == 1, "the old one works"
    world.publish(2, NOW)
    assert json.loads(world.folder.head()[0])["sequence"] == 3


def test_a_file_that_is_too_long_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "FILE_BYTES_MAX", 100)
    with pytest.raises(PublishRefused, match="at most 100"):
        worlds.World(tmp_path).publish(1, NOW)


def test_a_list_of_keys_that_is_forged_or_out_of_order_is_refused() -> None:
    first, second, stranger = worlds.key(1), worlds.key(2), worlds.key(3)
    keys = (roots.spelled(second),)
    chain = roots.extended(None, first, roots.spelled(first), keys)
    with pytest.raises(ManifestRefused, match="the root key is"):
        roots.extended(chain, stranger, roots.spelled(stranger), keys)
    moved = roots.extended(chain, first, roots.spelled(second), keys, second)
    assert roots.followed(moved) == roots.Root(2, roots.spelled(second), keys)
    entries = json.loads(moved)
    alone = roots.extended(None, stranger, roots.spelled(stranger), keys)
    for bad in (entries[1:], [entries[0], entries[0]], [*json.loads(alone), entries[1]], []):
        with pytest.raises(ManifestRefused):
            roots.followed(json.dumps(bad).encode())
    entries[1]["signatures"][0] = stranger.sign(entries[1]["signed"].encode()).hex()
    with pytest.raises(ManifestRefused, match="is not signed"):
        roots.followed(json.dumps(entries).encode())


# -- what devices report ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "failed", "bad"), [(0, 2, False), (0, 3, True), (57, 3, False), (56, 3, True)]
)
def test_a_release_is_bad_when_enough_devices_say_so(used: int, failed: int, bad: bool) -> None:
    reports = Reports(used, failed)
    assert (reports.bad is not None) == bad
    channel = Channel().published(DOC, 1)
    if bad:
        with pytest.raises(PublishRefused, match=f"on {failed} devices"):
            channel.promoted(None, reports)
    else:
        assert channel.promoted(None, reports).percent == 10


def test_each_device_counts_once_and_for_the_newest_release_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = worlds.World(tmp_path)
    asked = Asked(tmp_path)

    def say(device: str, outcome: str, sequence: int = 2) -> Any:
        body = {"sequence": sequence, "device": device, "outcome": outcome}
        answer = asked.post("/v1/models/m/edge/reports", body)
        return answer.json().get("counted", answer.status_code)

    assert say("a", "used", 1) is False, "nothing is published"
    world.publish(1, NOW)
    world.publish(2, NOW, percent=1)
    assert [say("a", "failed"), say("a", "used"), say("b", "failed")] == [True] * 3
    assert (say("c", "used", 1), say("c", "used", 3)) == (False, False)
    for device in ("", "x" * 65, "a b", "../a"):
        assert say(device, "used") == 422
    assert say("d", "anything") == 422
    assert world.folder.reports(2) == Reports(used=1, failed=1)
    assert world.folder.reports(1) == Reports()
    monkeypatch.setattr(folder, "REPORTS_BYTES_MAX", 50)
    assert say("e", "used") is False, "there is a bound"
    for seed in range(KEEP):
        world.publish(seed, NOW)
    assert world.folder.reports(2) == Reports(), "they go with their release"


def test_a_release_that_fails_on_devices_is_halted(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(state, "keygen")
    run(state, "publish", "1-1", "--percent", "100")
    published = Folder(state / "state" / "edge" / "mails")
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            raise KeyboardInterrupt
        for device in "abc":
            published.report(2, device, "failed")

    monkeypatch.setattr(edge.time, "sleep", sleep)
    where = ["--config", str(state / "online.yaml"), "--state-dir", str(state / "state")]
    done = CliRunner().invoke(app, ["edge", "publish", "--every", "9", "--json", *where])
    assert done.exit_code == 0, done.output
    first, second = map(json.loads, done.output.splitlines())
    assert (first["sequence"], first["percent"], first["halted"]) == (2, 1, False)
    assert (second["percent"], second["halted"]) == (0, True)
    assert slept == [9, 9]
    assert head(state)["cohort"] == {"percent": 0, "halted": True}
    told = {"used": 0, "failed": 3, "compared": 0, "differing": 0}
    assert run(state, "status")["reports"] == told


def test_a_release_that_comes_while_another_is_found_bad_is_not_halted(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(state, "keygen")
    run(state, "publish", "1-1", "--percent", "100")
    run(state, "publish", "1-1")
    for device in "abc":
        Folder(state / "state" / "edge" / "mails").report(2, device, "failed")
    locked = Folder.locked

    def later(self: Folder) -> Any:
        monkeypatch.setattr(Folder, "locked", locked)
        run(state, "publish", "1-1")  # another command, just before the lock is taken
        return locked(self)

    monkeypatch.setattr(Folder, "locked", later)
    settings = load_settings(state / "online.yaml", state_dir=state / "state")
    edge._halt_if_bad(settings, settings.models[0], state / "state" / "edge-keys", 7.0, True)
    assert (head(state)["sequence"], head(state)["cohort"]) == (3, {"percent": 1})


def test_a_half_written_report_hinders_nobody(state: Path) -> None:
    run(state, "keygen")
    run(state, "publish", "1-1", "--percent", "100")
    run(state, "publish", "1-1")
    published = Folder(state / "state" / "edge" / "mails")
    assert published.report(2, "a", "failed")
    with (published.path / "reports" / "2").open("ab") as file:
        file.write(b'["b", "us')  # the disk was full
    assert published.reports(2) == Reports(0, 1)
    assert run(state, "halt")["halted"]


def test_a_publication_that_is_cut_off_is_not_called_good(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(state, "keygen")

    def cut_off(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(edge, "restored", cut_off)
    where = ["--config", str(state / "online.yaml"), "--state-dir", str(state / "state")]
    done = CliRunner().invoke(app, ["edge", "publish", *where])
    assert done.exit_code == 130, done.output


def test_golden_rows_are_the_newest_of_all_partitions(state: Path) -> None:
    settings = load_settings(state / "online.yaml", state_dir=state / "state")
    with contextlib.closing(open_journal(settings)) as journal:
        for n in (export._GOLDEN_ROWS, 5):  # the later writer has only a few
            partition = journal.register("mails", f"r{n}", "s" * 64, 0.0)
            rows = [
                NewRow(
                    f"{n}:{i}".encode().ljust(16, b"."), f"{n}:{i}", "s", Verdict.ACCEPTED,
                    codec.encode(Example({"of": float(n)}, True)), 1.0,
                )
                for i in range(n)
            ]  # fmt: skip
            journal.append(partition.id, 0, rows)
    found = export.golden_rows(settings, settings.models[0], None)
    assert [row["of"] for row in found[-6:]] == [128.0, 5.0, 5.0, 5.0, 5.0, 5.0]
    assert len(found) == export._GOLDEN_ROWS


def test_a_release_that_fails_is_promoted_by_force_only(state: Path) -> None:
    run(state, "keygen")
    run(state, "publish")
    for device in "abc":
        Folder(state / "state" / "edge" / "mails").report(1, device, "failed")
    with pytest.raises(PublishRefused, match="--force"):
        run(state, "promote")
    assert run(state, "promote", "--force")["percent"] == 10
