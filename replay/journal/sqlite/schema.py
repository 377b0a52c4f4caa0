"""The SQLite journal's tables, upgrades from older formats, and SQL statements."""

from __future__ import annotations

FORMAT = 6
"""Format number of the file; a newer one is refused, an older one is upgraded in place."""

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE models (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, halves INTEGER NOT NULL DEFAULT 0,
    trimmed INTEGER NOT NULL DEFAULT 0, running INTEGER NOT NULL DEFAULT 0, checksum INTEGER);
CREATE TABLE partitions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, model INTEGER NOT NULL, replica TEXT NOT NULL,
    spec TEXT NOT NULL, "end" INTEGER NOT NULL DEFAULT 0, sealed INTEGER NOT NULL DEFAULT 0,
    at REAL NOT NULL, trimmed INTEGER NOT NULL DEFAULT 0, checksum INTEGER);
CREATE INDEX partitions_model ON partitions (model);
CREATE TABLE rows (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, model INTEGER NOT NULL, partition INTEGER NOT NULL,
    "offset" INTEGER NOT NULL, key BLOB NOT NULL, event_id TEXT NOT NULL, source TEXT NOT NULL,
    verdict TEXT NOT NULL, factor REAL NOT NULL, payload BLOB NOT NULL, at REAL NOT NULL,
    half TEXT, since REAL, ran INTEGER, checksum INTEGER,
    UNIQUE (partition, "offset"), UNIQUE (model, key));
CREATE TABLE control (
    model INTEGER NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL,
    payload BLOB NOT NULL, checksum INTEGER, PRIMARY KEY (model, seq), UNIQUE (model, key));
CREATE TABLE heads (
    model INTEGER NOT NULL, spec TEXT NOT NULL, epoch INTEGER NOT NULL, snapshot TEXT,
    changed INTEGER NOT NULL, checksum INTEGER, PRIMARY KEY (model, spec)) WITHOUT ROWID;
CREATE TABLE halves (
    id INTEGER PRIMARY KEY, model INTEGER NOT NULL, key BLOB NOT NULL, half TEXT NOT NULL,
    event_id TEXT NOT NULL, source TEXT NOT NULL, payload BLOB NOT NULL, at REAL NOT NULL,
    ran INTEGER, checksum INTEGER,
    UNIQUE (model, key));
CREATE INDEX halves_at ON halves (model, at);
CREATE TABLE claims (
    partition INTEGER NOT NULL, "offset" INTEGER NOT NULL, n INTEGER NOT NULL, checksum INTEGER,
    PRIMARY KEY (partition, "offset")) WITHOUT ROWID;
CREATE TABLE lines (number INTEGER PRIMARY KEY, text BLOB NOT NULL, checksum INTEGER);
INSERT INTO meta VALUES ('keys', 1852137842);
"""
SCHEMA_SUM = (
    "SELECT checksum(group_concat(line, char(10))) FROM (SELECT type || ' ' || name || ' ' ||"
    " tbl_name || ' ' || coalesce(sql, '') AS line FROM sqlite_schema ORDER BY type, name)"
)
PROVE_SCHEMA = f"INSERT OR REPLACE INTO meta SELECT 'schema', ({SCHEMA_SUM});"
"""Stores a checksum of the schema, because a damaged definition may still be valid SQL."""
# AUTOINCREMENT: a number is never reused, even after its row was deleted.
# models.trimmed: the seq of the newest row that was removed.
# models.running: total running time of the model's servers in ms; rows.ran and halves.ran: its
# value when the row was written (NULL: before it was counted).
# checksum: see replay.journal.checksum.  meta.unchecked: rows up to this seq have no checksum,
# because their format had none.
# meta.keys: NEAR_KEYS or FAR_KEYS.  A journal of an earlier format has far keys for good, because
# its rows have such keys, and a repeat must get the key of the first time.
# rows.half and rows.since: set only in rows that were joined under a format before 4.

UPGRADES = {
    1: """
ALTER TABLE models ADD COLUMN halves INTEGER NOT NULL DEFAULT 0;
ALTER TABLE partitions ADD COLUMN trimmed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rows ADD COLUMN half TEXT;
ALTER TABLE rows ADD COLUMN since REAL;
CREATE TABLE halves (
    id INTEGER PRIMARY KEY, model INTEGER NOT NULL, key BLOB NOT NULL, half TEXT NOT NULL,
    event_id TEXT NOT NULL, source TEXT NOT NULL, payload BLOB NOT NULL, at REAL NOT NULL,
    UNIQUE (model, key));
CREATE INDEX halves_at ON halves (model, at);
CREATE TABLE claims (
    partition INTEGER NOT NULL, "offset" INTEGER NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY (partition, "offset")) WITHOUT ROWID;
""",
    2: "ALTER TABLE models ADD COLUMN trimmed INTEGER NOT NULL DEFAULT 0;",
    3: """
ALTER TABLE models ADD COLUMN running INTEGER NOT NULL DEFAULT 0;
ALTER TABLE models ADD COLUMN checksum INTEGER;
ALTER TABLE partitions ADD COLUMN checksum INTEGER;
ALTER TABLE rows ADD COLUMN ran INTEGER;
ALTER TABLE rows ADD COLUMN checksum INTEGER;
ALTER TABLE control ADD COLUMN checksum INTEGER;
ALTER TABLE heads ADD COLUMN checksum INTEGER;
ALTER TABLE halves ADD COLUMN ran INTEGER;
ALTER TABLE halves ADD COLUMN checksum INTEGER;
ALTER TABLE claims ADD COLUMN checksum INTEGER;
UPDATE models SET checksum = checksum(id, name, halves, trimmed, running);
UPDATE partitions
    SET checksum = checksum(id, model, replica, spec, "end", sealed, at, trimmed);
UPDATE control SET checksum = checksum(model, seq, kind, key, payload);
UPDATE heads SET checksum = checksum(model, spec, epoch, snapshot, changed);
UPDATE halves SET checksum = checksum(model, key, half, event_id, source, payload, at, ran);
UPDATE claims SET checksum = checksum(partition, "offset", n);
INSERT INTO meta
    SELECT 'unchecked', coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'rows';
""",
    4: "CREATE TABLE lines (number INTEGER PRIMARY KEY, text BLOB NOT NULL, checksum INTEGER);",
    5: "INSERT INTO meta VALUES ('keys', 1634754930);",
}
"""By format, the statements that upgrade a file to the next one."""

MODEL = "(SELECT id FROM models WHERE name = ?)"
ROW = (
    'seq, partition, "offset", key, event_id, source, verdict, factor, payload, at,'
    " model, half, since, ran, checksum"
)
RAN = 13  # index of the running time in these
INSERT = f"INSERT INTO rows ({ROW}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
INSERT_NEW = (
    f"INSERT OR FAIL INTO rows ({ROW}) SELECT ? + column1, ?, ? + column1, column2, column3,"
    " column4, column5, column6, column7, column8, ?, NULL, NULL, ?, column9 FROM (VALUES {})"
    " WHERE column2 IS NOT NULL ON CONFLICT DO NOTHING"
)
INSERT_ROW = "({}, ?, ?, ?, ?, ?, ?, ?, ?)"
# Values common to all rows are bound once, since binding took half of the statement's time.
# OR FAIL: otherwise SQLite keeps a copy of each page to undo a statement that fails halfway.  Here
# any failure rolls the whole transaction back.
DROP_AFTER = "DELETE FROM rows WHERE seq > ?"
SET_SEQ = "UPDATE sqlite_sequence SET seq = ? WHERE name = 'rows'"
BY_KEY = f"SELECT {ROW} FROM rows WHERE model = ? AND key = ?"
BY_KEYS = f"SELECT {ROW} FROM rows WHERE model = ? AND key IN ({{}})"
FIND = f"SELECT {ROW} FROM rows WHERE model = {MODEL} AND key = ?"
READ = (
    f'SELECT {ROW} FROM rows WHERE partition = ? AND "offset" >= ? AND "offset" < ?'
    ' ORDER BY "offset"'
)
FOLLOW = (
    f"SELECT {ROW} FROM rows NOT INDEXED WHERE model = {MODEL} AND seq > ? AND seq <= ?"
    " ORDER BY seq LIMIT ?"
)
# NOT INDEXED: with an index on the model every query would scan all of its rows.
NEWEST_SEQ = "SELECT seq FROM sqlite_sequence WHERE name = 'rows'"
KEYS = "SELECT value FROM meta WHERE name = 'keys'"
NEAR_KEYS, FAR_KEYS = 1852137842, 1634754930
"""Whether keys of similar ids are near each other; a changed bit makes neither from the other."""
UNCHECKED = "SELECT value FROM meta WHERE name = 'unchecked'"

ENTRY = 'p.id, p.model, p.replica, p.spec, p."end", p.sealed, p.at, p.trimmed, p.checksum'
OWNER = "m.id, m.name, m.halves, m.trimmed, m.running, m.checksum"
ADMIT = (
    f"SELECT {ENTRY}, {OWNER}, ({UNCHECKED}), max(coalesce(({NEWEST_SEQ}), 0),"
    " coalesce((SELECT max(seq) FROM rows), 0))"
    " FROM partitions p LEFT JOIN models m ON m.id = p.model WHERE p.id = ?"
)
# The seq is assigned by the journal and not by SQLite, because the checksum contains it.
PARTITION = f"SELECT {ENTRY}, m.name FROM partitions p LEFT JOIN models m ON m.id = p.model"
OWNED = f"SELECT {OWNER} FROM models m WHERE m.id = ?"
NAMED = f"SELECT {OWNER} FROM models m WHERE m.name = ?"
OPEN_PARTITION = "INSERT INTO partitions (model, replica, spec, at) VALUES (?, ?, ?, ?)"
PROVE_PARTITION = (
    'UPDATE partitions SET checksum = checksum(id, model, replica, spec, "end", sealed, at,'
    " trimmed) WHERE id = ?"
)
OPEN_LOST = (
    'INSERT INTO partitions (id, model, replica, spec, "end", sealed, at, trimmed)'
    " VALUES (?, ?, 'lost', ?, ?, 1, 0, ?) ON CONFLICT (id) DO NOTHING"
)
LIFT_SEQ = "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'rows'"
FIRST_SEQ = "INSERT INTO sqlite_sequence (name, seq) VALUES ('rows', ?)"
PROVE_MODEL = (
    "UPDATE models SET checksum = checksum(id, name, halves, trimmed, running) WHERE id = ?"
)
RUN = "UPDATE models SET running = running + ? WHERE id = ?"
SEAL = "UPDATE partitions SET sealed = 1 WHERE id = ?"

CONTROL_COLUMNS = "c.model, c.seq, c.kind, c.key, c.payload, c.checksum"
CONTROL = f"SELECT {CONTROL_COLUMNS} FROM control c WHERE c.model = {MODEL}"
KINDS_AFTER = "SELECT kind FROM control WHERE model = ? AND seq > ?"
NEXT_CONTROL = "SELECT coalesce(max(seq), 0) + 1 FROM control WHERE model = ?"
WRITE_CONTROL = (
    "INSERT INTO control (model, seq, kind, key, payload, checksum) VALUES (?, ?, ?, ?, ?, ?)"
)
LINE_COLUMNS = "number, text, checksum"
LINES = f"SELECT {LINE_COLUMNS} FROM lines WHERE number > ? ORDER BY number LIMIT ?"
LAST_LINE = f"SELECT {LINE_COLUMNS} FROM lines ORDER BY number DESC LIMIT 1"
WRITE_LINE = f"INSERT OR REPLACE INTO lines ({LINE_COLUMNS}) VALUES (?, ?, ?)"
DROP_LINES = "DELETE FROM lines WHERE number < ?"
HEAD_COLUMNS = "model, spec, epoch, snapshot, changed, checksum"
HEADS = f"SELECT {HEAD_COLUMNS} FROM heads WHERE model = {MODEL} ORDER BY changed"
HEADS_OF = f"SELECT {HEAD_COLUMNS} FROM heads WHERE model = ?"
NEXT_CHANGE = "SELECT coalesce(max(changed), 0) + 1 FROM heads"
WRITE_HEAD = f"INSERT OR REPLACE INTO heads ({HEAD_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"

SET_END = 'UPDATE partitions SET "end" = ?, checksum = ? WHERE id = ?'
HALF_COLUMNS = "model, key, half, event_id, source, payload, at, ran, checksum"
TAKEN_AT = HALF_COLUMNS.split(", ").index("at")
HALF_RAN = HALF_COLUMNS.split(", ").index("ran")
KEPT_HALF = f"SELECT {HALF_COLUMNS} FROM halves WHERE model = ? AND key = ?"
HALVES_OF = "SELECT key FROM halves WHERE model = ? AND key IN ({})"
TAKEN_BETWEEN = (
    f"SELECT {HALF_COLUMNS} FROM halves WHERE model = {MODEL} AND at > ? AND at < ?"
    " ORDER BY at LIMIT ?"
)
KEEP_HALF = f"INSERT INTO halves ({HALF_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
DROP_HALF = "DELETE FROM halves WHERE model = ? AND key = ?"
EXPIRE = (
    "DELETE FROM halves WHERE id IN"
    " (SELECT id FROM halves WHERE model = ? AND (at < ? OR at > ?) AND coalesce(ran, 0) < ?"
    " ORDER BY at LIMIT ?)"
)
COUNT_HALVES = "UPDATE models SET halves = halves + ? WHERE id = ?"

CLAIMED = 'SELECT partition, "offset", n, checksum FROM claims WHERE partition = ? AND "offset" = ?'
CLAIM = 'INSERT OR REPLACE INTO claims (partition, "offset", n, checksum) VALUES (?, ?, ?, ?)'
OLDEST = (
    f'SELECT {ROW} FROM rows WHERE partition = ? AND "offset" > ? AND "offset" <= ?'
    ' ORDER BY "offset" LIMIT ?'
)
DROP_ROWS = 'DELETE FROM rows WHERE partition = ? AND "offset" > ? AND "offset" <= ?'
DROP_CLAIMS = 'DELETE FROM claims WHERE partition = ? AND "offset" > ? AND "offset" <= ?'
CLAIM_ENDED = 2**40  # the end of a claim is stored at offset + this, or + twice this if not learned
SET_TRIMMED_SEQ = "UPDATE models SET trimmed = max(trimmed, ?) WHERE id = ?"
SET_TRIMMED = "UPDATE partitions SET trimmed = ? WHERE id = ?"
ROWS_AND_HALVES = (
    'SELECT coalesce(sum(p."end" - p.trimmed), 0), coalesce(max(m.halves), 0)'
    " FROM models m LEFT JOIN partitions p ON p.model = m.id WHERE m.name = ?"
)
