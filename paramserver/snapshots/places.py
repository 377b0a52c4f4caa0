"""Opens the place of snapshots: a directory, or a URI of a filesystem that pyarrow supports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import unquote, urlsplit

from paramserver.errors import StartRefused
from paramserver.snapshots.store import DirectorySnapshots, Disk
from refusals import installing

if TYPE_CHECKING:
    from paramserver.snapshots.objects import ObjectSnapshots

Snapshots: TypeAlias = "DirectorySnapshots | ObjectSnapshots"

_SPEC_CHARS: Final = 16  # leading characters of the spec hash, enough to be unique


def lineage_place(place: str, model: str, spec: str) -> str:
    """Return the place of one lineage's snapshots: ``PLACE/MODEL/SPEC[:16]``.

    The query of a URI (``s3://bucket/prefix?region=…``) stays behind the path.
    """
    below = f"{model}/{spec[:_SPEC_CHARS]}"
    if "://" not in place:
        return str(Path(place) / below)
    before, mark, query = place.partition("?")
    return f"{before.rstrip('/')}/{below}{mark}{query}"


def open_snapshots(place: str, disk: Disk | None = None) -> Snapshots:
    """Open the place of one lineage's snapshots without changing anything there.

    Parameters:
        place: A path, or a URI: ``file:///…`` (the same as its path), or one of pyarrow's:
            ``s3://bucket/prefix``, ``gs://…``, ``abfss://…``, ``hdfs://…``.
        disk: Performs the writes to a directory.  Object stores do not use it.

    Raises:
        StartRefused: Such a place cannot be used here; the message names the remedy.
        OSError: The place cannot be reached.
    """
    if "://" not in place:
        return DirectorySnapshots(Path(place), disk)
    uri = urlsplit(place)
    if uri.scheme == "file":  # pyarrow's local filesystem neither syncs nor renames atomically
        if uri.netloc not in ("", "localhost"):
            raise StartRefused(
                f"{place!r} names a directory on the machine {uri.netloc!r}",
                "write a local one with three slashes: file:///directory",
            )
        return DirectorySnapshots(Path(unquote(uri.path)), disk)
    try:
        from paramserver.snapshots.objects import open_uri
    except ImportError as error:
        raise StartRefused(
            f"snapshots in {uri.scheme}://… need pyarrow, which can't be imported ({error})",
            f"install it with: {installing('store')}",
        ) from error
    return open_uri(place)
