"""The peer with bodies of many rows, and learning with one SQLite commit a request."""

import sqlite3
import sys
from typing import Any

import uvicorn

from benchmarks.speed.peer import Row, app, learn, predict


@app.post("/learn_durable")
async def learn_durable(row: Row) -> dict[str, Any]:
    """Commit one row, then learn it; repeats are not noticed."""
    db.execute("INSERT INTO rows VALUES (?)", (row.model_dump_json(),))
    return await learn(row)


@app.post("/predict_many")
async def predict_many(rows: list[Row]) -> list[dict[str, Any]]:
    """Probabilities for each row."""
    return [await predict(row) for row in rows]


@app.post("/learn_many")
async def learn_many(rows: list[Row]) -> list[dict[str, Any]]:
    """Learn each row; nothing is durable."""
    return [await learn(row) for row in rows]


if __name__ == "__main__":
    db = sqlite3.connect(sys.argv[2], isolation_level=None)
    db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE rows (row TEXT)")
    uvicorn.run(
        app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False,
        log_level="warning",
    )  # fmt: skip
