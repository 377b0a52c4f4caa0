"""`online serve`: the service in the foreground, until Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from online import __version__
from online.commands.base import File, Reached, StateDir, in_private, load_settings
from online.errors import ConfigError, OnlineError
from online.settings import config
from paramserver.errors import ParamServerError
from paramserver.process.acting import acting
from replay.errors import ReplayError

if TYPE_CHECKING:
    from evaluation.streams import Stream

KNOWN_ERRORS = (OnlineError, ParamServerError, ReplayError, OSError)
_STOP_S = 4.0  # then everything is ended at once, which takes up to a second
_TEND_S = 0.25


def serve(
    path: File = None,
    state_dir: StateDir = None,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 takes a free one")] = None,
    replicas: Annotated[int | None, typer.Option(help="how many replicas")] = None,
    play: Annotated[str | None, typer.Option(help="play this stream until Ctrl-C")] = None,
    rate: Annotated[float, typer.Option(help="rows a second of --play")] = 100.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="begin without what was learned")] = False,
    relearn: Annotated[
        bool, typer.Option("--relearn", help="learn the whole journal again")
    ] = False,
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss", help="go on from the newest snapshot without what the journal lost"
        ),
    ] = False,
) -> None:
    """Start the service and keep it running until Ctrl-C.  SIGHUP: read the settings again.

    Of a file model.py its model is served, in one process: see docs/embedded.md.

    Example: online serve online.yaml
    """

    def load() -> config.Settings:
        return load_settings(path, state_dir=state_dir, port=port, replicas=replicas)

    settings = load()
    token = _token_to_play(settings, play)
    stream = None if play is None else _stream(play)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    foreground = _Foreground(settings, load)

    def begin() -> None:
        foreground.running.start(fresh=fresh, relearn=relearn, accept_loss=accept_loss)
        foreground.started = True
        if settings.cluster == config.EMBEDDED:
            from online.service.parts.garbage import collect_seldom

            collect_seldom()
        url = foreground.running.url
        _print_urls(settings, url)
        if stream is not None:
            to_play = (Reached(url, token), settings, stream, rate, foreground.stop)
            threading.Thread(target=_play_forever, args=to_play, daemon=True).start()

    raise typer.Exit(foreground.run(begin))


class _Foreground:
    """The service of a terminal: its start, its signals and its end.

    Parameters:
        load: Reads the settings again.

    Attributes:
        running: The service.
        started: Whether it is up: a signal before gives the start up, wherever it is.
        stop: Set by the first signal to end.
    """

    def __init__(self, settings: config.Settings, load: Callable[[], config.Settings]) -> None:
        self.stop, self._hangup = threading.Event(), threading.Event()
        self._settings, self._load = settings, load
        self.started = False
        signal.signal(signal.SIGHUP, lambda *_: self._hangup.set())
        self.running = _service(settings, self._say)

    def run(self, begin: Callable[[], None]) -> int:
        """Begin, and go on until a signal or a failure; the exit code, when all has ended."""
        print(f"online {__version__}, state in {self._settings.state_dir}", flush=True)
        code = 0
        try:
            begin()
            code = self._watch()
            if code:  # nobody answers what a gentle end, or Ray's own at exit, would ask for
                _kill(self.running, code)
            print("\nstopping: replicas push what they have learned", flush=True)
        except (_GivenUp, KeyboardInterrupt):
            code = 130
        except Exception as error:
            if self.started or not self.stop.is_set():
                code = _failed(error)
                if not isinstance(error, KNOWN_ERRORS):  # a mistake of ours
                    raise
            else:
                code = 130  # given up in the middle of an import, which made another error of it
        finally:
            self.stop.set()
            _stop(self.running, code)
        return code

    def _watch(self) -> int:
        if self._settings.cluster == config.EMBEDDED:
            return _watch_embedded(self.running, self.stop, self._hangup)
        return _watch(self.running, self.stop, self._hangup, self._load)

    def _say(self, line: str) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):  # Ray puts its own in, which aborts
                signal.signal(number, self._on_signal)
        print(f"  {line}", flush=True)  # whoever reads it may send a signal

    def _on_signal(self, number: int, frame: object) -> None:
        if self.stop.is_set():  # the second one: at once
            self.running.kill()
            os._exit(130)
        self.stop.set()
        if not self.started:
            raise _GivenUp


def _token_to_play(settings: config.Settings, play: str | None) -> str | None:
    token = config.own_token(settings, config.environment())
    if play is not None and settings.tokens and token is None:
        hint = "Set ONLINE_TOKEN to a token for predict and feedback"
        raise ConfigError("--play", "the settings hold digests of tokens, and none to send", hint)
    return token


def _failed(error: Exception) -> int:
    """Say on the terminal why it does not go on, before the end, which may take long, or hang."""
    text = ". ".join(str(error).splitlines())
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}. Give places that can be read and written"
    elif not isinstance(error, KNOWN_ERRORS):
        text = f"{type(error).__name__}: {text}"
    print(f"online: {text}", file=sys.stderr, flush=True)
    return 1


class _GivenUp(BaseException):
    """A signal came before the service was up.

    No KeyboardInterrupt: one that passes through an `exec`, as imports have many, makes Python end
    itself by SIGINT instead of with our exit code, even if it was handled (`run_eval_code_obj`).
    """


def _stop(running: Any, code: int) -> None:
    """End it gently, and if that takes too long, at once."""
    watchdog = threading.Timer(_STOP_S, _kill, args=(running, code))
    watchdog.daemon = True
    with contextlib.suppress(RuntimeError):  # no memory for a thread: then without it
        watchdog.start()
    running.stop()
    watchdog.cancel()


def _change(what: str, step: Callable[[], list[str]]) -> None:
    try:
        lines = step()
    except Exception as error:  # whatever is wrong with what is new, what ran before goes on
        lines = [f"not {what}: {error}", "the service goes on as it was"]
    for line in lines:
        print(f"  {line}", flush=True)


def _reload(running: Any, load: Callable[[], config.Settings]) -> list[str]:
    """Go over to the settings as they are now, and log what came of it."""
    from online.audit.log import note
    from online.settings.places import open_journal

    settings = load()
    lines: list[str] = running.reload(settings)
    acting.set("a signal (SIGHUP)")
    with contextlib.closing(open_journal(settings)) as journal:
        note(journal, "settings", None, {"lines": lines})
    return lines


def _service(settings: config.Settings, said: Callable[[str], None]) -> Any:
    """The service of the settings, in one process or with Ray; it is not started."""
    if settings.cluster == config.EMBEDDED:
        from online.service.embedded import Embedded

        return Embedded(in_private(settings), said)
    from online.service.service import Service

    return Service(settings, said)


def _watch(
    running: Any,
    stop: threading.Event,
    hangup: threading.Event,
    load: Callable[[], config.Settings],
) -> int:
    """Until a signal (0), or until Ray is gone (2).

    At SIGHUP the settings are read again; a model that was promoted takes its place, and one of
    today's defaults begins or ends beside it.
    """
    changing: threading.Thread | None = None
    tending: threading.Thread | None = None  # a disk that stalls must not hold this loop
    while not stop.wait(_TEND_S):
        if changing is None or not changing.is_alive():
            change = None
            if hangup.is_set():
                hangup.clear()
                change = partial(_change, "reloaded", partial(_reload, running, load))
            elif (decided := running.decided()) is not None:
                change = partial(_change, *decided)
            if change is not None:
                changing = threading.Thread(target=change, daemon=True)
                changing.start()
        if tending is None or not tending.is_alive():
            tending = threading.Thread(target=running.tend, daemon=True)
            tending.start()
        if not running.alive():
            print("Ray has stopped: the service can't go on; start it again", file=sys.stderr)
            return 2
    return 0


def _watch_embedded(running: Any, stop: threading.Event, hangup: threading.Event) -> int:
    """Until a signal (0), or until the service has ended by itself (2)."""
    while not stop.wait(_TEND_S):
        if hangup.is_set():
            hangup.clear()
            print("  with `cluster: embedded` new settings need a restart", flush=True)
        if not running.alive():
            print("the service has ended; start it again", file=sys.stderr)
            return 2
    return 0


def _kill(running: Any, code: int) -> None:
    running.kill()
    os._exit(code)


def _print_urls(settings: config.Settings, url: str) -> None:
    name = settings.models[0].name
    print(f"\n  {url}/          what is served, and how good it is")
    print(f"  {url}/docs      every request and answer")
    print(f"  {url}/metrics   Prometheus\n")
    print(f"  models: {', '.join(m.name for m in settings.models)}   stop with Ctrl-C\n")
    print(f"  online status --state-dir {settings.state_dir}", flush=True)
    print(f"  online stream NAME --model {name} --state-dir {settings.state_dir}\n", flush=True)


def _stream(name: str) -> Callable[[], Stream]:
    """Return what opens the stream to play; an unusable one is refused before anything starts.

    A library's own stream is opened when it is played: it imports scikit-learn, and whether that is
    there is part of what a model of one's own is known by.
    """
    from evaluation.streams import is_installed, open_stream

    opened = partial(open_stream, name, config.data_dir())
    if is_installed(name):
        return opened
    stream = opened()
    return lambda: stream


def _play_forever(
    reached: Reached,
    settings: config.Settings,
    opened: Callable[[], Stream],
    rate: float,
    stop: threading.Event,
) -> None:
    from online.client.play import PlayFailed, line, play

    stream = opened()
    model = settings.models[0].name
    print(f"  playing {stream.name} ({stream.n_rows:,} rows) at {rate:g} rows/s, over and over\n")
    shown = time.monotonic()
    try:
        scores = play(
            stream, reached.url, model, rate=rate, rows=None, times=10**9, source="play",
            stopped=stop.is_set, token=reached.token,
        )  # fmt: skip
        for score in scores:
            if time.monotonic() - shown >= 2.0:
                shown = time.monotonic()
                print(f"  {line(score, stream.n_rows)}", flush=True)
    except PlayFailed as error:
        if not stop.is_set():
            print(f"  playing stopped: {error}", file=sys.stderr, flush=True)
