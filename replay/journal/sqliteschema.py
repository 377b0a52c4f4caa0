"""Tables of the SQLite journal, how older files become newer ones, and its statements."""

from __future__ import annotations

FORMAT = 4
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
"""
# AUTOINCREMENT: a number is never given twice, also after its row was deleted.
# models.trimmed: the seq of the newest row that was removed.
# rows.half and rows.since: which half came second and wrote the row, and when the first was
# taken, so that a batch whose answer was lost gets the same answer again.

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
""",
}
"""What makes a file of a format one of the next."""

MODEL = "(SELECT id FROM models WHERE name = ?)"
ROW = 'seq, partition, "offset", key, event_id, source, verdict, factor, payload, at'
INSERT = (
    'INSERT INTO rows (model, partition, "offset", key, event_id, source, verdict, factor,'
    " payload, at, half, since) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
INSERT_COLUMNS, INSERT_ROW = INSERT.split(" VALUES ")
BY_KEY = f"SELECT {ROW}, half, since FROM rows WHERE model = ? AND key = ?"
FIND = f"SELECT {ROW} FROM rows WHERE model = {MODEL} AND key = ?"
READ = (
    f'SELECT {ROW} FROM rows WHERE partition = ? AND "offset" >= ? AND "offset" < ?'
    ' ORDER BY "offset"'
)
FOLLOW = (
    f"SELECT {ROW} FROM rows NOT INDEXED WHERE model = {MODEL} AND seq > ? AND seq <= ?"
    " ORDER BY seq LIMIT ?"
)
# NOT INDEXED: by an index of the model every look would walk all of its rows.
NEWEST_SEQ = "SELECT seq FROM sqlite_sequence WHERE name = 'rows'"
ADMIT = (
    'SELECT p.model, p."end", p.sealed,'
    " (SELECT max(epoch) FROM heads h WHERE h.model = p.model),"
    " m.halves, m.name FROM partitions p JOIN models m ON m.id = p.model WHERE p.id = ?"
)
PARTITION = (
    'SELECT p.id, m.name, p.replica, p.spec, p."end", p.sealed, p.trimmed'
    " FROM partitions p JOIN models m ON m.id = p.model"
)
CONTROL = (
    "SELECT c.seq, m.name, c.kind, c.key, c.payload"
    " FROM control c JOIN models m ON m.id = c.model WHERE m.name = ?"
)
HEAD = f"SELECT epoch, snapshot FROM heads WHERE model = {MODEL} AND spec = ?"
LINEAGES = f"SELECT spec FROM heads WHERE model = {MODEL} ORDER BY changed"
BEGIN_EPOCH = (
    "INSERT INTO heads (model, spec, epoch, changed)"
    " VALUES (?, ?, ?, (SELECT coalesce(max(changed), 0) + 1 FROM heads))"
    " ON CONFLICT (model, spec) DO UPDATE SET epoch = excluded.epoch, changed = excluded.changed"
)
MOVE_HEAD = "UPDATE heads SET snapshot = ? WHERE model = ? AND spec = ?"
WRITE_CONTROL = (
    "INSERT INTO control (model, seq, kind, key, payload) SELECT m, (SELECT coalesce(max(seq), 0)"
    " + 1 FROM control WHERE model = m), ?2, ?3, ?4 FROM (SELECT ?1 AS m) WHERE true"
    " ON CONFLICT (model, key) DO NOTHING"
)

SET_END = 'UPDATE partitions SET "end" = ? WHERE id = ?'
KEPT_HALF = "SELECT half, event_id, source, payload, at FROM halves WHERE model = ? AND key = ?"
ANY_ROW = "SELECT 1 FROM rows WHERE model = ? AND key IN ({}) LIMIT 1"
ANY_HALF = "SELECT 1 FROM halves WHERE model = ? AND key IN ({}) LIMIT 1"
KEEP_HALF = (
    "INSERT INTO halves (model, key, half, event_id, source, payload, at)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
DROP_HALF = "DELETE FROM halves WHERE model = ? AND key = ?"
EXPIRE = (
    "DELETE FROM halves WHERE id IN"
    " (SELECT id FROM halves WHERE model = ? AND at < ? ORDER BY at LIMIT ?)"
)
COUNT_HALVES = "UPDATE models SET halves = halves + ? WHERE id = ?"

CLAIM = (
    'INSERT INTO claims (partition, "offset", n) VALUES (?, ?, 1)'
    ' ON CONFLICT (partition, "offset") DO UPDATE SET n = n + 1 RETURNING n - 1'
)
TRIMMED = "SELECT trimmed FROM partitions WHERE id = ? AND model = ?"
OLDEST = (
    'SELECT "offset", at, seq FROM rows WHERE partition = ? AND "offset" > ? AND "offset" <= ?'
    ' ORDER BY "offset" LIMIT ?'
)
DROP_ROWS = 'DELETE FROM rows WHERE partition = ? AND "offset" > ? AND "offset" <= ?'
DROP_CLAIMS = 'DELETE FROM claims WHERE partition = ? AND "offset" > ? AND "offset" <= ?'
CLAIM_ENDED = 2**40  # an end of a claim stands so far above it
SET_TRIMMED_SEQ = "UPDATE models SET trimmed = max(trimmed, ?) WHERE id = ?"
TRIMMED_SEQ = "SELECT trimmed FROM models WHERE name = ?"
SET_TRIMMED = "UPDATE partitions SET trimmed = ? WHERE id = ?"
ROWS_AND_HALVES = (
    'SELECT coalesce(sum(p."end" - p.trimmed), 0), coalesce(max(m.halves), 0)'
    " FROM models m LEFT JOIN partitions p ON p.model = m.id WHERE m.name = ?"
)
