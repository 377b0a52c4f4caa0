"""Makes reports that are requested over HTTP: runs `online report` as a process, one at a time.

Reading a journal takes seconds of CPU time; the process that answers predictions only waits.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Final

from online.errors import RequestError
from online.service.parts.command_settings import settings_file, without_settings
from online.settings.config import Settings
from online.settings.glimpse import environment
from refusals import installing

_NICENESS: Final = 10
_SAID: Final = 500  # characters of the command's error output that are passed on

Run = Callable[[Sequence[str], float], str]
"""Runs a command with a timeout in seconds and returns its standard error.

Raises subprocess.TimeoutExpired.
"""


class Reporting:
    """Makes HTML reports on the journal of a service.

    Parameters:
        run: Runs the command that makes a report.
    """

    def __init__(self, settings: Settings, run: Run | None = None) -> None:
        self._settings, self._run = settings, _run if run is None else run
        self._one = threading.Lock()

    def __call__(self, model: str, since: float, until: float) -> bytes:
        """The HTML report on a model between two times (POSIX seconds).  Raises RequestError."""
        if not self._one.acquire(blocking=False):
            hint = "Ask again after Retry-After"
            message = "another report is being made here"
            raise RequestError(429, "report_busy", message, None, hint, 5)
        try:
            return self._page(model, since, until)
        finally:
            self._one.release()

    def _page(self, model: str, since: float, until: float) -> bytes:
        wait_s = self._settings.limits.report_wait_s
        with settings_file(self._settings, "report-") as file:
            page = file.with_name("report.html")
            span = (f"--since={since:.3f}", f"--until={until:.3f}")
            command = [sys.executable, "-m", "online", "report", f"--model={model}", *span]
            try:
                output = self._run([*command, f"--config={file}", f"--out={page}"], wait_s)
            except subprocess.TimeoutExpired:
                hint = "Ask for a shorter span, raise limits.report_wait_s, or run online report"
                message = f"the report took more than {wait_s:g} s"
                raise RequestError(503, "report_late", message, None, hint) from None
            try:
                return page.read_bytes()
            except FileNotFoundError:
                message = output.strip()[-_SAID:] or "online report has made nothing"
                hint = "Run online report on the machine that has the journal"
                if "package that is missing" in message:
                    hint = f"Install it where the service runs: {installing('report')}"
                raise RequestError(503, "report_refused", message, None, hint) from None


def _run(command: Sequence[str], wait_s: float) -> str:
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, env=without_settings(environment()),
    ) as process:  # fmt: skip
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
        try:
            return process.communicate(timeout=wait_s)[1]
        except BaseException:
            process.kill()
            raise
