"""Object stores of the tests' own: any filesystem of pyarrow that can crash, and an S3 server."""

from __future__ import annotations

import importlib.util
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import pyarrow
from pyarrow import fs
from snapshot_checks import Crash

from paramserver.snapshots.objects import ObjectSnapshots

NO_S3 = "no S3 server: pip install 'moto[s3]' flask flask-cors"


class _Upload(io.BytesIO):
    """An object that is there when its stream is closed, as object stores do it."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        super().__init__()
        self._put = put

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            self._put(data)


class ObjectWorld(fs.FileSystemHandler):  # type: ignore[misc]
    """A filesystem of pyarrow that can stop before any change.

    ``replaces_whole`` False: what was being written may be there in part, as on HDFS and Azure.
    """

    def __init__(self, inner: Any, prefix: str, *, replaces_whole: bool = True) -> None:
        self.inner, self.prefix, self.replaces_whole = inner, prefix, replaces_whole
        self.crash_at: int | None = None
        self.steps = 0
        self.writing: tuple[str, bytes] | None = None
        self.before_change: Callable[[str, str], None] = lambda action, path: None

    def _step(self, action: str, path: str) -> None:
        if self.crash_at is not None and self.steps >= self.crash_at:
            raise Crash
        self.steps += 1
        self.before_change(action, path)

    def contents(self) -> dict[str, bytes]:
        """All objects under the prefix."""
        found = self.inner.get_file_info(fs.FileSelector(self.prefix, allow_not_found=True))
        return {i.path: self.read(i.path) for i in found if i.type == fs.FileType.File}

    def read(self, path: str) -> bytes:
        with self.inner.open_input_file(path) as stream:
            return bytes(stream.read())

    def write(self, path: str, data: bytes) -> None:
        with self.inner.open_output_stream(path, compression=None) as stream:
            stream.write(data)

    def files(self) -> list[str]:
        return list(self.contents())

    def outcomes(self) -> Iterator[Self]:
        kept = self.contents()
        parts: list[dict[str, bytes]] = [{}]
        if self.writing is not None and not self.replaces_whole:
            path, data = self.writing
            parts += [{path: data[:length]} for length in {0, len(data) // 2, len(data)}]
        for part in parts:
            for path in self.contents():
                self.inner.delete_file(path)
            for path, data in {**kept, **part}.items():
                self.write(path, data)
            yield type(self)(self.inner, self.prefix, replaces_whole=self.replaces_whole)

    def get_type_name(self) -> str:
        return "tested"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> Any:
        return self.inner.get_file_info(paths)

    def get_file_info_selector(self, selector: Any) -> Any:
        return self.inner.get_file_info(selector)

    def open_input_file(self, path: str) -> Any:
        return self.inner.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        def put(data: bytes) -> None:
            self.writing = (path, data)
            self._step("write", path)
            self.write(path, data)
            self.writing = None

        return pyarrow.PythonFile(_Upload(put), mode="w")

    def delete_file(self, path: str) -> None:
        self._step("delete", path)
        self.inner.delete_file(path)

    def _unused(self, *args: Any) -> Any:
        raise NotImplementedError("snapshots need no more than a plain object store has")

    copy_file = create_dir = delete_dir = delete_dir_contents = _unused
    delete_root_dir_contents = move = open_append_stream = open_input_stream = _unused


def memory_world(*, replaces_whole: bool = True) -> ObjectWorld:
    """A store in memory."""
    inner = fs._MockFileSystem()
    inner.create_dir("bucket/prefix", recursive=True)
    return ObjectWorld(inner, "bucket/prefix", replaces_whole=replaces_whole)


def open_store(world: ObjectWorld) -> ObjectSnapshots:
    return ObjectSnapshots(fs.PyFileSystem(world), world.prefix)


def has_s3_server() -> bool:
    return all(importlib.util.find_spec(name) for name in ("moto", "flask", "flask_cors"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_s3(bound_s: float = 120.0) -> Iterator[tuple[str, Any]]:
    """An S3 server in a process of its own with a bucket: URI query, and a filesystem."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "AWS_EC2_METADATA_DISABLED": "true"},
    )
    try:
        stop_s = time.monotonic() + bound_s
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, "the S3 server has ended"
                assert time.monotonic() < stop_s, f"no S3 server within {bound_s} s"
                time.sleep(0.02)
        filesystem = fs.S3FileSystem(
            access_key="key",
            secret_key="secret",
            endpoint_override=f"127.0.0.1:{port}",
            scheme="http",
            region="us-east-1",
            allow_bucket_creation=True,
        )
        filesystem.create_dir("bucket")
        yield f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1", filesystem
    finally:
        process.terminate()
        process.wait()
