"""Values that are too many for one message, cut into parts.

Encoding, sending and taking a million numbers at once would stop both ends for a second.  A part
holds at most so many keys, in pieces that are decoded one by one.  Between two parts the values
change; the server keeps nothing for whoever fetches them.  That is right because blocks and keys
are only ever added at the end, and the changes since the first part's version come last: what
has changed meanwhile is in them, and what has not is in its part as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from paramserver.blocks import ARRAYS, ROWS, WHOLE, Block, Blocks, Touched, select, to_wire
from paramserver.rows import Rows
from paramserver.wire import Place, SyncRequest, Version, encode_piece

PART_KEYS: Final = 65_536
"""Keys of one part: a few megabytes, and a few milliseconds of the server's time."""

_PIECES: Final = 32  # of a part: each is the work of one turn of a replica's loop


class Parts:
    """Cuts the values of one server, or of a replica that answers in its place.

    Parameters
    ----------
    keys_max
        Keys of one part; a block without any counts as one, an array, which is not cut, by its
        numbers, and a row of a table as one or more by its width.
    """

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._piece_keys = max(keys_max // _PIECES, 1)
        self._listed: tuple[str, list[str], list[Any]] | None = None  # a block: keys, numbers

    def told(
        self,
        request: SyncRequest,
        values: Blocks,
        version: Version,
        changes_since: Callable[[Version | None], Touched | None],
    ) -> dict[str, Any]:
        """The fields of a reply that hold values of this version.  They share blocks with it.

        ``changes_since``: what was touched after a version; None: that is not known any more.
        """
        since, after = request.since, request.after
        if not request.values:
            return {"kind": "none", "blocks": {}}
        if since is not None and since > version:
            since = after = None  # begun with a replica that was further: begin anew here
        if since is not None and since[0] == version[0] and after and after[0] in values:
            return self._part(values, since, after)
        if (touched := changes_since(since)) is not None:
            return {"kind": "changes", "blocks": to_wire(select(values, touched)), "since": since}
        if self.fit(values):
            return {"kind": "all", "blocks": to_wire(values)}
        return self._part(values, version, None)

    def _part(self, values: Blocks, since: Version, start: Place | None) -> dict[str, Any]:
        pieces, after = self.cut(values, start)
        part = {"kind": "part", "blocks": {}, "since": since}
        return part | {"pieces": pieces, "start": start, "after": after}

    def fit(self, values: Blocks) -> bool:
        """Whether the values are few enough for one message: no more than a piece."""
        return sum(_size(block) for block in values.values()) <= self._piece_keys

    def cut(self, values: Blocks, start: Place | None) -> tuple[list[bytes], Place | None]:
        """The part that begins there (None: the first), and where the next one does."""
        pieces: list[bytes] = []
        room, place = self._keys_max, start or (next(iter(values)), 0)
        while room > 0:
            piece, n, following = self._piece(values, place, min(self._piece_keys, room))
            pieces.append(encode_piece(to_wire(piece)))
            if following is None:
                return pieces, None
            place, room = following, room - n
        return pieces, place

    def _piece(self, values: Blocks, start: Place, room: int) -> tuple[Blocks, int, Place | None]:
        """At most ``room`` keys from ``start`` on, how many they are, and where to go on."""
        names, piece, size = list(values), Blocks(), 0
        begin = start[1]
        for name in names[names.index(start[0]) :]:
            block = values[name]
            if size >= room:
                return piece, size, (name, begin)
            if block.kind in WHOLE:
                piece[name], size = block, size + _size(block)
            elif block.kind == ROWS:
                each = _keys_of_a_row(block.data)
                end = min(begin + max((room - size) // each, 1), len(block.data))
                piece[name] = Block(ROWS, block.data.part(begin, end))
                size += max((end - begin) * each, 1)
                if end < len(block.data):
                    return piece, size, (name, end)
            else:
                keys, numbers = self._list(name, block.data, begin)
                end = min(begin + room - size, len(keys))
                taken = zip(keys[begin:end], numbers[begin:end], strict=True)
                piece[name] = Block(block.kind, dict(taken))
                size += max(end - begin, 1)
                if end < len(keys):
                    return piece, size, (name, end)
                self._listed = None
            begin = 0
        return piece, size, None

    def _list(self, name: str, data: dict[str, Any], begin: int) -> tuple[list[str], list[Any]]:
        """Keys and numbers of a block in their order, as they are now if it is begun with.

        Not listed for each part anew: a dict is read from its beginning.  Whoever goes on with it
        gets them as they were when it began with the block, or when somebody did later.
        """
        if begin == 0 or self._listed is None or self._listed[0] != name:
            self._listed = (name, list(data), list(data.values()))
        return self._listed[1:]


def _size(block: Block) -> int:
    if block.kind in ARRAYS:
        return max(len(block.data) // 8, 1)
    if block.kind == ROWS:
        return max(len(block.data) * _keys_of_a_row(block.data), 1)
    return 1 if block.kind in WHOLE else max(len(block.data), 1)


def _keys_of_a_row(rows: Rows) -> int:
    """How many keys a row counts as: one takes some twenty bytes, and so do five numbers."""
    return -(-rows.width // 5)
