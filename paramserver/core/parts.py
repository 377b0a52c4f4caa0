"""Values that are too many for one message, cut into parts.

Encoding, sending and taking a million numbers at once would stop both ends for a second.  A part
holds at most so many keys, in pieces that are decoded one by one.  Between two parts the values
change.  Each part is told for one version that all before it are of, and the changes since that
version come last: what has changed meanwhile is in them, and what has not is in its part as it
was.  If many have changed, they come with a part, and all parts up to it are of a newer version
from then on: it must not be forgotten what was touched between two requests, however many there
are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from paramserver.core.applied import Walks
from paramserver.core.blocks import ARRAYS, ROWS, WHOLE, Block, Blocks, Touched, select, to_wire
from paramserver.core.rows import Rows
from paramserver.core.wire import Place, SyncRequest, Version, encode_piece

PART_KEYS: Final = 65_536
"""Keys of one part: a few megabytes, and a few milliseconds of the server's time."""

_PIECES: Final = 32  # of a part: each is the work of one turn of a replica's loop


class Parts:
    """Cuts the values of one server, or of a replica that answers in its place.

    Parameters:
        keys_max: Keys of one part; a block without any counts as one, an array, which is not cut,
            by its numbers, and a row of a table as one or more by its width.
        behind_max: Versions that earlier parts may be behind; then they are brought up with the
            next one.
    """

    def __init__(self, keys_max: int, behind_max: int = 0) -> None:
        self._keys_max, self._behind_max = keys_max, behind_max
        self._piece_keys = max(keys_max // _PIECES, 1)
        self._listed: tuple[str, list[str]] | None = None  # a block, and its keys

    def reply_fields(
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
            if version[1] - since[1] <= self._behind_max:
                return self._part(values, since, after)
            if (touched := changes_since(since)) is not None:
                return self._part(values, since, after) | self._brought_up(
                    values, touched, version, after
                )
        elif (touched := changes_since(since)) is not None:
            return {"kind": "changes", "blocks": to_wire(select(values, touched)), "since": since}
        if self.fit(values):
            return {"kind": "all", "blocks": to_wire(values)}
        return self._part(values, version, None)

    def _part(self, values: Blocks, since: Version, start: Place | None) -> dict[str, Any]:
        pieces, after = self.cut(values, start)
        part = {"kind": "part", "blocks": {}, "since": since}
        return part | {"pieces": pieces, "start": start, "after": after}

    def _brought_up(
        self, values: Blocks, touched: Touched, version: Version, start: Place
    ) -> dict[str, Any]:
        """The fields of a part that bring all before it up to this version."""
        names = list(values)
        here = {*names[: names.index(start[0]) + 1]}  # what comes later comes as it is then
        changed = {name: keys for name, keys in touched.items() if name in here}
        return {"blocks": to_wire(select(values, changed)), "reached": version}

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

    def pieces(self, values: Blocks) -> Iterator[bytes]:
        """Cut all of the values, a piece a step; they do not change meanwhile."""
        place: Place | None = (next(iter(values)), 0)
        while place is not None:
            piece, _, place = self._piece(values, place, self._piece_keys)
            yield encode_piece(to_wire(piece))

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
                each, begin = _keys_of_a_row(block.data), max(begin, block.data.begin)
                end = min(begin + max((room - size) // each, 1), block.data.end)
                piece[name] = Block(ROWS, block.data.part(begin, end))
                size += max((end - begin) * each, 1)
                if end < block.data.end:
                    return piece, size, (name, end)
            else:
                data, keys = block.data, self._list(name, block.data, begin)
                end = min(begin + room - size, len(keys))
                piece[name] = Block(
                    block.kind, {key: data[key] for key in keys[begin:end] if key in data}
                )
                size += max(end - begin, 1)
                if end < len(keys):
                    return piece, size, (name, end)
                self._listed = None
            begin = 0
        return piece, size, None

    def _list(self, name: str, data: dict[str, Any], begin: int) -> list[str]:
        """Keys of a block in their order, as they are now if it is begun with.

        Not listed for each part anew: a dict is read from its beginning.  Whoever goes on with it
        gets those that there were when it began with the block, or when somebody did later.
        """
        if begin == 0 or self._listed is None or self._listed[0] != name:
            self._listed = (name, list(data))
        return self._listed[1]


class WalkedParts(Parts):
    """Parts of a server's values, which does not forget what happens while they are fetched."""

    def __init__(self, keys_max: int, behind_max: int) -> None:
        super().__init__(keys_max, behind_max)
        self._walks = Walks()

    def note(self, touched: Touched) -> None:
        """A push has touched this."""
        self._walks.note(touched)

    def reply_fields(
        self,
        request: SyncRequest,
        values: Blocks,
        version: Version,
        changes_since: Callable[[Version | None], Touched | None],
    ) -> dict[str, Any]:
        """Do as :meth:`Parts.reply_fields`, and know what was touched since it was last asked."""
        walks, reader = self._walks, request.replica
        walks.ask(reader, request.since)

        def known_since(since: Version | None) -> Touched | None:
            known = walks.touched_since(reader, since)
            return changes_since(since) if known is None else known

        fields = super().reply_fields(request, values, version, known_since)
        if fields["kind"] == "part" and version in (fields.get("reached"), fields["since"]):
            walks.begin(reader, version)
        return fields


def _size(block: Block) -> int:
    if block.kind in ARRAYS:
        return max(len(block.data) // 8, 1)
    if block.kind == ROWS:
        return max(len(block.data) * _keys_of_a_row(block.data), 1)
    return 1 if block.kind in WHOLE else max(len(block.data), 1)


def _keys_of_a_row(rows: Rows) -> int:
    """How many keys a row counts as: one takes some twenty bytes, and so do five numbers."""
    return -(-rows.width // 5)
