"""The Lua scripts of :class:`replay.journal.redis.journal.RedisJournal`, each one atomic step.

The scripts are in the folder ``lua``; the header of each file describes its arguments.

A Lua script is not a transaction: its writes before an error persist.  So each script first reads
and checks, and writes last, a stream entry always before the key that leads to it.  (Only ``order``
is written before the row; an entry there counts only if the row that it leads to has the same
``seq``.)  A key without its entry would report "duplicate" for a row that does not exist.  The
server refuses writes for lack of memory or disk only at a script's first write, and logs a script's
effects in the append-only file as one MULTI … EXEC, which it drops as a whole if it is incomplete.

Keys (``P`` is ``KEYS[1]``, the journal's prefix in braces, so all keys are in one slot):

=========================== =========== ========================================================
``P:format``                string      number of this layout
``P:seq``                   string      commit order of the whole journal: counts rows
``P:partitions``            string      counts partitions
``P:changes``               string      counts changes of epochs
``P:partition:NUMBER``      hash        model, replica, spec, at; sealed if it is
``P:partitions:MODEL``      list        numbers, in the order in which they were given
``P:rows:NUMBER``           stream      a row under the id ``OFFSET-0``
``P:order:MODEL``           stream      where each row stands, under the id ``SEQ-0``
``P:trimmed:MODEL``         string      seq of the newest row that was trimmed
``P:claims:NUMBER``         hash        how many learners claimed each offset, and its checksum
``P:running:MODEL``         string      milliseconds for which servers have run, and its checksum
``P:ids:MODEL``             hash        ``NUMBER:OFFSET`` of each key; under '' the newest row's seq
``P:halves:MODEL``          hash        the half that is kept of each key (cmsgpack)
``P:waiting:MODEL``         sorted set  keys of halves by when they were taken
``P:head:MODEL``            hash        ``epoch:SPEC``, ``snapshot:SPEC``, ``newest`` epoch
``P:lineages:MODEL``        sorted set  specs by their last change of epoch
``P:controls:MODEL``        stream      a control row under the id ``SEQ-0``
``P:decided:MODEL``         hash        seq of each control row's key; under '' that of the newest
``P:lines``                 stream      a line of the log of decisions under the id ``NUMBER-0``
``P:anchor``                hash        the line that stands for those that were trimmed
``P:erasing:rows:NUMBER``   stream      a copy that grows while payloads are removed
=========================== =========== ========================================================

A partition's end is its stream's last id and is stored nowhere else.  Redis keeps that id when
entries are trimmed and loses it with the stream, so a journal that lost a stream is noticed to be
behind.  Likewise the trimmed rows are those missing before the first entry, so that trimming only
deletes, which works even without free memory.  Rows that were joined under a layout before 4 record
which half came second (``half``) and when the first was received (``since``).

Rows, control rows, halves, partitions and heads end with ``sum``: the first 32 bits of the SHA-1
of their place and all preceding fields (:func:`replay.journal.redis.proof.proof`).  Redis's Lua has
no faster checksum, and only a script knows offset and seq.  ``ran`` is the running time at which a
row or half was written.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Final

_FOLDER: Final = resources.files("replay.journal.redis").joinpath("lua")


def _lua(name: str) -> str:
    """Return the text of a script file after its header comment."""
    text = _FOLDER.joinpath(f"{name}.lua").read_text("utf-8")
    return "\n" + re.sub(r"\A(?:--.*\n)+", "", text)


COMMON: Final = _lua("common")
_LINES: Final = COMMON + _lua("lines")
_IDS: Final = COMMON + _lua("ids")

SET_FORMAT: Final = COMMON + _lua("set_format")
APPEND: Final = COMMON + _lua("append")
REGISTER: Final = COMMON + _lua("register")
REGISTER_LOST: Final = COMMON + _lua("register_lost")
SEAL: Final = COMMON + _lua("seal")
PARTITIONS: Final = COMMON + _lua("partitions")
FOLLOW: Final = COMMON + _lua("follow")
FIND: Final = COMMON + _lua("find")
CLAIM: Final = COMMON + _lua("claim")
RUN: Final = COMMON + _lua("run")
TRIM: Final = COMMON + _lua("trim")
EXPIRE: Final = COMMON + _lua("expire")
LOOK: Final = COMMON + _lua("look")
HALF: Final = COMMON + _lua("half")
RUNNING: Final = COMMON + _lua("running")
BEGIN_EPOCH: Final = COMMON + _lua("begin_epoch")
MOVE_HEAD: Final = COMMON + _lua("move_head")
WRITE_LINE: Final = _LINES + _lua("write_line")
TRIM_LINES: Final = _LINES + _lua("trim_lines")
WRITE_CONTROL: Final = _LINES + _lua("write_control")
STAND_IN: Final = COMMON + _lua("stand_in")
PREDICTED: Final = COMMON + _lua("predicted")
COPY: Final = COMMON + _lua("copy")
HALVES: Final = COMMON + _lua("halves")
REPLACE_HALF: Final = COMMON + _lua("replace_half")
COUNT_IDS: Final = COMMON + _lua("count_ids")
RESTORE_IDS: Final = _IDS + _lua("restore_ids")
DROP_IDS: Final = COMMON + _lua("drop_ids")
RESTORE_NEWER_IDS: Final = _IDS + _lua("restore_newer_ids")
REACH_IDS: Final = COMMON + _lua("reach_ids")
