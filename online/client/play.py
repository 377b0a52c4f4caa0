"""Plays a stream against a running service, test then learn, beside honest baselines."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from evaluation.metrics import Task, increments, majority, summarise
from evaluation.streams import Stream
from online.client.calls import Retry, ServiceRefused
from online.client.client import Client
from online.errors import ClientError, OnlineError
from online.messages.model_status import short
from online.messages.structs import Prediction
from replay.example import Features, Label

log = logging.getLogger(__name__)

_RETRY: Final = Retry(attempts=1000, give_up_s=30.0, cap_s=0.5)  # long enough for a restart
_LOG_AFTER_S: Final = 2.0  # waiting time for one row after which it is logged
TOKEN_REMEDY: Final = "Set ONLINE_TOKEN to a token with the roles predict and feedback"


class PlayFailed(OnlineError):
    """The service refused a row, or did not answer for too long."""

    definite = False
    problem: str
    remedy: str
    text = "{problem}. {remedy}"


@dataclass(slots=True)
class Score:
    """Prequential score of the rows played so far.

    Attributes:
        before: Events that the model had learned before the stream began: it may know the rows.
    """

    task: Task
    counters: dict[str, float] = field(default_factory=dict)
    newest: Label | None = None
    rows: int = 0
    retries: int = 0
    before: int = 0

    def add(self, label: Label, answer: Prediction) -> None:
        """Count a prediction and its label, which was not known at the time of the prediction."""
        shown = answer.probabilities
        probabilities = None
        if not isinstance(shown, msgspec.UnsetType):
            quote = isinstance(label, str)
            probabilities = {json.dumps(k) if quote else k: p for k, p in shown.items()}
        added = increments(
            self.task,
            label=label,
            predicted=answer.prediction,
            probabilities=probabilities,
            no_change=self.newest,
            majority=majority(self.task, self.counters),
        )
        for key, value in added.items():
            self.counters[key] = self.counters.get(key, 0) + value
        self.newest = label
        self.rows += 1

    def summary(self) -> dict[str, float | None]:
        """The metrics, with their baselines."""
        return dict(summarise(self.task, self.counters))


def play(
    stream: Stream,
    url: str,
    model: str,
    *,
    rate: float | None,
    rows: int | None,
    times: int,
    source: str,
    stopped: Callable[[], bool],
    token: str | None = None,
    texts: Collection[str] = (),
) -> Iterator[Score]:
    """Predict each row, send its label, and yield the score after each row.

    Each label is sent with its prediction's id, so that repeats after a lost response count once.

    Parameters:
        rate: Rows per second; None: as fast as possible.
        rows: Rows per pass; None: all.
        times: Number of passes over the stream.
        token: Needs the roles predict and feedback.
        texts: Features that the model declares as texts or categories: numbers are sent as texts.
    """
    score = Score(stream.task)
    begun = time.monotonic()
    row, waited = 0, 0.0

    def pause(seconds: float) -> None:
        nonlocal row, waited
        if stopped():
            raise PlayFailed(f"model {model}: no answer before the end", "Play it again")
        before = waited if row == score.rows else 0.0
        row, waited = score.rows, before + seconds
        if before < _LOG_AFTER_S <= waited:
            log.warning("model %s: no answer; asking again for %g s", model, _RETRY.give_up_s)
        score.retries += 1
        time.sleep(seconds)

    with _as_play_failed(model), Client(url, token=token, retry=_RETRY, sleep=pause) as client:
        score.before = int(client.status(model)["learned"])
        names = label_names(client, model, stream)
        for _ in range(times):
            for i, (features, canonical) in enumerate(stream.rows):
                label = names[bool(canonical)] if names else canonical
                if stopped() or (rows is not None and i >= rows):
                    break
                if rate is not None:
                    ahead = begun + score.rows / rate - time.monotonic()
                    if ahead > 0:
                        time.sleep(ahead)
                answer = client.predict(model, _declared(features, texts))
                score.add(label, answer)
                receipt = client.feedback(model, label, id=answer.id, source=source)
                if receipt.status in ("conflict", "expired", "failed"):
                    message = f"model {model}: a label was answered {receipt.status}"
                    raise PlayFailed(message, "Check that model and stream fit")
                yield score
            if stopped():
                return


def _declared(features: Features, texts: Collection[str]) -> Features:
    """Return the row with these numbers as texts; 17.0 is the category 17."""
    if not texts:
        return features
    return {
        name: str(int(v) if v.is_integer() else v) if name in texts and type(v) is float else v
        for name, v in features.items()
    }


@contextlib.contextmanager
def _as_play_failed(model: str) -> Iterator[None]:
    """Convert errors of the client to PlayFailed, with a problem and its remedy."""
    try:
        yield
    except ServiceRefused as error:
        remedy = "Check that model and stream fit"
        if error.status in (401, 403):
            remedy = TOKEN_REMEDY
        raise PlayFailed(f"model {model}: {error}", remedy) from error
    except ClientError as error:
        problem = f"model {model}: {error}"
        raise PlayFailed(problem, "Is the service running? See `online status`") from error


def label_names(client: Client, model: str, stream: Stream) -> list[Label] | None:
    """Return the service's names of the two labels of a binary model; None for other tasks."""
    status = client.status(model)
    if status["task"] != stream.task and (status["task"], stream.task) != ("anomaly", "binary"):
        raise PlayFailed(
            f"{stream.name} is a {stream.task} stream, model {model} is {status['task']}",
            "Serve a model of that task",
        )
    names: list[Label] | None = status["labels"]
    return names


def line(score: Score, n_rows: int) -> str:
    """One line of progress: the score beside its baselines, and the number of the pass."""
    s = score.summary()
    turn, row = divmod(max(score.rows - 1, 0), n_rows)
    again = ""
    if turn:
        again = f"  (pass {turn + 1}: all rows were seen before)"
    elif score.before:
        again = f"  (rows perhaps seen before: the model had learned {score.before:,})"
    if score.task == "regression":
        values = {"MAE": "mae", "mean so far": "mean_mae", "last": "last_mae"}
    else:
        values = {"accuracy": "accuracy", "majority": "majority", "no-change": "no_change",
                  "kappa-M": "kappa_m", "kappa-T": "kappa_t"}  # fmt: skip
    text = "  ".join(f"{name} {short(s[key])}" for name, key in values.items())
    return f"row {row + 1:>6,}/{n_rows:,}  {text}{again}"
