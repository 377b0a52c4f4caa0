"""Releases of a small network, published as the command publishes them, at a time that is given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from online.edge.export import with_deltas
from online.edge.lowering.ir import Columns, EdgeModel, Layer, Mlp, with_tables
from online.edge.releases import roots
from online.edge.releases.channel import Channel
from online.edge.releases.folder import Folder, write
from online.edge.targets import grid, pack, runners
from online.edge.targets.golden import Golden
from online.errors import RequestError
from online.http.routes import edge as served

DAY_S: Final = 86_400.0
COLUMNS: Final = ("a", "b", "c", "d")


def key(number: int) -> Ed25519PrivateKey:
    """A key of a test: always the same one."""
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def network(seed: int) -> EdgeModel:
    """A network whose last layer depends on the seed: few bytes differ between two of them."""
    rng = np.random.default_rng(0)
    first = Layer(rng.normal(size=(40, 4)), rng.normal(size=40), "relu")
    bias = np.array([seed % 3 == 0, seed % 3 == 1, seed % 3 == 2]) * 4.0
    last = Layer(0.01 * rng.normal(size=(3, 40)), bias, "none")
    columns = Columns(COLUMNS, np.zeros(4), np.ones(4))
    return EdgeModel("multiclass", ("x", "y", "z"), columns, None, Mlp((first, last), "softmax"))


class World:
    """A folder, the keys, and who publishes."""

    def __init__(self, path: Path, model: str = "m") -> None:
        self.folder, self.model = Folder(path / model), model
        self.root, self.signing = key(1), key(2)
        self.chain = roots.extended(None, self.root, roots.spelled(self.root), self._keys())
        self._put_roots()

    def _keys(self) -> tuple[str, ...]:
        return (roots.spelled(self.signing),)

    def _put_roots(self) -> None:
        write(self.folder.path / "roots.json", self.chain)

    def rotate(self, signing: Ed25519PrivateKey) -> None:
        """Another signing key, under the same root key."""
        self.signing = signing
        self.chain = roots.extended(self.chain, self.root, roots.spelled(self.root), self._keys())
        self._put_roots()

    def publish(
        self, seed: int, now: float, percent: int = 100, *, wrong: float = 0.0, steps: bool = False,
        rows_of: int = 0, parts: bool = True,
    ) -> None:  # fmt: skip
        """The next release.

        ``wrong`` is added to what the golden rows expect, ``rows_of`` draws them; without ``parts``
        they are one file only, as in releases of older services.
        """
        data = pack.encode(network(seed))
        if steps:
            rng = np.random.default_rng(seed)  # every weight moves
            base = np.random.default_rng(9).normal(size=(40, 4))
            moved = base + 0.02 * rng.normal(size=(40, 4))
            model = with_tables(network(0), {"weights0": moved, "weights1": moved.T[:3]})
            asked = [
                dict(zip(COLUMNS, row, strict=True)) for row in rng.normal(size=(9, 4)).tolist()
            ]
            data = grid.on_grid(model, self.folder.newest_pack(), asked, rng)
        rows: list[Mapping[str, Any]] = [
            dict(zip(COLUMNS, row, strict=True))
            for row in np.random.default_rng(rows_of).normal(size=(6, 4)).astype("f4").tolist()
        ]
        rows.append({"a": float("nan"), "b": 1.0})
        proof = Golden(tuple(rows), runners.run_pack(data, rows) + wrong, labels=True)
        told = {"golden": proof.file(), **(proof.parts() if parts else {})}
        named = {
            name: {"size": len(data), "sha256": sha256(data).hexdigest()}
            for name, data in told.items()
        }
        parity: dict[str, Any] = named.pop("golden")
        if parts:
            parity |= {"origin": "journal", "parts": named}
        target = {
            "file": f"{self.model}.edgepack",
            "size": len(data),
            "sha256": sha256(data).hexdigest(),
            "dtype": "float32",
            "runtime": {"name": "edge.js", "min": "ES2020"},
            "parity": parity,
        }
        about = {
            "spec": 1, "model": self.model, "task": "multiclass", "classes": ["x", "y", "z"],
            "features": list(COLUMNS), "targets": {"edgepack": target},
            "freshness": {
                "version": [1, seed], "snapshot_at": now - 5.0, "events": seed,
                "trained_through": {"event": f"1:{seed}", "at": 5},
            },
            "learn": {"rate": 0.1, "clip": 1.0},
        }  # fmt: skip
        files = {sha256(one).hexdigest(): one for one in (data, *told.values())}
        channel = self.folder.channel()
        about, differences, _ = with_deltas(self.folder, channel, about, files)
        self._sign(channel.published(about, percent), now, files | differences)

    def change(self, how: Callable[[Channel], Channel], now: float) -> None:
        """Promote, halt …"""
        self._sign(how(self.folder.channel()), now)

    def _sign(self, channel: Channel, now: float, files: Mapping[str, bytes] | None = None) -> None:
        with self.folder.locked():
            self.folder.publish(channel, channel.head(now, DAY_S), self.signing, files)

    def served(self) -> dict[str, bytes]:
        """Everything that a device can fetch now, by its path."""
        data, signature = self.folder.head()
        files = {f"files/{f.name}": f.read_bytes() for f in (self.folder.path / "files").iterdir()}
        return {"manifest.json": data, "manifest.sig": signature, "roots.json": self.chain, **files}


class Asked:
    """The routes alone."""

    def __init__(self, place: Path | None, *, guarded: bool = False) -> None:
        def known(model: str) -> None:
            if model != "m":
                raise RequestError(404, "unknown_model", f"no model {model!r}")

        self._app = FastAPI()
        self._app.include_router(served.routes(known, place, guarded=guarded))

        @self._app.exception_handler(RequestError)
        async def refused(request: Any, error: RequestError) -> JSONResponse:
            return JSONResponse({"code": error.code}, error.status)

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://m") as client:
                return await client.get(path, headers=headers)

        return asyncio.run(ask())

    def post(self, path: str, body: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://m") as client:
                return await client.post(path, json=body)

        return asyncio.run(ask())
