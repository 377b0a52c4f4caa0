"""A page in somebody's browser is not the operator: whose pages may use the service, by what name.

A browser sends requests for any page that it shows, to loopback too.  Two headers tell such a
request from a program's, and no page can change them: ``Origin`` and ``Sec-Fetch-Site`` say whose
page asks, and ``Host`` says by which name the browser knows the service.  A page whose own name
was made to point here (DNS rebinding) is of the same origin as the service, and only ``Host``
gives it away.  Programs send neither of the first two, and the name that they were given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from online.errors import RequestError
from online.settings.origins import check_host, check_origin, is_loopback, without_port

Headers = Mapping[bytes, bytes]

_PROBES: Final = re.compile(r"/livez|/readyz|/v2/health/(live|ready)")
"""Asked by whatever name or address a probe has; they change nothing and tell next to nothing."""
_PAGES: Final = re.compile(r"/|/docs|/edge/demo|/demo/choose")
"""What a link may lead to.  Who follows it sees the page; the page with the link reads nothing."""
_PARTS: Final = re.compile(r"/edge/[^/]+|/static-offline-docs/.*")
"""Files of the package, the same in every service."""

_HOSTS_SEEN: Final = 256


class Browsers:
    """Which requests come from a page that may not use the service.

    Parameters:
        origins: Pages that may, as their origin; those of the service itself always may.
        hosts: Names of the service, beside loopback and ``localhost``.
        guarded: The service has access tokens, which a page whose name points here does not know:
            names are checked only if ``hosts`` has some.
        own: The address that the service listens on, by which its own commands call it.
    """

    def __init__(
        self, origins: Sequence[str], hosts: Sequence[str], *, guarded: bool, own: str
    ) -> None:
        self._origins = frozenset(map(check_origin, origins))
        self._hosts = frozenset([*map(check_host, hosts), without_port(own)])
        self._by_name = not guarded or bool(hosts)
        self._is_ours = lru_cache(_HOSTS_SEEN)(self._known_host)

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Refuse what a foreign page sends, or what comes by a foreign name.

        Raises RequestError 403, which names the setting that allows it.
        """
        if _PROBES.fullmatch(path):
            return
        host = headers.get(b"host")
        if self._by_name and host is not None and not self._is_ours(host):
            name = _printable(without_port(host.decode("latin-1")))
            raise RequestError(
                403, "foreign_host", f"{name} is no name of this service", None,
                "Call it by 127.0.0.1 or localhost, or add the name to the setting `hosts`",
            )  # fmt: skip
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if (origin is None and site is None) or self._is_own_page(origin, site, host):
            return
        reads = method in ("GET", "HEAD")
        if reads and (_PARTS.fullmatch(path) or (_PAGES.fullmatch(path) and _follows(headers))):
            return
        asks = "another site" if origin is None else _printable(origin.decode("latin-1"))
        raise RequestError(
            403, "foreign_origin", f"a page of {asks} may not use this service", None,
            "Add the page's origin, as https://app.example.com, to the setting `origins`",
        )  # fmt: skip

    def _is_own_page(self, origin: bytes | None, site: bytes | None, host: bytes | None) -> bool:
        """Whether the page that asks is the service's own, one of the settings, or the user."""
        if origin is not None and origin.decode("latin-1").lower() in self._origins:
            return True
        if site is not None:  # the browser knows it better, also behind a proxy that changes Host
            return site in (b"same-origin", b"none")
        assert origin is not None
        _, _, place = origin.decode("latin-1").lower().partition("://")
        return host is not None and _in_short(place) == _in_short(host.decode("latin-1").lower())

    def _known_host(self, host: bytes) -> bool:
        name = without_port(host.decode("latin-1"))
        return name == "localhost" or name in self._hosts or is_loopback(name) is True


def _follows(headers: Headers) -> bool:
    """Whether a browser opens the answer as a page of its own: no other page reads it."""
    return (headers.get(b"sec-fetch-mode"), headers.get(b"sec-fetch-dest")) == (
        b"navigate", b"document",
    )  # fmt: skip


def _in_short(place: str) -> str:
    """Host and port, without a port that a browser leaves out."""
    return place.removesuffix(":80").removesuffix(":443")


def _printable(value: str) -> str:
    return ascii(value[:100])
