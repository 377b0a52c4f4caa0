"""What a disk refuses is said in one line, whether or not the error names a file."""

from __future__ import annotations

import errno
import os

import pytest

from online.commands.cli import run


def failing(error: OSError) -> None:
    raise error


@pytest.mark.parametrize(
    ("number", "name", "said"),
    [
        (errno.ENOSPC, None, "online: the disk: No space left on device"),
        (errno.EROFS, None, "online: the disk: Read-only file system"),
        (errno.ENOSPC, "/edge/a", "online: /edge/a: No space left on device"),
    ],
)
def test_a_disk_that_takes_nothing_is_no_traceback(
    capsys: pytest.CaptureFixture[str], number: int, name: str | None, said: str
) -> None:
    error = OSError(number, os.strerror(number), name)
    with pytest.raises(SystemExit) as ended:
        run(lambda: failing(error), "online")
    assert ended.value.code == 1
    assert capsys.readouterr().err.strip() == said


def test_an_error_of_no_disk_and_no_file_is_shown_whole() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        run(lambda: failing(OSError(errno.EBADF, os.strerror(errno.EBADF))), "online")
