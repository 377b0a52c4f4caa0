"""What a device believes: the attacks on updates, refused by the client's own code in Node.

Each attack has its negative control: the same client without the rule, which falls for it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import edge_world as worlds
import pytest

from online.edge import manifest
from online.edge.releases import roots
from online.edge.releases.channel import Reports, bucket
from online.http.routes.edge import shipped, shortened

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


NOW: Final = 1_800_000_000.0
ENDLESS: Final = b"endless"
CHUNK: Final = 65_536
CHUNKS: Final = 200

Served = Mapping[str, bytes]
Step = tuple[Served, float, str]

ASK: Final = """
import { readFileSync } from "node:fs";
import { able, bucket, follow, read, Refused } from "./trust.mjs";
const { steps, root, devices } = JSON.parse(readFileSync("plan.json"));
let held = { packs: [], root }, pulled = 0;
const out = [];
function body(bytes) {
  if (bytes.toString() !== "endless") return bytes;
  let left = CHUNKS;
  return new ReadableStream({
    pull(to) {
      if (!left--) return to.close();
      pulled += CHUNK;
      to.enqueue(new Uint8Array(CHUNK));
    },
  });
}
for (const { served, now, device } of steps) {
  pulled = 0;
  const asked = [];
  const get = async (path, most) => {
    asked.push(path);
    if (!(path in served)) throw new Refused("http", path);
    return read(new Response(body(Buffer.from(served[path], "base64"))), most);
  };
  try {
    held = await follow(get, held, { model: "m", device, now });
    const how = held.same ? "same" : held.how;
    out.push({ sequence: held.release.sequence, how, took: held.took });
  } catch (error) {
    if (error.seen) held = error.seen;
    out.push({ refused: error.code ?? String(error), failed: error.sequence });
  }
  Object.assign(out[out.length - 1], { pulled, asked, packs: held.packs.length });
}
const places = [];
for (const device of devices) places.push(await bucket(device, 7));
console.log(JSON.stringify({ out, places, able: await able() }));
""".replace("CHUNKS", str(CHUNKS)).replace("CHUNK", str(CHUNK))


def run(
    folder: Path, steps: Sequence[Step], *, mutant: tuple[str, str] | None = None,
    root: str | None = None, devices: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """What the client does with each step, one after the other."""
    source = (files("online.edge") / "trust.js").read_text().replace('"./edge.js"', '"./edge.mjs"')
    if mutant is not None:
        rule, without = mutant
        assert source.count(rule) == 1, rule
        source = source.replace(rule, without)
    folder.mkdir(exist_ok=True)
    (folder / "trust.mjs").write_text(shortened(source))
    (folder / "edge.mjs").write_bytes(shipped("edge.js"))
    (folder / "ask.mjs").write_text(ASK)
    plan = {
        "steps": [
            {
                "served": {path: b64encode(data).decode() for path, data in served.items()},
                "now": now,
                "device": device,
            }
            for served, now, device in steps
        ],
        "root": None if root is None else {"root": root},
        "devices": list(devices),
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    node = shutil.which("node")
    assert node is not None
    done = subprocess.run(
        [node, "--no-warnings", "ask.mjs"], cwd=folder, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture
def world(tmp_path: Path) -> Any:
    return worlds.World(tmp_path / "edge")


def step(served: Served, now: float = NOW + 10, device: str = "device-1") -> Step:
    return served, now, device


def resigned(world: Any, served: Served, **changes: Any) -> Served:
    """The head with other fields, signed by the world's key."""
    made = {**json.loads(served["manifest.json"]), **changes}
    data, signature = manifest.sign(made, world.signing)
    return {**served, "manifest.json": data, "manifest.sig": signature}


def attack_rollback(world: Any) -> list[Step]:
    world.publish(1, NOW)
    old = world.served()
    world.publish(2, NOW)
    return [step(world.served()), step(old)]


def attack_rollback_of_a_halt(world: Any) -> list[Step]:
    world.publish(1, NOW)
    world.publish(2, NOW)
    bad = world.served()
    world.change(lambda channel: channel.stopped(), NOW)
    return [step(world.served()), step(bad)]


def attack_rollback_after_a_lost_download(world: Any) -> list[Step]:
    """The new head was seen, its files did not come: going back is refused all the same."""
    world.publish(1, NOW)
    old = world.served()
    world.publish(2, NOW)
    cut = {path: data for path, data in world.served().items() if not path.startswith("files/")}
    return [step(cut), step(old)]


def attack_freeze(world: Any) -> list[Step]:
    world.publish(1, NOW)
    return [step(world.served()), step(world.served(), NOW + 2 * worlds.DAY_S)]


def attack_mix_and_match(world: Any) -> list[Step]:
    """The newest head with a pack of the release before, of the same length."""
    world.publish(1, NOW)
    old = json.loads(world.served()["manifest.json"])["targets"]["edgepack"]["sha256"]
    world.publish(2, NOW)
    served = world.served()
    new = json.loads(served["manifest.json"])["targets"]["edgepack"]["sha256"]
    return [step({**served, f"files/{new}": served[f"files/{old}"]})]


def attack_wrong_target(world: Any) -> list[Step]:
    """Another model's head, signed by the same key."""
    world.publish(1, NOW)
    return [step(resigned(world, world.served(), model="other"))]


def attack_wrong_kind(world: Any) -> list[Step]:
    """A file for another runtime under the name of the target."""
    world.publish(1, NOW)
    served = world.served()
    targets = json.loads(served["manifest.json"])["targets"]
    targets["edgepack"]["runtime"] = {"name": "onnxruntime"}
    return [step(resigned(world, served, targets=targets))]


def attack_signature(world: Any) -> list[Step]:
    world.publish(1, NOW)
    signing, world.signing = world.signing, worlds.key(9)
    forged = resigned(world, world.served(), sequence=5)
    world.signing = signing
    return [step(forged)]


def attack_root(world: Any) -> list[Step]:
    """A list of keys that the known root key has not signed."""
    world.publish(1, NOW)
    good = world.served()
    entry = json.loads(roots.extended(None, worlds.key(9), roots.spelled(worlds.key(9)),
                                      (roots.spelled(worlds.key(9)),)))[0]  # fmt: skip
    signed = manifest.canonical({**json.loads(entry["signed"]), "version": 2})
    forged = {"signed": signed.decode(), "signatures": [worlds.key(9).sign(signed).hex()] * 2}
    chain = json.dumps([*json.loads(good["roots.json"]), forged]).encode()
    world.signing = worlds.key(9)
    return [step(good), step({**resigned(world, good, sequence=5), "roots.json": chain})]


def attack_self_test(world: Any) -> list[Step]:
    """A release that does not answer as its golden rows say."""
    world.publish(1, NOW, wrong=1e-3)
    return [step(world.served())]


ATTACKS: Final[dict[Any, tuple[str, tuple[str, str]]]] = {
    attack_rollback: ("older", ("insist(ahead >= 0,", "insist(true,")),
    attack_rollback_of_a_halt: ("older", ("|| made.revision - last.revision", "")),
    attack_rollback_after_a_lost_download: ("older", ("seen.head = {", "const unkept = {")),
    attack_freeze: ("expired", ("insist(now < made.expires,", "insist(true,")),
    attack_mix_and_match: ("hash", ("insist((await sha256(bytes)) === named.sha256,",
                                    "insist(true,")),
    attack_wrong_target: ("model", ("insist(made.model === model,", "insist(true,")),
    attack_wrong_kind: ("target", ('insist(file?.runtime.name === "edge.js",', "insist(true,")),
    attack_signature: ("signature", ("if (await signed(one, signature, bytes)) key = one;",
                                     "key = one;")),
    attack_root: ("root", ("insist(await signed(by[i],", "insist(true || await signed(by[i],")),
    attack_self_test: ("self_test", ("insist(off <= most,", "insist(true,")),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_is_refused_and_only_by_its_rule(attack: Any, world: Any, tmp_path: Path) -> None:
    code, mutant = ATTACKS[attack]
    steps = attack(world)
    assert run(tmp_path / "with", steps)["out"][-1]["refused"] == code
    fallen = run(tmp_path / "without", steps, mutant=mutant)["out"][-1]
    if attack is attack_mix_and_match:
        assert fallen["refused"] == "self_test", "another guard stands behind this one"
    else:
        assert "refused" not in fallen


def test_a_key_that_was_stolen_does_not_hold_devices_for_ever(world: Any, tmp_path: Path) -> None:
    """Fast-forward: an attacker signs the highest sequence; a new list of keys undoes it."""
    world.publish(1, NOW)
    far = resigned(world, world.served(), sequence=2**53 - 1)
    world.rotate(worlds.key(3))
    world.publish(2, NOW)
    rotated = world.served()
    stolen = {**far, "roots.json": world.chain}
    steps = [step(far), step(rotated), step(stolen), step(far)]
    answers = run(tmp_path / "with", steps)["out"]
    assert answers[0]["sequence"] == 2**53 - 1, "nobody can know yet"
    assert answers[1]["sequence"] == 2
    assert answers[2]["refused"] == "signature"
    assert answers[3]["refused"] == "signature", "an old list of keys is no way back"
    rule = "held && keys.includes(held.key) ? held", "held ? held"
    assert run(tmp_path / "without", steps, mutant=rule)["out"][1]["refused"] == "older"


@pytest.mark.parametrize("path", ["manifest.json", "roots.json", "a file"])
def test_endless_data_is_not_read(path: str, world: Any, tmp_path: Path) -> None:
    world.publish(1, NOW)
    served = world.served()
    named = json.loads(served["manifest.json"])["targets"]["edgepack"]["sha256"]
    steps = [step({**served, f"files/{named}" if path == "a file" else path: ENDLESS})]
    answer = run(tmp_path / "with", steps)["out"][0]
    assert answer["refused"] == "too_long"
    assert answer["pulled"] <= 4 * CHUNK
    rule = "insist(size <= most,", "insist(true,"
    cancel = run(tmp_path / "without", steps, mutant=rule)["out"][0]
    assert cancel["refused"] != "too_long"


def test_the_pinned_root_key_is_the_only_one(world: Any, tmp_path: Path) -> None:
    world.publish(1, NOW)
    steps = [step(world.served())]
    own = run(tmp_path / "own", steps, root=roots.spelled(world.root))["out"][0]
    assert own["sequence"] == 1
    other = run(tmp_path / "other", steps, root=roots.spelled(worlds.key(9)))["out"][0]
    assert other["refused"] == "root"


def test_updates_by_difference_and_what_is_done_if_one_is_damaged(
    world: Any, tmp_path: Path
) -> None:
    served = []
    for seed in (1, 2, 3):
        world.publish(seed, NOW)
        served.append(world.served())
    deltas = json.loads(served[1]["manifest.json"])["targets"]["edgepack"]["deltas"]
    torn = {**served[1], f"files/{deltas[0]['sha256']}": b"torn"}
    first, second = (
        run(tmp_path / name, [step(one) for one in steps])["out"]
        for name, steps in {"whole": served, "torn": [served[0], torn, served[2]]}.items()
    )
    assert [one["how"] for one in first] == ["full", "delta", "delta"]
    assert first[1]["took"] < 0.5 * first[0]["took"]
    assert [one["how"] for one in second] == ["full", "full", "delta"]


def test_golden_rows_are_fetched_once_and_counted(world: Any, tmp_path: Path) -> None:
    """Only what they are to give comes with each release; all bytes of files are in ``took``."""
    served = []
    for seed, rows_of in ((1, 0), (2, 0), (3, 7)):
        world.publish(seed, NOW, rows_of=rows_of)
        served.append(world.served())
    world.publish(4, NOW, parts=False)
    served.append(world.served())
    out = run(tmp_path / "device", [step(one) for one in served])["out"]
    for release, told in zip(served, out, strict=True):
        parity = json.loads(release["manifest.json"])["targets"]["edgepack"]["parity"]
        files = [path for path in told["asked"] if path.startswith("files/")]
        assert told["took"] == sum(len(release[path]) for path in files)
        for name, part in parity.get("parts", {}).items():
            asked = f"files/{part['sha256']}" in files
            assert asked == (name == "expected" or told in (out[0], out[2]))
        assert (f"files/{parity['sha256']}" in files) == ("parts" not in parity)


def test_a_device_follows_releases_in_steps(world: Any, tmp_path: Path) -> None:
    """From any of the three before, to the very bytes that are signed, and their golden rows."""
    served = []
    for seed in (1, 2, 3, 4):
        world.publish(seed, NOW, steps=True)
        served.append(world.served())
    named = json.loads(served[-1]["manifest.json"])["targets"]["edgepack"]["deltas"]
    assert [served[-1][f"files/{one['sha256']}"][:4] for one in named] == [b"EPD8"] * 3
    for start in (0, 1, 2):
        out = run(tmp_path / str(start), [step(served[start]), step(served[3])])["out"]
        assert [one["how"] for one in out] == ["full", "delta"]
        assert out[1]["took"] < 0.4 * out[0]["took"]


def test_cohorts_are_decided_on_the_device(world: Any, tmp_path: Path) -> None:
    """Few devices take a new release, all after its promotion, none after a halt."""
    devices = [f"device-{i}" for i in range(400)]
    world.publish(1, NOW)
    world.publish(2, NOW, percent=10)
    sequence = 2
    within = [d for d in devices if bucket(d, sequence) < 1000]
    outside = next(d for d in devices if d not in within)
    assert 20 <= len(within) <= 60
    tenth = world.served()
    world.change(lambda channel: channel.promoted(None, Reports()), NOW)
    half = world.served()
    world.change(lambda channel: channel.stopped(), NOW)
    halted = world.served()
    found = run(
        tmp_path / "in",
        [step(one, device=within[0]) for one in (tenth, half, halted)],
        devices=devices,
    )
    assert found["places"] == [bucket(d, 7) for d in devices]
    assert [one["sequence"] for one in found["out"]] == [2, 2, 1]
    late = next(d for d in devices if 1000 <= bucket(d, sequence) < 5000)
    came = run(tmp_path / "late", [step(one, device=late) for one in (tenth, half, halted)])["out"]
    assert [one["sequence"] for one in came] == [1, 2, 1]
    assert [one["how"] for one in came] == ["full", "delta", "same"], "the one before was kept"
    never = run(tmp_path / "out", [step(one, device=outside) for one in (tenth, halted)])["out"]
    assert [one["sequence"] for one in never] == [1, 1]


def test_a_first_release_for_few_gives_the_others_nothing(world: Any, tmp_path: Path) -> None:
    world.publish(1, NOW, percent=1)
    outside = next(d for d in map(str, range(100)) if bucket(d, 1) >= 100)
    assert run(tmp_path / "x", [step(world.served(), device=outside)])["out"][0] == {
        "refused": "not_yet", "pulled": 0, "packs": 0,
        "asked": ["roots.json", "manifest.json", "manifest.sig"],
    }  # fmt: skip


def test_a_release_that_failed_here_is_not_fetched_again(world: Any, tmp_path: Path) -> None:
    world.publish(1, NOW)
    good = world.served()
    world.publish(2, NOW, wrong=1e-3)
    bad = world.served()
    world.publish(3, NOW)
    out = run(tmp_path / "x", [step(one) for one in (good, bad, bad, world.served())])["out"]
    assert [one.get("refused") for one in out] == [None, "self_test", "self_test", None]
    assert [one.get("failed") for one in out] == [None, 2, None, None], "reported once"
    assert not [path for path in out[2]["asked"] if path.startswith("files/")]
    assert out[2]["packs"] == 1, "what it had goes on"
    assert out[3]["sequence"] == 3


def test_a_pair_of_two_releases_is_asked_for_again(world: Any, tmp_path: Path) -> None:
    """Between the two requests a release was published."""
    world.publish(1, NOW)
    old = world.served()["manifest.json"]
    world.publish(2, NOW)
    out = run(tmp_path / "x", [step({**world.served(), "manifest.json": old})])["out"][0]
    assert out["refused"] == "signature"
    assert out["asked"].count("manifest.json") == 2


def test_signatures_can_be_checked_here(tmp_path: Path) -> None:
    assert run(tmp_path / "x", [])["able"] is True
