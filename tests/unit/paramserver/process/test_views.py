"""Views in shared memory: what a reader sees while the server goes on, stops, or is killed."""

from __future__ import annotations

import inspect
import os
import signal
import socket
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import mkdtemp
from threading import Lock
from typing import Any, Final

import numpy as np
import pytest

from paramserver.core.blocks import COUNT, ROWS, Block, from_wire
from paramserver.core.server import Server, _unshare
from paramserver.core.tables.ids import IdArray
from paramserver.core.tables.pages import Pool
from paramserver.core.tables.rows import Rows
from paramserver.core.wire import decode_piece
from paramserver.process import shared_tables
from paramserver.process.shared_tables import SharedTables
from paramserver.snapshots import shared_memory, views
from paramserver.snapshots.views import View, Views, lineage_folder

SPEC: Final = "f" * 64
N: Final = 5_000
WIDTH: Final = 4
OLDEST: Final = (0, 0)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(mkdtemp(prefix="online-test-", dir="/dev/shm"))
    yield made / "host" / "m" / "spec"
    for path in sorted(made.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    made.rmdir()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_tables, "_PUBLISH_S", 0.0)
    monkeypatch.setattr(shared_tables, "_SHARE", 1e9)


class Teller:
    """A server whose values are zero in sum, and whose row 0 has the version."""

    def __init__(self, folder: Path, epoch: int = 1, seed: int = 0, n: int = N) -> None:
        self.draw = np.random.default_rng(seed)
        self.server, self.lock, self.n = Server("m", SPEC, "", "sum", epoch), Lock(), n
        rows = Rows.empty(WIDTH)
        rows.put(spread(0, n), np.zeros((n, WIDTH), dtype=np.float32))
        self.server.values |= {"t": Block(ROWS, rows), "n": Block(COUNT, {"n": 0})}
        self.shared = SharedTables(folder)
        self.shared.take(self.server)

    @property
    def rows(self) -> Rows:
        table: Rows = self.server.values["t"].data
        return table

    def change(self, pairs: int = 64) -> None:
        """Move one from some rows to others; now and then there are new rows."""
        with self.lock:
            some = spread(0, self.n)[1 + self.draw.choice(self.n - 1, 2 * pairs, replace=False)]
            if self.n < 20 * N and self.draw.random() < 0.4:
                new = int(self.draw.integers(1, self.n // 8))
                self.rows.put(
                    spread(self.n, self.n + new), np.zeros((new, WIDTH), dtype=np.float32)
                )
                self.n += new
            moved = self.rows.get(some)[0]
            moved[:pairs] += 1.0
            moved[pairs:] -= 1.0
            self.rows.put(some, moved)
            self.server.count += 1
            number = np.full((1, WIDTH), self.server.count, dtype=np.float32)
            self.rows.put(spread(0, 1), number)
            _unshare(self.server.values, self.server._shared, {"n": Block(COUNT, {})})
            self.server.values["n"].data["n"] = self.server.count

    def publish(self) -> None:
        self.shared.publish_if_due(self.server, self.lock)


def spread(begin: int, end: int) -> IdArray:
    return np.arange(begin, end, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def is_whole(view: View) -> bool:
    """Whether the view is of one version."""
    rows = view.tables["t"]
    numbers, known = rows.get(rows.ids)
    (piece,) = view.others
    count = from_wire(decode_piece(piece))["n"].data["n"]
    total = numbers[1:].sum(axis=0)
    first = rows.get(spread(0, 1))[0]
    return bool(known.all() and not total.any() and (first == view.version[1]).all()) and (
        count == view.version[1]
    )


def test_views_stay_as_they_were_published_while_the_server_goes_on(folder: Path) -> None:
    teller, reader = Teller(folder), Views(folder, SPEC)
    seen: list[tuple[View, Any]] = []
    for _ in range(120):
        teller.change()
        teller.publish()
        view = reader.newest(seen[-1][0].version if seen else OLDEST)
        if view is not None:
            seen = [*seen[-4:], (view, view.tables["t"].numbers)]
        for one, numbers in seen:
            assert is_whole(one)
            assert (one.tables["t"].numbers == numbers).all()
            table = one.tables["t"]
            assert not table.has(spread(len(table), teller.n + 50)).any(), "those came later"
    assert teller.n > 4 * N, "its slots have doubled, and its ids and pages were continued"
    assert seen[-1][0].version == (1, 120)
    assert len(seen[-1][0].tables["t"]) == teller.n


def test_pushes_go_on_while_values_beside_the_tables_are_encoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teller, reader = Teller(folder), Views(folder, SPEC)
    encoded, counts = shared_tables._encoded, list[int]()

    def meanwhile(values: Any) -> Any:
        assert not teller.lock.locked(), "pushes and pulls wait for it"
        teller.change()
        counts.append(teller.server.count)
        return encoded(values)

    monkeypatch.setattr(shared_tables, "_encoded", meanwhile)
    teller.change()
    for n in range(1, 8, 2):
        teller.publish()
        view = reader.newest(OLDEST)
        assert view is not None
        assert view.version == (1, n)
        assert is_whole(view)
        teller.change()
    assert counts == [2, 4, 6, 8]


def test_no_folder_is_followed_elsewhere(folder: Path, tmp_path: Path) -> None:
    """Everybody may write to /dev/shm, so a link could name what belongs to this user."""
    (kept := tmp_path / folder.name / "1-abc").mkdir(parents=True)
    (kept / "snapshot").write_text("all that was learned")
    folder.parent.parent.mkdir()
    folder.parent.symlink_to(tmp_path)
    teller = Teller(folder)
    assert "or is a link" in teller.shared.reason
    assert (kept / "snapshot").read_text() == "all that was learned"
    folder.parent.unlink()


def test_what_another_user_made_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teller, reader = Teller(folder), Views(folder, SPEC)
    teller.change()
    teller.publish()
    checked = views._check_owner

    def of_another(found: os.stat_result, path: Path) -> None:
        if path.name.startswith("array"):
            raise PermissionError(path)
        checked(found, path)

    monkeypatch.setattr(views, "_check_owner", of_another)
    assert reader.newest(OLDEST) is None
    monkeypatch.setattr(views, "_check_owner", checked)
    assert reader.newest(OLDEST) is not None


def test_containers_of_one_machine_do_not_read_each_others_views(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may share the memory file system, and their paths, users and models may be equal."""
    top = str(folder.parents[2])
    tellers = []
    for changes, host in enumerate(("staging", "production")):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        tellers.append(Teller(lineage_folder(top, "m", SPEC)))
        for _ in range(changes + 1):
            tellers[-1].change()
        tellers[-1].publish()
    monkeypatch.setattr(socket, "gethostname", lambda: "staging")
    view = Views(lineage_folder(top, "m", SPEC), SPEC).newest(OLDEST)
    assert view is not None
    assert view.version == (1, 1)
    monkeypatch.setattr(socket, "gethostname", lambda: "laptop")
    assert Views(lineage_folder(top, "m", SPEC), SPEC).newest(OLDEST) is None


def test_a_reader_takes_no_memory_that_is_not_reserved(folder: Path) -> None:
    """Else it could touch a page for which there is no room, which would end its process."""
    teller, reader = Teller(folder, n=20 * N), Views(folder, SPEC)
    teller.change()
    teller.publish()
    before = taken(folder)
    view = reader.newest(OLDEST)
    assert view is not None
    assert len(list(view.resident())) >= 3, "ids, slots and rows"
    assert is_whole(view)
    view.tables["t"].get(spread(teller.n, 2 * teller.n))
    assert taken(folder) == before > 0


def taken(folder: Path) -> int:
    return sum(path.stat().st_blocks for path in folder.rglob("array-*"))


def _in_place(self: Pool, pages: Any, places: Any) -> None:
    """Writes to pages that others use."""


def test_a_server_that_writes_in_place_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teller, reader = Teller(folder), Views(folder, SPEC)
    teller.change()
    teller.publish()
    view = reader.newest(OLDEST)
    assert view is not None
    assert is_whole(view)
    monkeypatch.setattr(Pool, "own", _in_place)
    teller.change()
    assert not is_whole(view)


def test_only_views_that_nobody_reads_are_removed_and_no_more_than_a_few_are(folder: Path) -> None:
    teller, held = Teller(folder), list[View]()
    reader = Views(folder, SPEC)
    for _ in range(2 * shared_tables.VIEWS_MAX):
        teller.change()
        teller.publish()
        if (view := reader.newest(held[-1].version if held else OLDEST)) is not None:
            held.append(view)
    assert teller.shared.status()["views"] == len(held) == shared_tables.VIEWS_MAX
    assert "are being read" in teller.shared.reason
    assert all(map(is_whole, held))
    del held[1:-1], view
    teller.change()
    teller.publish()
    teller.publish()
    assert teller.shared.status() == {"views": 3, "reason": "", "passed": 0, "in_messages": 0}
    assert is_whole(held[0])


def test_rows_of_removed_views_are_used_again(folder: Path) -> None:
    teller = Teller(folder)
    for _ in range(30):
        teller.change(pairs=1_000)
        teller.publish()
    used = teller.rows._pool._used
    assert used < 2.5 * (teller.n // 32 + 1), "pages of views that are gone"


def test_a_view_that_is_being_removed_counts_as_not_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teller, reader = Teller(folder), Views(folder, SPEC)
    teller.change()
    teller.publish()
    (newest, _), *_ = sorted(teller.shared._views, key=lambda one: -1)[-1:]
    lock = views.fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        if how & views.fcntl.LOCK_SH:
            assert newest.remove_unread()  # between its opening and the lock
        lock(descriptor, how)

    monkeypatch.setattr(views.fcntl, "flock", flock)
    assert reader.newest(OLDEST) is None


def test_without_room_tables_stay_where_they_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teller, reader = Teller(folder), Views(folder, SPEC)
    before = reader.newest(OLDEST)
    assert before is not None

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_memory.os, "posix_fallocate", full)
    while teller.n < 8 * N or not teller.shared.reason:
        teller.change()
        teller.publish()
        assert teller.server.count < 10_000
    assert "no room" in teller.shared.reason
    assert is_whole(before)
    numbers, known = teller.rows.get(spread(0, teller.n))
    assert known.all()
    assert not numbers[1:].sum(axis=0).any()
    monkeypatch.undo()
    other = Teller(folder, epoch=2)
    monkeypatch.setattr(shared_memory.os, "posix_fallocate", full)
    third = Teller(folder, epoch=3)
    assert third.shared.reason
    assert other.shared.reason == ""
    assert reader.newest((2, 0)) is None


def test_a_server_removes_what_earlier_servers_of_its_model_left(folder: Path) -> None:
    Teller(folder)
    other = folder.parent / "another spec"
    before = Teller(other)
    view = Views(other, SPEC).newest(OLDEST)
    another = Teller(folder.parent.parent / "another model" / "spec")
    present = Teller(folder, epoch=2)
    assert [one.name.split("-")[0] for one in folder.iterdir()] == ["2"]
    assert [*other.iterdir()], "its server lives: it may be that this one is given up"
    for _ in range(3):
        before.change()
        before.publish()
        present.publish()
        assert before.shared.reason == ""
        newest = Views(other, SPEC).newest(OLDEST)
        assert newest is not None
        assert newest.version == before.server.version
        assert is_whole(newest)
    assert before.shared._memory is not None
    before.shared._memory.close()  # as the kernel does when a process ends
    present.publish()
    assert [*other.iterdir()] == []
    assert view is not None
    assert is_whole(view), "who reads it goes on"
    assert [*another.shared._folder.iterdir()]


def test_what_a_killed_container_left_is_removed_under_whatever_name_it_had(folder: Path) -> None:
    left = folder.parents[2] / "an old container" / "m" / SPEC
    before, alive = Teller(left), Teller(folder.parents[2] / "another container" / "m" / SPEC)
    assert before.shared._memory is not None
    before.shared._memory.close()  # as the kernel does when a process ends
    Teller(folder).publish()
    assert [*left.iterdir()] == []
    assert [*alive.shared._folder.iterdir()]


def test_folders_are_private_and_nobody_elses(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Teller(folder).shared.reason == ""
    for one in (folder, *folder.parents[:2], *folder.iterdir()):
        assert one.stat().st_mode & 0o077 == 0
    for file in next(folder.iterdir()).glob("array-*"):
        assert file.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(shared_tables.os, "getuid", lambda: 12_345)
    assert "belongs to another user" in Teller(folder, epoch=2).shared.reason
    assert Views(folder, SPEC).newest(OLDEST) is None, "and such a view is not read"


WRITE = inspect.getsource(views.write_view)


@pytest.mark.parametrize("mutant", [False, True])
def test_a_view_gets_its_name_when_it_is_whole(
    mutant: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant publishes the header before the pages that it names."""
    teller, reader = Teller(folder), Views(folder, SPEC)
    pages = 'file.write(pages.astype("<i8", copy=False).data)'
    right = WRITE.replace(pages, "raise OSError(5, 'killed here')")
    wrong = right.replace("begun.open", "path.open")
    assert len({right, wrong, WRITE}) == 3
    found = dict(vars(views))
    exec(wrong if mutant else right, found)
    monkeypatch.setattr(shared_tables, "write_view", found["write_view"])
    teller.change()
    teller.publish()
    assert "killed here" in teller.shared.reason
    view = reader.newest(OLDEST)
    assert view is not None
    if mutant:
        assert view.version == (1, 1)
        with pytest.raises(IndexError):
            is_whole(view)
    else:
        assert view.version == (1, 0)
        assert is_whole(view)


def _tell(folder: Path, epoch: int, ready: Any) -> None:
    shared_tables._PUBLISH_S, shared_tables._SHARE = 0.0, 1e9  # type: ignore[misc]
    teller = Teller(folder, epoch, seed=epoch)
    ready.set()
    while True:
        teller.change()
        teller.publish()


def started(folder: Path, epoch: int) -> BaseProcess:
    context = get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_tell, args=(folder, epoch, ready), daemon=True)
    process.start()
    assert ready.wait(120)
    return process


def test_a_reader_goes_on_whenever_the_server_stands_still_or_is_killed(folder: Path) -> None:
    reader, draw = Views(folder, SPEC), np.random.default_rng(7)
    stops = kills = opened = 0
    view: View | None = None
    for epoch in range(1, 4):
        process = started(folder, epoch)
        assert process.pid is not None
        for _ in range(25):
            for _ in range(int(draw.integers(1, 4))):
                newer = reader.newest(OLDEST if view is None else view.version)
                if newer is not None:
                    view, opened = newer, opened + 1
                assert view is not None
                assert is_whole(view)
            os.kill(process.pid, signal.SIGSTOP)
            stops += 1
            assert is_whole(view)
            newer = reader.newest(OLDEST)
            assert newer is None or is_whole(newer)
            os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.join()
        kills += 1
        assert view is not None
        assert is_whole(view)
        again = reader.newest(OLDEST)  # it stays for who begins while there is no server
        assert again is not None
        assert is_whole(again)
    assert (stops, kills) == (75, 3)
    assert opened >= 3
    assert [one.name.split("-")[0] for one in folder.iterdir()] == ["3"]
