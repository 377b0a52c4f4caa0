"""Splits values that are too large for one message into parts.

Encoding, sending and merging a million numbers at once would block both processes for a second.  A
part holds a bounded number of keys, in pieces that the replica decodes one at a time.

The values change between two parts.  So all parts name one version, ``since``, and after the last
part the replica fetches the changes since then: a key that changed meanwhile is among them, any
other key is as its part has it.  When ``since`` is many versions old, a part also carries the
changes for all earlier parts, and a newer version takes the place of ``since``.  For this the keys
touched between two requests of a replica must be remembered, however many pushes there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from paramserver.core.applied import PartialPulls
from paramserver.core.array_maps import ArrayMap
from paramserver.core.blocks import ARRAYS, ROWS, WHOLE, Block, Blocks, Touched, select, to_wire
from paramserver.core.holdings import Held, Holdings, read_ids, select_held
from paramserver.core.runs import part_of
from paramserver.core.tables.rows import Rows
from paramserver.core.wire import Place, SyncRequest, Version, encode_piece

PART_KEYS: Final = 65_536
"""Keys of one part: a few megabytes, and a few milliseconds of the server's time."""

_PIECES: Final = 32  # pieces per part; a replica decodes one per iteration of its event loop


class Parts:
    """Splits the values of a server, or of a replica that answers in the server's place.

    Parameters:
        keys_max: Keys of one part.  A block without keys counts as one key, an array (which is
            never split) as its number of elements, a row of a table as one key per five numbers.
        behind_max: Number of versions after which the earlier parts are updated with the next one.
    """

    def __init__(self, keys_max: int, behind_max: int = 0) -> None:
        self._keys_max, self._behind_max = keys_max, behind_max
        self._piece_keys = max(keys_max // _PIECES, 1)
        self._listed: tuple[str, list[str]] | None = None  # block name and its keys in order

    def reply_fields(
        self,
        request: SyncRequest,
        values: Blocks,
        version: Version,
        changes_since: Callable[[Version | None], Touched | None],
    ) -> dict[str, Any]:
        """Return the reply's fields with values of this version.  They share blocks with it.

        Parameters:
            changes_since: Returns the keys touched after a version, or None if no longer known.
        """
        since, after = request.since, request.after
        if not request.values:
            return {"kind": "none", "blocks": {}}
        if since is not None and since > version:
            since = after = None  # begun with a replica that was ahead of this one: start over
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
        """Return the fields of a part that update all earlier parts to this version."""
        names = list(values)
        here = {*names[: names.index(start[0]) + 1]}  # later blocks are sent later, up to date
        changed = {name: keys for name, keys in touched.items() if name in here}
        return {"blocks": to_wire(select(values, changed)), "reached": version}

    def fit(self, values: Blocks) -> bool:
        """Return whether the values fit into one message, that is, into one piece."""
        return sum(_size(block) for block in values.values()) <= self._piece_keys

    def cut(self, values: Blocks, start: Place | None) -> tuple[list[bytes], Place | None]:
        """Return the part that begins at ``start`` (None: the first), and the next part's start.

        The next start is None after the last part.
        """
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
        """Yield all values piece by piece; the caller must not change them meanwhile."""
        place: Place | None = (next(iter(values)), 0)
        while place is not None:
            piece, _, place = self._piece(values, place, self._piece_keys)
            yield encode_piece(to_wire(piece))

    def _piece(self, values: Blocks, start: Place, room: int) -> tuple[Blocks, int, Place | None]:
        """Return a piece of about ``room`` keys from ``start``, its size, and the next start."""
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
                part, end = block.data.next_part(begin, max((room - size) // each, 1))
                piece[name] = Block(ROWS, part)
                size += max(len(part) * each, 1)
                if end < block.data.end:
                    return piece, size, (name, end)
            else:
                data, keys = block.data, self._list(name, block.data, begin)
                end = min(begin + room - size, len(keys))
                some = part_of(data, begin, end) if keys is data else _some(data, keys[begin:end])
                piece[name] = Block(block.kind, some)
                size += max(end - begin, 1)
                if end < len(keys):
                    return piece, size, (name, end)
                self._listed = None
            begin = 0
        return piece, size, None

    def _list(self, name: str, data: Any, begin: int) -> Any:
        """Return the keys of a block in order, as of when a reader last began with the block.

        The list is cached because finding the n-th key of a dict means iterating from its start.
        Data in an array needs none, and is returned.
        """
        if isinstance(data, ArrayMap):
            return data
        if begin == 0 or self._listed is None or self._listed[0] != name:
            self._listed = (name, list(data))
        return self._listed[1]


class WalkedParts(Parts):
    """Splits a server's values and records which keys change while replicas fetch them."""

    def __init__(self, keys_max: int, behind_max: int) -> None:
        super().__init__(keys_max, behind_max)
        self._pulls, self.holdings = PartialPulls(), Holdings()

    def note(self, touched: Touched) -> None:
        """Record the keys that a push has touched."""
        self._pulls.note(touched)

    def reply_fields(
        self,
        request: SyncRequest,
        values: Blocks,
        version: Version,
        changes_since: Callable[[Version | None], Touched | None],
        passed: bool = False,
    ) -> dict[str, Any]:
        """Do as :meth:`Parts.reply_fields`, with the keys touched since this replica's request.

        Parameters:
            passed: Whether the replica receives changed rows of tables otherwise.
        """
        pulls, reader, every = self._pulls, request.replica, values
        pulls.ask(reader, request.since)
        held = None
        if passed or request.rows is not None:
            values = {name: block for name, block in every.items() if block.kind != ROWS}
        if request.rows is not None:
            held = self.holdings.note(request)

        def known_since(since: Version | None) -> Touched | None:
            known = pulls.touched_since(reader, since)
            return changes_since(since) if known is None else known

        fields = super().reply_fields(request, values, version, known_since)
        if fields["kind"] == "part" and version in (fields.get("reached"), fields["since"]):
            pulls.begin(reader, version)
        if request.rows is not None and fields["kind"] in ("changes", "all"):
            touched = known_since(request.since) if fields["kind"] == "changes" else None
            fields["rows"] = to_wire(_chosen_rows(every, request.rows, touched or {}, held))
        return fields


def _chosen_rows(
    values: Blocks, asked: Mapping[str, bytes], touched: Touched, held: Held | None
) -> Blocks:
    """Return the rows of tables that were asked for or, of those that may be held, touched."""
    chosen: Touched = {
        name: [read_ids(asked.get(name, b"")), *select_held(touched, name, held)]
        for name, block in values.items()
        if block.kind == ROWS
    }
    return select(values, chosen)


def _some(data: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """Return the values of those keys that are still there, with one look-up of each."""
    some = dict(zip(keys, map(data.get, keys), strict=True))
    return {k: x for k, x in some.items() if x is not None} if None in some.values() else some


def _size(block: Block) -> int:
    if block.kind in ARRAYS:
        return max(len(block.data) // 8, 1)
    if block.kind == ROWS:
        return max(len(block.data) * _keys_of_a_row(block.data), 1)
    return 1 if block.kind in WHOLE else max(len(block.data), 1)


def _keys_of_a_row(rows: Rows) -> int:
    """Return how many keys a row counts as: a key takes about 20 bytes, as do five float32."""
    return -(-rows.width // 5)
