"""Kill a service with choices and rewards in flight: each choice has its one reward or its default.

Callers choose, under ids of their own and without, and reward at once, late, twice, or never; what
is not answered they send again.  After the last kill the journal says of each choice what was
answered, drawn and rewarded.  A choice that was written behind its answer and lost in a kill gets
no default: these are counted.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.service import Running, launch, status, write_settings
from online.decide.record import Choice, unpack
from online.rebuild import fsck
from online.rows.prediction_ids import Keys, Nonces, Tokens
from online.service.processes import free_port
from online.settings.config import Settings, load
from online.settings.places import open_journal
from replay import codec

DEFAULT: Final = 0.25
WAIT_S: Final = 1.0
_PATH: Final = "/v1/models/shop"
_ACTIONS: Final = [{"id": name} for name in ("news", "sport", "film", "music")]
_PAUSE_S: Final = (0.3, 1.5)
_GIVE_UP_S: Final = 900.0  # a restart takes minutes on a busy machine


@dataclass(slots=True)
class Known:
    """A choice that was answered, as its caller knows it: ``reward`` is what was sent, if any."""

    answer: dict[str, Any]
    at: float
    reward: float | None = None
    outcome: str = ""

    def may_be(self, label: float) -> bool:
        """Whether its row may have this reward; one that was never answered may count or not."""
        if self.outcome == "learned":
            return label == self.reward
        return label == DEFAULT or (not self.outcome and label == self.reward)


@dataclass(slots=True)
class Notes:
    """All that callers know, and what they found wrong by themselves."""

    choices: dict[str, Known] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class Result:
    """All choices and what became of them; the promise is kept if the lists of ids are empty.

    ``lost_halves`` are choices without reward or default, and ``behind_s`` is the longest time from
    the answer of one to the next kill; ``stray`` are those of them under ids of callers' own, which
    are written first.
    """

    kills: int
    choices: int
    rewarded: int
    late: int
    defaulted: int
    lost_halves: int
    behind_s: float
    lost: list[str]
    twice: list[str]
    changed: list[str]
    redrawn: list[str]
    stray: list[str]
    wrong: list[str]
    rows: int
    learned: int
    fsck_good: bool
    statuses: dict[str, int]
    seconds: float

    @property
    def good(self) -> bool:
        """No reward is lost, counted twice or another one, and no choice was drawn again."""
        bad = (self.lost, self.twice, self.changed, self.redrawn, self.stray, self.wrong)
        return not any(bad) and self.rows == self.learned and self.fsck_good


class Caller(threading.Thread):
    """Chooses and rewards until told to stop, then rewards what it has left for later."""

    def __init__(self, number: int, url: str, notes: Notes, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._number, self._url, self._notes, self._stop_event = number, url, notes, stop
        self._rng = random.Random(number)
        self._later: list[str] = []
        self.in_flight = False

    def run(self) -> None:
        """Choose and reward; each choice is one of several fates."""
        n = 0
        while not self._stop_event.is_set():
            n += 1
            own = f"own-{self._number}-{n}" if self._rng.random() < 0.3 else None
            if (id_ := self._choose(own, n)) is None:
                continue
            fate = self._rng.random()
            if fate < 0.5:
                self._reward(id_, float(self._rng.random() < 0.5))
            elif fate < 0.7:
                self._later.append(id_)
            if self._later and self._rng.random() < 0.2:
                self._reward(self._later.pop(0), float(self._rng.random() < 0.5))
        for id_ in self._later:
            self._reward(id_, float(self._rng.random() < 0.5))

    def _post(self, action: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer; 0 without one."""
        client = Connection(self._url, 20.0)
        try:
            self.in_flight = True
            return client.post(f"{_PATH}/{action}", body)
        except (OSError, http.client.HTTPException):
            return 0, {}
        finally:
            self.in_flight = False
            client.close()

    def _choose(self, own: str | None, n: int) -> str | None:
        body: dict[str, Any] = {"context": {"x": float(n % 7)}, "actions": _ACTIONS}
        if own is not None:
            body["id"] = own
        give_up = time.monotonic() + _GIVE_UP_S
        while time.monotonic() < give_up:
            code, answer = self._post("choose", body)
            if code == 200:
                break
            with self._notes.lock:
                self._notes.statuses[f"choose {code}"] += 1
            if own is None and self._stop_event.is_set():
                return None
            time.sleep(0.05)
        else:
            return None
        with self._notes.lock:
            self._notes.choices[answer["id"]] = Known(answer, time.monotonic())
        if own is not None and self._rng.random() < 0.3:
            self._ask_again(body, answer)
        return str(answer["id"])

    def _ask_again(self, body: dict[str, Any], first: dict[str, Any]) -> None:
        code, again = self._post("choose", body)
        if code == 200 and _told(again) != _told(first):
            with self._notes.lock:
                self._notes.wrong.append(f"{first['id']} was answered otherwise")

    def _reward(self, id_: str, reward: float) -> None:
        known = self._notes.choices[id_]
        known.reward = reward
        give_up = time.monotonic() + _GIVE_UP_S
        while time.monotonic() < give_up:
            code, answer = self._post("reward", {"id": id_, "reward": reward})
            if code in (200, 409):
                break
            with self._notes.lock:
                self._notes.statuses[f"reward {code}"] += 1
            time.sleep(0.05)
        else:
            return
        known.outcome = "late" if code == 409 else "learned"
        with self._notes.lock:
            self._notes.statuses[f"reward {code} {answer.get('status', '')}".strip()] += 1
        if code == 200 and self._rng.random() < 0.2:
            for value, wanted in ((reward, "duplicate"), (1.0 - reward, "conflict")):
                code, again = self._post("reward", {"id": id_, "reward": value})
                if code and again.get("status") != wanted and code in (200, 409):
                    with self._notes.lock:
                        self._notes.wrong.append(f"{id_[:24]}: {value} again is {again}")


def settings_of(port: int) -> dict[str, Any]:
    """One process, defaults after a second."""
    choose = {"default_reward": DEFAULT, "reward_wait": WAIT_S, "policy": "epsilon", "epsilon": 0.5}
    model = {"name": "shop", "task": "choose", "choose": choose}
    return {"cluster": "embedded", "port": port, "models": [model]}


def run(
    kills: int, *, callers: int = 8, seed: int = 0, progress: Callable[[str], None] = print
) -> Result:
    """A campaign of ``kills``, each of the whole service."""
    rng, begun, died = random.Random(seed), time.monotonic(), list[float]()
    with tempfile.TemporaryDirectory(prefix="online-kill-") as name:
        folder, port = Path(name), free_port()
        path = write_settings(folder, settings_of(port))
        running = launch(folder)
        notes, stop = Notes(), threading.Event()
        threads = [Caller(i, running.url, notes, stop) for i in range(callers)]
        try:
            for thread in threads:
                thread.start()
            for i in range(kills):
                time.sleep(rng.uniform(*_PAUSE_S))
                _wait_in_flight(threads)
                died.append(time.monotonic())
                for process in running.processes():
                    with contextlib.suppress(psutil.Error):
                        process.send_signal(signal.SIGKILL)
                running.process.wait()
                running = launch(folder)
                progress(f"kill {i + 1}/{kills}: {len(notes.choices):,} choices")
            stop.set()
            for thread in threads:
                thread.join(_GIVE_UP_S)
            settings = load(path, {}, {})
            learned, findings = _settled(running, settings)
        finally:
            stop.set()
            running.stop()
        found = judge(settings, notes, died)
        return Result(
            kills=kills, learned=learned, fsck_good=findings.good,
            statuses=dict(notes.statuses), seconds=time.monotonic() - begun, **found,
        )  # fmt: skip


def _wait_in_flight(threads: Sequence[Caller]) -> None:
    """Until half of the callers wait for an answer, or for some minutes."""
    deadline = time.monotonic() + 240.0
    while sum(thread.in_flight for thread in threads) < len(threads) / 2:
        if time.monotonic() > deadline:
            return
        time.sleep(0.001)


def _settled(running: Running, settings: Settings) -> tuple[int, fsck.Findings]:
    """Until no choice waits and a snapshot has all rows; how many are learned."""
    deadline = time.monotonic() + 240.0
    while True:
        with contextlib.closing(open_journal(settings)) as journal:
            waiting = journal.predicted("shop", float("-inf"), time.time() + 1e6, 1).waiting
        with contextlib.suppress(OSError, http.client.HTTPException):
            client = Connection(running.url)
            client.post(f"{_PATH}/snapshots", None)
            client.close()
        findings = fsck.check(settings, "shop", served=True)
        if (not waiting and findings.not_yet == 0) or time.monotonic() > deadline:
            return int(status(running, "shop")["learned"]), findings
        time.sleep(0.2)


def judge(settings: Settings, notes: Notes, died: Sequence[float]) -> dict[str, Any]:
    """Compare what callers know with the rows of the journal."""
    keys = Keys.from_file(settings.key_path)
    tokens = Tokens(keys, "shop", Nonces(bytes(6)))
    rows, count = dict[str, list[tuple[Choice, float]]](), 0
    with contextlib.closing(open_journal(settings)) as journal:
        after = 0
        while page := journal.follow("shop", after, 10_000).rows:
            after = page[-1].seq
            for row in page:
                example = codec.decode(row.payload)
                if example.choice is not None:
                    label = float(example.label)
                    rows.setdefault(row.event_id, []).append((unpack(example.choice), label))
                    count += 1
    found: dict[str, Any] = {
        name: list[str]() for name in ("lost", "twice", "changed", "redrawn", "stray")
    }
    tally, behind = Counter[str](), 0.0
    for id_, known in notes.choices.items():
        event = id_ if id_.startswith("own-") else tokens.read(id_)[0]
        standing = rows.get(event, [])
        if len(standing) > 1:
            found["twice"].append(event)
        if not standing:
            if known.outcome:
                found["lost"].append(event)
                continue
            tally["lost_halves"] += 1
            behind = max(behind, min((abs(at - known.at) for at in died), default=math.inf))
            if event == id_:
                found["stray"].append(event)
            continue
        choice, label = standing[0]
        ranking = [(choice.actions[i][0], choice.probabilities[i]) for i in choice.ranking()]
        if ranking != [(x["id"], x["probability"]) for x in known.answer["ranking"]]:
            found["redrawn"].append(event)
        if not known.may_be(label):
            found["changed"].append(event)
        tally[known.outcome or ("defaulted" if label == DEFAULT else "unanswered")] += 1
    return {
        **found, "wrong": notes.wrong, "choices": len(notes.choices), "rows": count,
        "rewarded": tally["learned"], "late": tally["late"], "defaulted": tally["defaulted"],
        "lost_halves": tally["lost_halves"], "behind_s": behind,
    }  # fmt: skip


def _told(answer: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(answer[name] for name in ("action", "probability", "ranking"))
