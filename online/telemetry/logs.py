"""The service's log format: one line for each entry, on standard error."""

from __future__ import annotations

import logging
import sys

from replay.plain import plain


class Lines(logging.Formatter):
    """Formats each log entry as one line, with a traceback's lines indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the entry as text."""
        record.message = plain(record.getMessage())
        record.asctime = self.formatTime(record)
        text = self.formatMessage(record)
        if record.exc_info:
            lines = self.formatException(record.exc_info).split("\n")
            text = "\n  ".join((text, *map(plain, lines)))
        return text


def log_to_stderr(level: int) -> None:
    """Configure the service's loggers to write lines with time, level and name to stderr."""
    # Not sys.stderr: in replicas Serve replaces it, and keeps thousands of lines in memory.
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("online", "paramserver", "replay"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
