"""Receivers of alerts, by webhook or mail: each call is one attempt with a time limit."""

from __future__ import annotations

import base64
import contextlib
import hmac
import http.client
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Final, Protocol
from urllib.parse import urlsplit

from online import __version__
from online.errors import OnlineError
from online.monitoring.alerts import Alert, body, filled
from online.settings.alerts import SECRET_PREFIX, Alerts, Kind, Mail, Webhook
from refusals import reason

_ANSWER_BYTES_MAX: Final = 65_536
_AGAIN: Final = frozenset({408, 425, 429})
"""Statuses below 500 after which a retry may succeed."""
_SUBJECT_MAX: Final = 200


class NotSent(OnlineError):
    """A receiver did not accept a message.  ``again``: a retry may succeed."""

    receiver: str
    why: str
    again: bool = True
    text = "{receiver} did not take the message: {why}"


class Receiver(Protocol):
    """A receiver of alerts of some kinds."""

    name: str
    on: tuple[Kind, ...]

    def send(self, alert: Alert) -> None:
        """Make one attempt.  Raises NotSent."""


def signature(secret: str, message_id: str, at: int, content: bytes) -> str:
    """Return the signature of a message by the Standard Webhooks: ``v1,`` and base64."""
    key = (
        base64.b64decode(secret.removeprefix(SECRET_PREFIX))
        if secret.startswith(SECRET_PREFIX)
        else secret.encode()
    )
    signed = f"{message_id}.{at}.".encode() + content
    return f"v1,{base64.b64encode(hmac.digest(key, signed, 'sha256')).decode()}"


class HttpReceiver:
    """A webhook that gets a POST; redirects are not followed.

    Parameters:
        given: Address, body, secret and kinds.
        wait_s: Limit of a whole attempt in seconds, without the name look-up.
        now_s: Wall clock, POSIX seconds.
    """

    def __init__(
        self, given: Webhook, wait_s: float, now_s: Callable[[], float] = time.time
    ) -> None:
        self._given, self._wait_s, self._now_s = given, wait_s, now_s
        self._to = urlsplit(given.url)
        self.name, self.on = f"webhook {self._to.hostname}", given.on

    def send(self, alert: Alert) -> None:
        """Make one attempt.  Raises NotSent."""
        content = body(alert, self._given.body)
        path = f"{self._to.path or '/'}{'?' + self._to.query if self._to.query else ''}"
        connection = self._connection()
        try:
            connection.connect()
            with _at_most(self._wait_s, lambda: connection.sock):
                connection.request("POST", path, content, self._headers(alert, content))
                response = connection.getresponse()
                status = response.status
                response.read(_ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise NotSent(self.name, reason(error)) from error
        finally:
            connection.close()
        if not 200 <= status < 300:
            raise NotSent(self.name, f"status {status}", status >= 500 or status in _AGAIN)

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._to.hostname or "", self._to.port
        if self._to.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self._wait_s)
        trusted = ssl.create_default_context()
        return http.client.HTTPSConnection(host, port, timeout=self._wait_s, context=trusted)

    def _headers(self, alert: Alert, content: bytes) -> dict[str, str]:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"online-learning-service/{__version__}",
            "webhook-id": alert.id,
        }
        if self._given.secret is not None:
            at, secret = int(self._now_s()), self._given.secret.get_secret_value()
            headers["webhook-timestamp"] = str(at)
            headers["webhook-signature"] = signature(secret, alert.id, at, content)
        return headers


class Mailbox:
    """Mail addresses that get messages by an SMTP server."""

    def __init__(self, given: Mail, wait_s: float) -> None:
        self._given, self._wait_s = given, wait_s
        self.name, self.on = f"mail {', '.join(given.to)}", given.on

    def send(self, alert: Alert) -> None:
        """Make one attempt.  Raises NotSent."""
        given = self._given
        try:
            with self._connected() as server, _at_most(self._wait_s, lambda: server.sock):
                if given.security == "starttls":
                    server.starttls(context=ssl.create_default_context())
                if given.user is not None and given.password is not None:
                    server.login(given.user, given.password.get_secret_value())
                refused = server.send_message(self._message(alert), given.sender, given.to)
        except smtplib.SMTPResponseException as error:
            reply = error.smtp_error
            text = reply.decode(errors="replace") if isinstance(reply, bytes) else reply
            why = f"{error.smtp_code} {text}"
            raise NotSent(self.name, why, not 500 <= error.smtp_code < 600) from error
        except smtplib.SMTPRecipientsRefused as error:
            raise NotSent(self.name, f"refused: {', '.join(error.recipients)}", False) from error
        except (OSError, smtplib.SMTPException) as error:
            raise NotSent(self.name, reason(error)) from error
        if refused:  # the others have it: a repeat would reach them twice
            raise NotSent(self.name, f"refused: {', '.join(refused)}", False)

    def _connected(self) -> smtplib.SMTP:
        given = self._given
        if given.security == "tls":
            trusted = ssl.create_default_context()
            return smtplib.SMTP_SSL(given.host, given.port, timeout=self._wait_s, context=trusted)
        return smtplib.SMTP(given.host, given.port, timeout=self._wait_s)

    def _message(self, alert: Alert) -> EmailMessage:
        made = EmailMessage()
        subject = " ".join(filled(self._given.subject, alert).split())
        made["Subject"] = subject[:_SUBJECT_MAX]
        made["From"], made["To"] = self._given.sender, ", ".join(self._given.to)
        made["Date"] = format_datetime(datetime.fromtimestamp(alert.at, UTC))
        made["Message-ID"] = f"<{alert.id}@{self._given.sender.partition('@')[2]}>"
        made["Auto-Submitted"] = "auto-generated"
        made.set_content(filled(self._given.text, alert))
        return made


def receivers(settings: Alerts) -> Sequence[Receiver]:
    """Make all receivers that the settings name."""
    return [
        *(HttpReceiver(given, settings.wait_s) for given in settings.webhooks),
        *(Mailbox(given, settings.wait_s) for given in settings.mail),
    ]


@contextlib.contextmanager
def _at_most(seconds: float, connected: Callable[[], socket.socket | None]) -> Iterator[None]:
    """Shut the connection down after ``seconds``; a socket's timeout only bounds each read."""

    def cut() -> None:
        if (of := connected()) is not None:  # looked up late, as TLS replaces the socket
            with contextlib.suppress(OSError):
                of.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
