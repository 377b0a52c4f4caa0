"""Hostile feedback over HTTP: twenty senders of text messages, five of whom lie.

Messages of SMS Spam are dealt to twenty tokens, each of which stands for a source; a quarter of
the events come from the five.  What their lies are:

* *flip*: every label is the wrong one, from the start;
* *keyword*: messages with one word in them have the wrong label, all others the right one;
* *aimed*: nothing but spam with that word, called ham;
* *burst*: honest until half of the messages are sent, then every label wrong, four times as often.

A fifth of the messages is held back: how much of its spam is found at the end.  Beside it what the
same service finds without those events, and what it finds with them and without filters.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.datasets import sms
from benchmarks.fixtures.service import Running, service
from benchmarks.fixtures.several_replicas import Dealt
from online.settings.config import data_dir
from online.settings.model import ModelSettings
from replay import codec

HONEST: Final = tuple(f"user-{i:02}" for i in range(15))
HOSTILE: Final = tuple(f"liar-{i}" for i in range(5))
KINDS: Final = ("flip", "keyword", "aimed", "burst")
KEYWORD: Final = "call"

UPDATES_MAX: Final = 30.0
RECALL_POINTS: Final = 1.0
RATE_MIN: Final = 0.85
"""Hostile updates until quarantine; points of recall below the clean run; feedback rate."""

_ASKED: Final = 5
BURST: Final = 4
_MODEL: Final = "spam"
_PATH: Final = f"/v1/models/{_MODEL}"
_WARM: Final = 400

Post = tuple[str, str, bool, bool]
"""Source, text, label sent, and whether it is a lie."""


@dataclass(frozen=True, slots=True)
class Abuse:
    """One kind of lie.

    ``recall``, ``clean_recall`` and ``unfiltered_recall``: spam found among what is held back, in
    percent; with filters and lies, without those events, and without filters.  ``updates``: the
    most events of one liar, from its first lie on, until it is quarantined; infinite if it never
    was.
    ``rate``: events a second with filters, over those without.
    """

    what: str
    seed: int
    events: int
    recall: float
    clean_recall: float
    unfiltered_recall: float
    updates: float
    caught: int
    honest_quarantined: int
    honest_set_aside: int
    rate: float
    good: bool


def posts(messages: Sequence[tuple[str, bool]], kind: str, seed: int) -> Iterator[Post]:
    """Yield the messages to send, in order, with the lies of this kind among them."""
    draw = random.Random(seed)
    with_word = [text for text, spam in messages if spam and KEYWORD in text.lower()]
    for n, (text, spam) in enumerate(messages):
        late = n >= len(messages) // 2
        if draw.randrange(4):
            yield HONEST[draw.randrange(len(HONEST))], text, spam, False
            continue
        liar = HOSTILE[draw.randrange(len(HOSTILE))]
        if n < _WARM or (kind == "burst" and not late):
            yield liar, text, spam, False
        elif kind == "keyword":
            lie = KEYWORD in text.lower()
            yield liar, text, spam is not lie, lie
        elif kind == "aimed":
            yield liar, with_word[draw.randrange(len(with_word))], False, True
        else:
            yield liar, text, not spam, True
            for _ in range(BURST - 1 if kind == "burst" else 0):
                other, really = messages[draw.randrange(len(messages))]
                yield liar, other, not really, True


def run(
    rows: int | None = None,
    seeds: Sequence[int] = (0,),
    kinds: Sequence[str] = KINDS,
    play: Play | None = None,
) -> Iterator[Abuse]:
    """Each kind with each seed; three services each."""
    play = play or served
    for seed in seeds:
        messages = [(str(x["text"]), bool(y)) for x, y in sms(data_dir())]
        random.Random(seed).shuffle(messages)
        messages = messages[:rows]
        held = messages[::_ASKED]
        sent = [m for i, m in enumerate(messages) if i % _ASKED]
        for kind in kinds:
            lies = list(posts(sent, kind, seed))
            clean = play([post for post in lies if not post[3]], held, "default")
            found = play(lies, held, "default")
            bare = play(lies, held, "none")
            yield judge(kind, seed, found, clean, bare)


@dataclass(frozen=True, slots=True)
class Played:
    """The outcome of sending the posts to one service; :func:`judge` compares three of them."""

    events: int
    recall: float
    updates: Mapping[str, float]
    quarantined: frozenset[str]
    set_aside: Counter[str]
    rate: float


Play = Callable[[Sequence[Post], Sequence[tuple[str, bool]], str], Played]


def judge(kind: str, seed: int, found: Played, clean: Played, bare: Played) -> Abuse:
    """The line of a kind."""
    honest = len(found.quarantined.intersection(HONEST))
    caught = len(found.quarantined.intersection(HOSTILE))
    updates = max(found.updates.get(liar, float("inf")) for liar in HOSTILE)
    good = (
        found.recall >= clean.recall - RECALL_POINTS
        and updates <= UPDATES_MAX
        and honest == 0
        and found.rate >= RATE_MIN * bare.rate
    )
    return Abuse(
        kind, seed, found.events, found.recall, clean.recall, bare.recall, updates, caught,
        honest, sum(found.set_aside[name] for name in HONEST), found.rate / bare.rate, good,
    )  # fmt: skip


def _model(filters: str) -> dict[str, Any]:
    params = {"text": ["text"]}
    return {
        "name": _MODEL, "task": "binary", "learner": "linear", "params": params, "filters": filters,
    }  # fmt: skip


def alone(
    events: Sequence[Post], held: Sequence[tuple[str, bool]], filters: str, replicas: int = 2
) -> Played:
    """In this process, without HTTP and journal: quick, the same learners, filters and server."""
    loop = Dealt(ModelSettings.model_validate(_model(filters)), replicas)
    answers, begun = [], time.perf_counter()
    for source, text, label, _ in events:
        row = loop.step(source, {"text": text}, label)
        judged = codec.decode(row.payload).judged
        answers.append((row.verdict.value, "" if judged is None else judged.reason))
    rate = len(events) / (time.perf_counter() - begun)
    spam = [text for text, label in held if label]
    found = sum(loop.model.predict({"text": text}).label is True for text in spam)
    return of_answers(events, answers, 100.0 * found / len(spam), rate)


def served(events: Sequence[Post], held: Sequence[tuple[str, bool]], filters: str) -> Played:
    """By a service of two replicas, over HTTP."""
    admin = "admin-" + "a" * 32
    tokens = {name: f"{name}-" + "t" * 32 for name in (*HONEST, *HOSTILE)}
    settings = {
        "replicas": 2,
        "models": [_model(filters)],
        "tokens": {
            "predict": admin,
            "admin": admin,
            "feedback": [{"source": name, "token": token} for name, token in tokens.items()],
        },
    }
    with service(settings) as running:
        begun = time.perf_counter()
        answers = _send(running, events, tokens)
        rate = len(events) / (time.perf_counter() - begun)
        recall = _recall(running, held, admin)
    return of_answers(events, answers, recall, rate)


def of_answers(
    events: Sequence[tuple[str, Any, Any, bool]],
    answers: Sequence[tuple[str, str]],
    recall: float,
    rate: float,
) -> Played:
    """Work out what became of the sources from the statuses and reasons of the answers."""
    first: dict[str, int] = {}
    updates: dict[str, float] = {}
    set_aside, seen = Counter[str](), Counter[str]()
    for (source, _, _, lie), (status, reason) in zip(events, answers, strict=True):
        seen[source] += 1
        if lie:
            first.setdefault(source, seen[source] - 1)
        set_aside[source] += status == "quarantined"
        if status == "quarantined" and reason.endswith("the source is quarantined"):
            updates.setdefault(source, seen[source] - first.get(source, seen[source]))
    return Played(len(events), recall, updates, frozenset(updates), set_aside, rate)


def _send(
    running: Running, events: Sequence[Post], tokens: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Status and reason of each event."""
    out = []
    with contextlib.ExitStack() as stack:
        clients = {
            name: stack.enter_context(contextlib.closing(Connection(running.url, token=token)))
            for name, token in tokens.items()
        }
        for n, (source, text, label, _) in enumerate(events):
            event = {"features": {"text": text}, "label": label, "event_id": str(n)}
            code, answer = clients[source].post(f"{_PATH}/feedback", event)
            assert code in (200, 202), (code, answer)
            out.append((answer["status"], answer.get("reason", "")))
    return out


def _recall(running: Running, held: Sequence[tuple[str, bool]], token: str) -> float:
    spam = [text for text, label in held if label]
    found = 0
    with contextlib.closing(Connection(running.url, token=token)) as client:
        for at in range(0, len(spam), 200):
            asked = [{"text": text} for text in spam[at : at + 200]]
            code, answer = client.post(f"{_PATH}/predict", {"instances": asked})
            assert code == 200, answer
            found += sum(row["prediction"] is True for row in answer["predictions"])
    return 100.0 * found / len(spam)
