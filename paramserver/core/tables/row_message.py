"""Rows by id as a message has them: two arrays, which are passed on without pages.

Most rows that a server handles are parts of messages: read, added to a table's, sent.  Laying out
pages and slots for each of them took a quarter of a push.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from paramserver.core.tables.flags import Flags
    from paramserver.core.tables.ids import IdArray

    Floats32 = npt.NDArray[np.float32]

ID: Final = np.dtype("<u8")
NUMBER: Final = np.dtype("<f4")
HALF: Final = np.dtype("<f2")
_LAID_OUT: Final = frozenset({"_ids", "_n", "_pool", "_pages", "_marks"})


class RowMessage:
    """The rows of a table in a message; the table itself is built only when it is first used.

    Attributes:
        width: Numbers of a row.
        gone: In a message: ids whose rows the receiver has to remove.
        rounded: Count of the last columns that have float16 numbers, and are sent as such.
    """

    width: int
    gone: IdArray
    rounded: int = 0
    _given: tuple[IdArray, Floats32] | None = None  # until pages are laid out

    if not TYPE_CHECKING:  # to which any name would be known then

        def __getattr__(self, name: str) -> Any:
            """Build pages and slots when they are first used."""
            if self._given is None or name not in _LAID_OUT:
                raise AttributeError(name)
            self._hold(*self._given)
            return getattr(self, name)

    def _hold(self, ids: IdArray, numbers: Floats32) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def ids(self) -> IdArray:
        """All ids by position; the array must not be changed."""
        raise NotImplementedError

    @property
    def numbers(self) -> Floats32:
        """All rows by position, in a new array."""
        raise NotImplementedError

    def get(self, ids: IdArray) -> tuple[Floats32, Flags]:
        """Return the rows of these ids, zeros for missing ones, and flags: which ones exist."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RowMessage):
            return NotImplemented
        if self.width != other.width or len(self) != len(other):
            return False
        ids = self.ids
        (mine, _), (numbers, known) = self.get(ids), other.get(ids)
        return bool(known.all() and np.array_equal(numbers, mine))

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.ids.copy(), self.numbers)

    @property
    def size_bytes(self) -> int:
        """The encoded size of the rows in a message, in bytes, without its framing."""
        gone, saved = ID.itemsize * len(self.gone), HALF.itemsize * self.rounded
        return len(self) * (ID.itemsize + NUMBER.itemsize * self.width - saved) + gone

    def as_message(self) -> dict[str, Any]:
        """Return the rows as a message encodes them."""
        numbers = self.numbers if self._given is None else self._given[1]
        message = {"width": self.width, "ids": self.ids.astype(ID, copy=False).tobytes()}
        if self.rounded:
            exact = self.width - self.rounded
            message["halves"] = numbers[:, exact:].astype(HALF).tobytes()
            numbers = numbers[:, :exact]
        message["numbers"] = numbers.astype(NUMBER, copy=False).tobytes()
        return message | {"gone": self.gone.astype(ID).tobytes()} if len(self.gone) else message
