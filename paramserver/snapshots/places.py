"""Where snapshots are: a directory, or a URI of any filesystem that pyarrow reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from paramserver.errors import StartRefused
from paramserver.snapshots.store import DirectorySnapshots, Disk

_SPEC_CHARS: Final = 16  # as many of a spec's hash as tell lineages apart


def lineage_place(place: str, model: str, spec: str) -> str:
    """Place of one lineage's snapshots under the ``place`` of all: ``PLACE/MODEL/SPEC[:16]``.

    The query of a URI (``s3://bucket/prefix?region=…``) stays behind the path.
    """
    below = f"{model}/{spec[:_SPEC_CHARS]}"
    if "://" not in place:
        return str(Path(place) / below)
    before, mark, query = place.partition("?")
    return f"{before.rstrip('/')}/{below}{mark}{query}"


def open_snapshots(place: str, disk: Disk | None = None) -> DirectorySnapshots:
    """The snapshots of one lineage.

    Parameters
    ----------
    place
        A path, or a URI; see :func:`lineage_place`.
    disk
        How a directory is written; a URI of another filesystem does not use it.
    """
    if "://" not in place:
        return DirectorySnapshots(Path(place), disk)
    uri = urlsplit(place)
    if uri.scheme == "file":
        return DirectorySnapshots(Path(unquote(uri.path)), disk)
    raise StartRefused(f"snapshots can't be kept in {place!r}", "name a directory")
