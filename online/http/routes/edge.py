"""Routes for devices: published models, and the client code that uses them.

Files are named by their hash or by one of three fixed names; a name from a request never becomes a
path unchecked.  Files are read on a thread.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from online.edge.releases.folder import FILE_BYTES_MAX, SIGNATURE_BYTES, Folder
from online.errors import RequestError
from online.http.routes.front import UNFRAMED, takes_gzip
from online.messages.bodies import JSON
from online.serving.device_pushes import Push, Pushes, not_taken

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_FOREVER: Final = "max-age=31536000, immutable"
_ASK: Final = "no-cache"
_ZIPPED_FROM: Final = 512
_JSON: Final = "application/json"
_BINARY: Final = "application/octet-stream"
_PAGE: Final = "text/html; charset=utf-8"
_SCRIPT: Final = "text/javascript; charset=utf-8"
_UNCHANGED: Final[dict[int | str, dict[str, Any]]] = {
    304: {"description": "As If-None-Match names it"}
}
_SPACES: Final = re.compile(
    r"""("(?:\\.|[^"\\\n])*"|`(?:\\.|[^`\\])*`)|[ \n]*([{}()\[\]=;,:?<>*&|!])[ \n]*"""
)
_COMMENT: Final = re.compile(r"^\s*(/\*\*.*?\*/|//[^\n]*)\n|^\s+", re.DOTALL | re.MULTILINE)

PARTS: Final = {
    "demo": ("demo.html", _PAGE),
    "demo.js": ("demo.js", _SCRIPT),
    "edge.js": ("edge.js", _SCRIPT),
    "trust.js": ("trust.js", _SCRIPT),
    "client.js": ("client.js", _SCRIPT),
    "worker.js": ("worker.js", _SCRIPT),
    "learn.js": ("learn.js", _SCRIPT),
}
"""The demo page and the client's files, by their name under ``/edge/``."""


class Report(BaseModel):
    """A device's report on its use of a release."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"sequence": 17, "device": "1x9-k2", "outcome": "used"}]},
    )
    sequence: int = Field(ge=1, le=2**53)
    device: str = Field(min_length=1, max_length=64, pattern="^[A-Za-z0-9._-]+$")
    outcome: Literal["used", "failed"]
    asked: int = Field(0, ge=0, le=2**53, description="rows that the service answered as well")
    differ: int = Field(0, ge=0, le=2**53, description="how many of them got another label")


def routes(
    known: Callable[[str], None],
    place: Path | None,
    *,
    guarded: bool,
    pushes: Mapping[str, Pushes] | None = None,
) -> APIRouter:
    """Make the routes of every model; ``known`` raises for one that is not served.

    Parameters:
        place: Folder of the models' folders (:mod:`online.edge.releases.folder`); None: nothing is
            published.
        guarded: Reading requires a token, so shared caches must not keep the answers.
        pushes: By model, the receiver of devices' deltas.
    """
    made = APIRouter(tags=["edge"])
    whose = "private" if guarded else "public"

    def head_of(model: str) -> bytes:
        return _read(model, None if place is None else place / model / "head")

    example = {"model": "prices", "sequence": 17, "revision": 2, "cohort": {"percent": 10}}
    about: dict[int | str, dict[str, Any]] = {
        200: {"description": "Canonical JSON", "content": {_JSON: {"example": example}}}
    }

    @made.get(
        "/v1/models/{model}/edge/manifest.json",
        summary="Manifest of the newest release for devices",
        response_class=Response,
        responses={**about, **_UNCHANGED},
    )
    def manifest(model: str, request: Request) -> Response:
        known(model)
        return _answer(request, head_of(model)[SIGNATURE_BYTES:], _JSON, f"{whose}, {_ASK}")

    @made.get(
        "/v1/models/{model}/edge/manifest.sig",
        summary="Ed25519 signature of the manifest: 64 bytes",
        response_class=Response,
        responses={200: {"content": {_BINARY: {}}, "description": "The signature"}, **_UNCHANGED},
    )
    def signature(model: str, request: Request) -> Response:
        known(model)
        return _answer(request, head_of(model)[:SIGNATURE_BYTES], _BINARY, f"{whose}, {_ASK}")

    @made.get(
        "/v1/models/{model}/edge/roots.json",
        summary="Keys that sign manifests: a chain of signed lists",
        response_class=Response,
        responses={200: {"content": {_JSON: {}}, "description": "The lists"}, **_UNCHANGED},
    )
    def roots(model: str, request: Request) -> Response:
        known(model)
        data = _read(model, None if place is None else place / model / "roots.json")
        return _answer(request, data, _JSON, f"{whose}, {_ASK}")

    _add_files(made, known, place, f"{whose}, {_FOREVER}")
    _add_releases(made, known, place)
    _add_reports(made, known, place)
    _add_deltas(made, known, pushes or {})
    _add_parts(made)
    return made


def _add_files(
    made: APIRouter, known: Callable[[str], None], place: Path | None, kept: str
) -> None:
    @made.get(
        "/v1/models/{model}/edge/files/{sha256}",
        summary="A published file by its SHA-256; it never changes",
        response_class=Response,
        responses={200: {"content": {_BINARY: {}}, "description": "The file"}, **_UNCHANGED},
    )
    def file(model: str, sha256: str, request: Request) -> Response:
        known(model)
        if place is None or not _DIGEST.fullmatch(sha256):
            raise _unknown_file(sha256)
        path = place / model / "files" / sha256
        try:
            if path.stat().st_size > FILE_BYTES_MAX:
                raise _unknown_file(sha256)
            data = path.read_bytes()
        except FileNotFoundError:
            raise _unknown_file(sha256) from None
        return _answer(request, data, _BINARY, kept, sha256)


def _add_releases(made: APIRouter, known: Callable[[str], None], place: Path | None) -> None:
    @made.get(
        "/v1/models/{model}/edge/releases",
        summary="Kept releases, with their use and failures as reported by devices",
    )
    def releases(model: str) -> dict[str, Any]:
        known(model)
        none = {"sequence": 0, "releases": []}
        return {"model": model, **(none if place is None else Folder(place / model).standing())}


def _add_reports(made: APIRouter, known: Callable[[str], None], place: Path | None) -> None:
    @made.post(
        "/v1/models/{model}/edge/reports",
        summary="Report that a device uses the newest release, or that it failed its test",
        responses={200: {"content": {_JSON: {"example": {"counted": True}}}}},
    )
    def report(model: str, body: Report) -> dict[str, bool]:
        known(model)
        if place is None:
            return {"counted": False}
        outcome = (body.outcome, body.asked, body.differ)
        counted = Folder(place / model).report(body.sequence, body.device, *outcome)
        return {"counted": counted}


def _add_deltas(
    made: APIRouter, known: Callable[[str], None], pushes: Mapping[str, Pushes]
) -> None:
    example = {"status": "learned", "event_id": "1x9-k2:12", "version": "3.120", "seen": "7:40"}

    @made.post(
        "/v1/models/{model}/edge/deltas",
        summary="Push a device's delta of the release, learned from its own rows",
        responses={200: {"content": {_JSON: {"example": example}}}},
    )
    async def delta(model: str, body: Push) -> Response:
        known(model)
        if model not in pushes:
            raise not_taken(model, "the settings do not ask for them (models[].devices)")
        status, receipt = await pushes[model].take(body)
        return Response(JSON.encode(receipt), status, media_type=_JSON)


def shortened(script: str) -> str:
    """Minify a script: remove comment lines, indentation, and spaces around operators.

    Spaces between words and beside ``+``, ``-`` and ``/``, and all text literals, are kept.
    """
    return _SPACES.sub(lambda found: found[1] or found[2], _COMMENT.sub("", script))


def shipped(name: str) -> bytes:
    """Return a part as it is served; scripts are minified, which saves three tenths."""
    file, kind = PARTS[name]
    text = resources.files("online.edge").joinpath(file).read_text("utf-8")
    return (shortened(text) if kind == _SCRIPT else text).encode()


def _add_parts(made: APIRouter) -> None:
    plain = {name: shipped(name) for name in PARTS}

    @made.get("/edge/{part}", include_in_schema=False)
    def part(part: str, request: Request) -> Response:
        if part not in plain:
            raise RequestError(404, "unknown_path", f"no /edge/{part[:80]}", None, "See /edge/demo")
        return _answer(request, plain[part], PARTS[part][1], f"public, {_ASK}")


def _read(model: str, path: Path | None) -> bytes:
    try:
        if path is not None:
            return path.read_bytes()
    except FileNotFoundError:
        pass
    raise RequestError(
        404, "nothing_published", f"nothing of model {model} is published for devices", None,
        "Publish it: online edge publish",
    )  # fmt: skip


def _unknown_file(name: str) -> RequestError:
    hint = "Read manifest.json again: it names the files"
    return RequestError(404, "unknown_file", f"no file {name[:80]!r}", "sha256", hint)


def _answer(
    request: Request, data: bytes, kind: str, cache: str, digest: str | None = None
) -> Response:
    """Answer with the data, gzipped if it is text and accepted; 304 if the client has it."""
    etag = f'"{digest or sha256(data).hexdigest()}"'
    headers = {"etag": etag, "cache-control": cache, "x-content-type-options": "nosniff"}
    if kind == _PAGE:
        headers |= UNFRAMED
    had = [
        tag.strip().removeprefix("W/")
        for tag in request.headers.get("if-none-match", "").split(",")
    ]
    if etag in had or had == ["*"]:
        return Response(status_code=304, headers=headers)
    if len(data) > _ZIPPED_FROM and (kind != _BINARY or data[:1] == b"{"):
        headers["vary"] = "accept-encoding"
        if takes_gzip(request):
            headers |= {"content-encoding": "gzip", "etag": f"W/{etag}"}
            data = gzip.compress(data, 9, mtime=0)
    return Response(data, media_type=kind, headers=headers)
