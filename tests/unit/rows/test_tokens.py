"""Label tokens: one spelling, one model, one key; nothing else is read."""

from __future__ import annotations

import base64
import errno
import inspect
import itertools
import os
import stat
import string
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

import online.rows.prediction_ids
from online.errors import ConfigError
from online.rows.prediction_ids import (
    EventKeys,
    Keys,
    Nonces,
    Predicted,
    TokenInvalid,
    Tokens,
    event_key,
    forward_clock,
    made_id,
)
from replay.journal.redis.journal import RedisJournal

ONE, TWO = bytes(range(32)), bytes(range(32, 64))
ALPHABET = string.ascii_letters + string.digits + "-_"


def tokens(*keys: bytes, model: str = "spam", prefix: bytes = b"prefix") -> Tokens:
    return Tokens(Keys(list(keys or (ONE,))), model, Nonces(prefix))


def predicted(**features: Any) -> Predicted:
    score = {"true": 0.75, "false": 0.25}
    return Predicted(1, features, score, (3, 14, 2), 1.7e9, True, "spec")


@pytest.mark.parametrize("n", range(6))
def test_round_trip(n: int) -> None:
    """Any length modulo 3, so base64 ends in each of its ways."""
    made = tokens()
    sent = predicted(text="x" * n, age=40, share=-0.0, known=True, none=None, long=2**60)
    event, read = made.read(made.issue(sent))
    assert read == sent
    assert [type(v) for v in read.features.values()] == [type(v) for v in sent.features.values()]
    assert event == (b"prefix" + bytes(5) + b"\x01").hex()


def test_notes_are_carried_and_tokens_without_them_are_read() -> None:
    made = tokens()
    noted = msgspec.structs.replace(predicted(a=1.0), notes=b"12345678")
    assert made.read(made.issue(noted))[1] == noted
    before = msgspec.structs.astuple(predicted(a=1.0))[:-1]
    token = made._keys.seal(bytes(12), msgspec.msgpack.encode(before), made._model)
    assert made.read(token)[1] == predicted(a=1.0)


def refused(made: Any, token: str) -> None:
    with pytest.raises(TokenInvalid):
        made.read(token)


def check_every_changed_character(make: Callable[[], Any]) -> None:
    for n in range(3):
        made = make()
        token = made.issue(predicted(text="x" * n))
        for i, old in enumerate(token):
            for new in ALPHABET.replace(old, ""):
                refused(made, token[:i] + new + token[i + 1 :])


def check_every_other_spelling(make: Callable[[], Any]) -> None:
    for n in range(3):
        made = make()
        token = made.issue(predicted(text="x" * n))
        padding = "=" * (-len(token) % 4)
        raw = base64.urlsafe_b64decode(token + padding)
        others = {token + "=" * k for k in range(1, 5)}
        others |= {base64.b64encode(raw).decode(), token.replace("-", "+").replace("_", "/")}
        others |= {
            f" {token}",
            f"{token}\n",
            f"{token[:9]}\n{token[9:]}",
            f"{token[:9]}!{token[9:]}",
        }
        others |= {token[:9] + "=" + token[9:], token + "é", "\ud800" + token}
        for last in ALPHABET:  # bits that a lax decoder throws away
            lax = token[:-1] + last
            if base64.urlsafe_b64decode(lax + padding) == raw:
                others.add(lax)
        for other in others - {token}:
            refused(made, other)
        assert made.read(token)[1].features == {"text": "x" * n}


def test_every_changed_character_is_refused() -> None:
    check_every_changed_character(tokens)


def test_every_other_spelling_is_refused() -> None:
    check_every_other_spelling(tokens)


def test_a_decoder_that_takes_other_spellings_is_noticed() -> None:
    source = inspect.getsource(online.rows.prediction_ids)
    strict = 'if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != token:'
    assert source.count(strict) == 1
    names: dict[str, Any] = {"__name__": "online.rows.prediction_ids"}
    exec(compile(source.replace(strict, "if False:"), "<mutant>", "exec"), names)

    def lax() -> Any:
        return names["Tokens"](names["Keys"]([ONE]), "spam", names["Nonces"](b"prefix"))

    for check in (check_every_changed_character, check_every_other_spelling):
        with pytest.raises((pytest.fail.Exception, names["TokenInvalid"])):
            check(lax)


@pytest.mark.parametrize("token", ["", "A", "AAAA", "A" * 22, "A" * 400, "ü" * 30])
def test_what_never_was_a_token(token: str) -> None:
    refused(tokens(), token)


def test_cut_and_extended() -> None:
    made = tokens()
    token = made.issue(predicted())
    for end in range(len(token)):
        refused(made, token[:end])
    for more in ("A", "AA", "AAA", "AAAA"):
        refused(made, token + more)


def test_another_model_and_another_key() -> None:
    token = tokens().issue(predicted())
    refused(tokens(model="ham"), token)
    refused(tokens(TWO), token)
    head = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    other = Keys([TWO]).seal(b"n" * 12, b"", b"")
    disguised = base64.urlsafe_b64decode(other + "=" * (-len(other) % 4))[:4] + head[4:]
    refused(tokens(TWO), base64.urlsafe_b64encode(disguised).rstrip(b"=").decode())


def test_a_token_of_another_format() -> None:
    made = tokens()
    newer = made.issue(Predicted(2, {}, None, (1, 0, 0), 0.0, None, "spec"))
    with pytest.raises(TokenInvalid, match="format 2"):
        made.read(newer)


def test_keys_are_changed_without_losing_a_token() -> None:
    """Add the new key as the last, move it to the top, drop the old one."""
    stages = [(ONE,), (ONE, TWO), (TWO, ONE), (TWO,)]
    nodes = [tokens(*stage) for stage in stages]
    for before, after in itertools.pairwise(nodes):
        for giver, taker in ((before, after), (after, before)):
            assert taker.read(giver.issue(predicted(a=1)))[1] == predicted(a=1)
    refused(nodes[-1], nodes[0].issue(predicted()))


def test_the_key_file(tmp_path: Path) -> None:
    path = tmp_path / "state" / "keys"
    old = os.umask(0)
    try:
        first = Keys.from_file(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(first.secret) == 32
    assert Keys.from_file(path).secret == first.secret, "made once"
    assert Keys.stored(path) == (first.secret, ())
    assert Keys.stored(tmp_path / "none") != Keys.stored(tmp_path / "none"), "nobody can know it"
    assert Keys.from_file(tmp_path / "another").secret != first.secret
    path.write_text(f"{TWO.hex()}\n{first.secret.hex()}\n")
    assert Keys.from_file(path).secret == TWO, "the first line seals"
    Tokens(Keys.from_file(path), "m", Nonces(b"123456")).read(
        Tokens(first, "m", Nonces(b"123456")).issue(predicted())
    )


def test_a_key_is_on_the_disk_before_it_seals_or_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, sync = tmp_path / "keys", list[str](), os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no space is left")

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space is left"):
        Keys.from_file(path)
    monkeypatch.setattr("os.fsync", noted)
    Keys.from_file(path)
    assert synced == [str(path), str(tmp_path)]


@pytest.mark.parametrize("text", ["", "\n", "zz" * 32, "00" * 31, f"{'00' * 32}\n{'00' * 16}"])
def test_a_key_file_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError, match="key_file"):
        Keys.from_file(path)


def test_nonces_are_unique() -> None:
    ours, others = Nonces(b"aaaaaa"), Nonces(b"aaaaab")
    given = [nonces() for nonces in (ours, others) for _ in range(70_000)]
    assert len(set(given)) == len(given)
    assert {len(nonce) for nonce in given} == {12}


def test_event_keys_keep_their_parts_apart() -> None:
    keys = {
        event_key("id", "ab", "c"),
        event_key("id", "a", "bc"),
        event_key("id", "abc"),
        event_key("id", "abc", ""),
        event_key("id", "", "abc"),
        event_key("token", "abc"),
        event_key("id", "äbc"),
    }
    assert len(keys) == 7
    assert {len(key) for key in keys} == {16}
    assert event_key("id", "a", "b") == event_key("id", "a", "b")


def pages_of(ids: Sequence[str], *, near: bool) -> int:
    """Pages of an index of 100,000 keys that one of these ids' keys is on, 150 on a page."""
    others = [EventKeys(near).event("s", f"other {i}") for i in range(100_000 - len(ids))]
    mine = {EventKeys(near).event("s", one) for one in ids}
    return len({i // 150 for i, key in enumerate(sorted([*others, *mine])) if key in mine})


@pytest.mark.parametrize(
    "name",
    [
        "order-2026-{:07d}".format,
        "{}".format,
        lambda i: f"{'aa' * 6}{i:012x}",
        lambda i: made_id(1e9 + i / 1000),
        lambda i: f"{int(1.7e12) + i:012x}-{os.urandom(8).hex()}",
    ],
    ids=["padded", "numbers", "nonces", "made", "time in ms"],
)
def test_ids_that_count_up_or_begin_with_the_time_get_neighbouring_keys(
    name: Callable[[int], str],
) -> None:
    ids = [name(i) for i in range(5_000, 5_100)]
    assert pages_of(ids, near=False) > 80
    assert pages_of(ids, near=True) < 20


def test_keys_are_those_of_the_versions_before() -> None:
    """A journal holds them for days: with other keys, repeats of earlier events would be new."""
    far, near = EventKeys(False), EventKeys(True)
    assert [form.event("s", "order-1").hex() for form in (far, near)] == [
        "507e54e04776d228efd15e3ff8460972",
        "f52993984776d228efd15e3ff8460972",
    ]
    assert [form.token("00ff").hex() for form in (far, near)] == [
        "ff91ac7fbce1ecc784a3dc71bc2d6a73",
        "b84614a0bce1ecc784a3dc71bc2d6a73",
    ]
    assert [form.join("s", "é-7").hex() for form in (far, near)] == [
        "bdb5ee3977573cd8a8550658bfdef16a",
        "0e048d3e77573cd8a8550658bfdef16a",
    ]
    assert not RedisJournal.near_keys  # what its journals have begun with


def test_neighbouring_keys_are_as_different_as_others() -> None:
    keys = EventKeys(True)
    ids = ["", "a", "é", "ab", "abc", *(f"{i:09d}" for i in range(30_000))]
    given = {f(one) for one in ids for f in (keys.token, partial(keys.event, "s"))}
    assert len(given) == 2 * len(ids)
    assert {len(key) for key in given} == {16}
    assert len({key[4:] for key in given}) == len(given)
    assert keys.join("s", "a") != keys.join(None, "a") != keys.event("s", "a")


class Clocks:
    """Both clocks of a machine."""

    def __init__(self) -> None:
        self.wall_s, self.monotonic_s = 1.7e9, 50.0

    def passes(self, seconds: float, set_by: float = 0.0) -> None:
        """Time passes, and somebody sets the wall clock by so much."""
        self.wall_s += seconds + set_by
        self.monotonic_s += seconds


def test_a_clock_that_is_set_back_goes_on() -> None:
    clocks = Clocks()
    now_s = forward_clock(lambda: clocks.wall_s, lambda: clocks.monotonic_s)
    assert now_s() == 1.7e9
    clocks.passes(10)
    assert now_s() == 1.7e9 + 10
    clocks.passes(10, set_by=-3600)
    assert now_s() == 1.7e9 + 20, "as much as has passed"
    clocks.passes(10, set_by=7200)
    assert now_s() == 1.7e9 + 3630, "a clock set forward is believed"
    restarted = forward_clock(lambda: clocks.wall_s - 3600, lambda: clocks.monotonic_s)
    assert restarted() == 1.7e9 + 30, "a new process has nothing but the wall clock"
