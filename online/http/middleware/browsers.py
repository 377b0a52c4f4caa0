"""Rejects requests that foreign web pages send through a user's browser.

A browser sends requests for any page that it shows, even to loopback addresses.  Two kinds of
headers, which pages cannot change, distinguish them from a program's: ``Origin`` and
``Sec-Fetch-Site`` name the page's site, and ``Host`` is the name by which the browser knows the
service.  If a page's own name was made to resolve to the service (DNS rebinding), both have the
same origin, and only ``Host`` reveals it.  Programs send neither ``Origin`` nor
``Sec-Fetch-Site``, and the host name that they were configured with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from online.errors import RequestError
from online.settings.addresses import check_host, check_origin, is_loopback, without_port

Headers = Mapping[bytes, bytes]

_PROBES: Final = re.compile(r"/livez|/readyz|/v2/health/(live|ready)")
"""Health probes, which may use any name or address; they change nothing and reveal little."""
_PAGES: Final = re.compile(r"/|/docs|/edge/demo|/demo/choose")
"""Pages that a foreign link may open: the user sees them, but the linking page cannot read them."""
_PARTS: Final = re.compile(r"/edge/[^/]+|/static-offline-docs/.*")
"""Static files of the package, the same in every installation."""

_HOSTS_SEEN: Final = 256


class Browsers:
    """Decides which requests come from a page that may not use the service.

    Parameters:
        origins: Origins of pages that may use it; the service's own pages always may.
        hosts: Host names of the service, beside loopback addresses and ``localhost``.
        guarded: The service has access tokens, which protect it against DNS rebinding: host names
            are then checked only if ``hosts`` is not empty.
        own: The address that the service listens on, which its own commands use.
    """

    def __init__(
        self, origins: Sequence[str], hosts: Sequence[str], *, guarded: bool, own: str
    ) -> None:
        self._origins = frozenset(map(check_origin, origins))
        self._hosts = frozenset([*map(check_host, hosts), without_port(own)])
        self._by_name = not guarded or bool(hosts)
        self._is_ours = lru_cache(_HOSTS_SEEN)(self._known_host)

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Reject a request from a foreign page, or by a foreign host name.

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
        """Whether the requesting page is the service's own, a configured one, or the user."""
        if origin is not None and origin.decode("latin-1").lower() in self._origins:
            return True
        if site is not None:  # reliable even behind a proxy that rewrites Host
            return site in (b"same-origin", b"none")
        assert origin is not None
        _, _, place = origin.decode("latin-1").lower().partition("://")
        return host is not None and _in_short(place) == _in_short(host.decode("latin-1").lower())

    def _known_host(self, host: bytes) -> bool:
        name = without_port(host.decode("latin-1"))
        return name == "localhost" or name in self._hosts or is_loopback(name) is True


def _follows(headers: Headers) -> bool:
    """Whether the browser opens the answer as a top-level page, which no other page can read."""
    return (headers.get(b"sec-fetch-mode"), headers.get(b"sec-fetch-dest")) == (
        b"navigate", b"document",
    )  # fmt: skip


def _in_short(place: str) -> str:
    """Host and port, without a default port, which browsers leave out."""
    return place.removesuffix(":80").removesuffix(":443")


def _printable(value: str) -> str:
    return ascii(value[:100])
