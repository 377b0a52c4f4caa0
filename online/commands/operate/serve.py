"""`online serve`: runs the service in the foreground, until Ctrl-C."""

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
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from online import __version__
from online.commands.base import File, Reached, StateDir, in_private, load_settings
from online.errors import ConfigError, OnlineError, StartRefused
from online.settings import config
from paramserver.errors import ParamServerError
from paramserver.process.acting import acting
from replay.errors import ReplayError

if TYPE_CHECKING:
    from evaluation.metrics import Task
    from evaluation.streams import Stream

KNOWN_ERRORS = (OnlineError, ParamServerError, ReplayError, OSError)
_STOP_S = 4.0  # after this long everything is killed, which takes up to a second
_TEND_S = 0.25
_SETTLED_S = 1.0  # between two readings of the settings
_READINGS_MAX = 10
_importing = threading.Lock()  # two threads that import one library may find half of it


def serve(
    path: File = None,
    state_dir: StateDir = None,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 chooses a free one")] = None,
    replicas: Annotated[int | None, typer.Option(help="number of replicas")] = None,
    play: Annotated[str | None, typer.Option(help="play this stream until Ctrl-C")] = None,
    rate: Annotated[float, typer.Option(help="rows per second of --play")] = 100.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="begin without the learned state")] = False,
    relearn: Annotated[
        bool, typer.Option("--relearn", help="learn the whole journal again")
    ] = False,
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss", help="continue the newest snapshot without rows that the journal lost"
        ),
    ] = False,
) -> None:
    """Start the service and keep it running until Ctrl-C.  SIGHUP: read the settings again.

    With a file model.py it serves that model in one process: see docs/embedded.md.

    Example: online serve online.yaml
    """

    def load() -> config.Settings:
        return load_settings(path, state_dir=state_dir, port=port, replicas=replicas)

    settings = load()
    token = _token_to_play(settings, play)
    stream = None if play is None else _stream(play, settings.models[0].task)
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


def _say(line: str, to: TextIO | None = None) -> None:
    """Print a line, to standard output by default; the service goes on if nobody takes it.

    The disk of its log may be full, or its terminal gone.
    """
    with contextlib.suppress(OSError):
        print(line, file=to, flush=True)


class _Foreground:
    """The service in a terminal: its start, signal handling and end.

    Parameters:
        load: Reads the settings again.

    Attributes:
        running: The service.
        started: Whether the start is complete; a signal before that aborts the start.
        stop: Set by the first signal to end.
    """

    def __init__(self, settings: config.Settings, load: Callable[[], config.Settings]) -> None:
        self.stop, self._hangup = threading.Event(), threading.Event()
        self._settings, self._load = settings, load
        self.started = False
        signal.signal(signal.SIGHUP, lambda *_: self._hangup.set())
        self.running = _service(settings, self._say)

    def run(self, begin: Callable[[], None]) -> int:
        """Start, and run until a signal or a failure; returns the exit code when all has ended."""
        _say(f"online {__version__}, state in {self._settings.state_dir}")
        code = 0
        try:
            self._take_signals()
            begin()
            code = self._watch()
            if code:  # a gentle stop, or Ray's own at exit, would wait for processes that are gone
                _kill(self.running, code)
            _say("\nstopping: replicas push what they have learned")
        except (_GivenUp, KeyboardInterrupt, SystemExit):  # SystemExit: Ray's own SIGTERM handler
            code = 130
        except Exception as error:
            if self.started or not self.stop.is_set():
                code = _failed(error)
                if not isinstance(error, KNOWN_ERRORS):  # a bug of ours
                    raise
            else:
                code = 130  # a signal interrupted an import, which then raised another error
        finally:
            self.stop.set()
            _stop(self.running, code)
        return code

    def _watch(self) -> int:
        if self._settings.cluster == config.EMBEDDED:
            return _watch_embedded(self.running, self.stop, self._hangup, self._load)
        return _watch(self.running, self.stop, self._hangup, self._load)

    def _take_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _say(self, line: str) -> None:
        if threading.current_thread() is threading.main_thread():
            self._take_signals()  # replaces Ray's handlers, which abort
        _say(f"  {line}")  # last, because a reader of the line may send a signal

    def _on_signal(self, number: int, frame: object) -> None:
        if self.stop.is_set():  # the second signal: end at once
            self.running.kill()
            os._exit(130)
        self.stop.set()
        if not self.started:
            raise _GivenUp


def _token_to_play(settings: config.Settings, play: str | None) -> str | None:
    token = config.own_token(settings, config.environment())
    if play is not None and settings.tokens and token is None:
        hint = "Set ONLINE_TOKEN to a token for predict and feedback"
        raise ConfigError("--play", "the settings have digests of tokens, but no token", hint)
    return token


def _failed(error: Exception) -> int:
    """Print the error before the stop, which may take long or hang; returns the exit code."""
    text = ". ".join(str(error).splitlines())
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}. Give places that can be read and written"
    elif not isinstance(error, KNOWN_ERRORS):
        text = f"{type(error).__name__}: {text}"
    _say(f"online: {text}", sys.stderr)
    return 1


class _GivenUp(BaseException):
    """A signal came before the service was up.

    It is no KeyboardInterrupt: when one passes through an `exec`, of which imports have many,
    Python ends itself by SIGINT instead of with our exit code, even if it was handled
    (`run_eval_code_obj`).
    """


def _stop(running: Any, code: int) -> None:
    """Stop the service gently, and kill it if that takes too long."""
    watchdog = threading.Timer(_STOP_S, _kill, args=(running, code))
    watchdog.daemon = True
    with contextlib.suppress(RuntimeError):  # no memory for a thread: go on without a watchdog
        watchdog.start()
    running.stop()
    watchdog.cancel()


def _change(what: str, step: Callable[[], list[str]]) -> None:
    try:
        lines = step()
    except Exception as error:  # whatever is wrong, the service goes on as before
        lines = [f"not {what}: {error}", "the service continues unchanged"]
    for line in lines:
        _say(f"  {line}")


def _reload(running: Any, load: Callable[[], config.Settings]) -> list[str]:
    """Apply the present settings, and record the result in the audit log."""
    from online.audit.log import note
    from online.settings.places import open_journal

    _say("  reading the settings again")
    settings = _settled(load)
    with _importing:
        lines: list[str] = running.reload(settings)
    acting.set("a signal (SIGHUP)")
    with contextlib.closing(open_journal(settings)) as journal:
        note(journal, "settings", None, {"lines": lines})
    return lines


def _settled(
    load: Callable[[], config.Settings], sleep: Callable[[float], None] = time.sleep
) -> config.Settings:
    """Read the settings until two readings are equal: an editor may have written half of a file.

    Raises ConfigError if they have an error, and StartRefused if they go on changing.
    """
    read = _read(load)
    for _ in range(_READINGS_MAX):
        sleep(_SETTLED_S)
        before, read = read, _read(load)
        if read == before:
            return read if isinstance(read, config.Settings) else load()
    raise StartRefused("the settings change while they are read", "Send SIGHUP when all is written")


def _read(load: Callable[[], config.Settings]) -> config.Settings | str:
    """Return the settings, or the text of the error in them."""
    try:
        return load()
    except ConfigError as error:
        return str(error)


def _service(settings: config.Settings, progress: Callable[[str], None]) -> Any:
    """Make the service of the settings, in one process or on Ray, without starting it."""
    if settings.cluster == config.EMBEDDED:
        from online.service.embedded import Embedded

        return Embedded(in_private(settings), progress)
    from online.service.service import Service

    return Service(settings, progress)


def _watch(
    running: Any,
    stop: threading.Event,
    hangup: threading.Event,
    load: Callable[[], config.Settings],
) -> int:
    """Run until a signal (returns 0), or until Ray has stopped (returns 2).

    At SIGHUP the settings are read again.  Promotions, reshardings and upgrades of the defaults are
    applied when they are decided.
    """
    changing: threading.Thread | None = None
    tending: threading.Thread | None = None  # a thread, because a stalled disk must not block this
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
            _say("Ray has stopped, so the service ends; start it again", sys.stderr)
            return 2
    return 0


def _watch_embedded(
    running: Any,
    stop: threading.Event,
    hangup: threading.Event,
    load: Callable[[], config.Settings],
) -> int:
    """Run until a signal (returns 0), or until the service has ended by itself (returns 2)."""
    while not stop.wait(_TEND_S):
        if hangup.is_set():
            hangup.clear()
            _change("reloaded", partial(_reload, running, load))
        if not running.alive():
            _say("the service has ended; start it again", sys.stderr)
            return 2
    return 0


def _kill(running: Any, code: int) -> None:
    running.kill()
    os._exit(code)


def _print_urls(settings: config.Settings, url: str) -> None:
    _say(f"\n  {url}/          status page: models and metrics")
    _say(f"  {url}/docs      API documentation")
    _say(f"  {url}/metrics   Prometheus\n")
    _say(f"  models: {', '.join(m.name for m in settings.models)}   stop with Ctrl-C\n")
    _say(f"  online status --state-dir {settings.state_dir}")
    if name := next((m.name for m in settings.models if m.choose is None), None):
        _say(f"  online stream NAME --model {name} --state-dir {settings.state_dir}")
    _say("")


def _stream(name: str, task: Task) -> Callable[[], Stream]:
    """Return a function that opens the stream to play; refuse an unusable one before the start.

    A stream of a library is opened when it is played: it imports scikit-learn, and whether that is
    imported can be part of the spec of a user's model.
    """
    from evaluation.streams import is_installed
    from online.tables.streams import stream_of

    open_it = partial(stream_of, name, config.data_dir(), task=task)
    if is_installed(name):
        return open_it
    stream = open_it()
    return lambda: stream


def _play_forever(
    reached: Reached,
    settings: config.Settings,
    open_it: Callable[[], Stream],
    rate: float,
    stop: threading.Event,
) -> None:
    from online.client.play import PlayFailed, line, play

    with _importing:
        stream = open_it()
    model = settings.models[0].name
    _say(f"  playing {stream.name} ({stream.n_rows:,} rows) at {rate:g} rows/s, over and over\n")
    printed_s = time.monotonic()
    try:
        scores = play(
            stream, reached.url, model, rate=rate, rows=None, times=10**9, source="play",
            stopped=stop.is_set, token=reached.token,
        )  # fmt: skip
        for score in scores:
            if time.monotonic() - printed_s >= 2.0:
                printed_s = time.monotonic()
                _say(f"  {line(score, stream.n_rows)}")
    except PlayFailed as error:
        if not stop.is_set():
            _say(f"  playing stopped: {error}", sys.stderr)
