"""Kill a service with choices and rewards in flight: each choice has its one reward or its default.

Callers choose, under ids of their own and without, and reward at once, late, twice, or never; what
is not answered they send again.  After the last kill the journal says of each choice what was
answered, drawn and rewarded.  A choice that was written behind its answer and lost in a kill gets
no default: these are counted.
"""

from __future__ import annotations

import math
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.faults.exactly_once import Client, Sent, Site, wait_in_flight
from benchmarks.faults.settled import journal_rows, wait_complete, wait_given
from benchmarks.fixtures.service import status, write_settings
from online.decide.record import Choice, unpack
from online.rows.prediction_ids import Keys, Nonces, Tokens
from online.service.processes import free_port
from online.settings.config import Settings, load
from replay import codec

DEFAULT: Final = 0.25
WAIT_S: Final = 1.0
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
class Notes(Sent):
    """All that callers know, and what they found wrong by themselves."""

    choices: dict[str, Known] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


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


class Caller(Client):
    """Chooses and rewards until told to stop, then rewards what it has left for later."""

    _model = "shop"

    def __init__(
        self, number: int, url: Callable[[], str], notes: Notes, stop: threading.Event
    ) -> None:
        super().__init__(number, url, notes, stop, seed=number)
        self._notes = notes
        self._later: list[str] = []

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

    def _choose(self, own: str | None, n: int) -> str | None:
        body: dict[str, Any] = {"context": {"x": float(n % 7)}, "actions": _ACTIONS}
        if own is not None:
            body["id"] = own
        give_up = time.monotonic() + _GIVE_UP_S
        while time.monotonic() < give_up:
            code, answer = self.call("choose", body)
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
        code, again = self.call("choose", body)
        if code == 200 and _told(again) != _told(first):
            with self._notes.lock:
                self._notes.wrong.append(f"{first['id']} was answered otherwise")

    def _reward(self, id_: str, reward: float) -> None:
        known = self._notes.choices[id_]
        known.reward = reward
        give_up = time.monotonic() + _GIVE_UP_S
        while time.monotonic() < give_up:
            code, answer = self.call("reward", {"id": id_, "reward": reward})
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
                code, again = self.call("reward", {"id": id_, "reward": value})
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
        site, notes, stop = Site(folder, None, None), Notes(), threading.Event()
        threads = [Caller(i, lambda: site.running.url, notes, stop) for i in range(callers)]
        try:
            for thread in threads:
                thread.start()
            for i in range(kills):
                time.sleep(rng.uniform(*_PAUSE_S))
                wait_in_flight(threads, callers // 2)
                died.append(time.monotonic())
                site.kill("all")
                progress(f"kill {i + 1}/{kills}: {len(notes.choices):,} choices")
            stop.set()
            for thread in threads:
                thread.join(_GIVE_UP_S)
            settings = load(path, {}, {})
            wait_given(settings, "shop")
            findings = wait_complete(site.running, settings, "shop")
            learned = int(status(site.running, "shop")["learned"])
        finally:
            stop.set()
            site.stop()
        found = judge(settings, notes, died)
        return Result(
            kills=kills, learned=learned, fsck_good=findings.good,
            statuses=dict(notes.statuses), seconds=time.monotonic() - begun, **found,
        )  # fmt: skip


def judge(settings: Settings, notes: Notes, died: Sequence[float]) -> dict[str, Any]:
    """Compare what callers know with the rows of the journal."""
    keys = Keys.from_file(settings.key_path)
    tokens = Tokens(keys, "shop", Nonces(bytes(6)))
    rows, count = dict[str, list[tuple[Choice, float]]](), 0
    for row in journal_rows(settings, "shop"):
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
