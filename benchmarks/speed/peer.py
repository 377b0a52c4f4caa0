"""The peer of the HTTP table: uvicorn, FastAPI, pydantic and river; one worker, nothing kept."""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from river import linear_model, optim, preprocessing

app = FastAPI()
model = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.05))


class Row(BaseModel):
    """Features, and the label when it is known."""

    features: dict[str, float]
    label: bool | None = None


@app.post("/predict")
async def predict(row: Row) -> dict[str, Any]:
    """Probabilities of the labels."""
    p = model.predict_proba_one(row.features)
    return {"prediction": p[True] > p[False], "probabilities": p}


@app.post("/learn")
async def learn(row: Row) -> dict[str, Any]:
    """Learn one row; nothing is durable and repeats are not noticed."""
    model.learn_one(row.features, row.label)
    return {"status": "learned"}


if __name__ == "__main__":
    uvicorn.run(
        app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False,
        log_level="warning",
    )  # fmt: skip
