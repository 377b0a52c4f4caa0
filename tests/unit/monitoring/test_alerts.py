"""Messages about the service: when there is one, what it says, and that receivers get it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from alert_receivers import WAIT_S, hook, post
from typer.testing import CliRunner

from online.commands.cli import application
from online.errors import ConfigError
from online.monitoring import receivers as receiving
from online.monitoring.alerts import Alert
from online.monitoring.conditions import Conditions
from online.monitoring.receivers import HttpReceiver, Mailbox, NotSent, receivers, signature
from online.monitoring.recording import Look, Recording
from online.monitoring.samples import Mark
from online.monitoring.sending import Outbox, Sending
from online.service.state.changes import changes
from online.settings.access_tokens import WITH_SECRETS
from online.settings.alerts import Alerts, Kind, Mail, Webhook
from online.settings.config import Settings, load

MODEL = {"name": "m", "task": "binary", "learner": "logreg"}
SECRET = "a-secret-of-enough-characters"
ALERT = Alert("alarm", "m", "raised", "the error rose", 1_700_000_000.0, "http://here:8000")


def alerts(**data: Any) -> Alerts:
    return Alerts(**{"retry_s": 0.001, "wait_s": WAIT_S, **data})


def loaded(tmp_path: Path, data: Mapping[str, Any]) -> Settings:
    file = tmp_path / "online.yaml"
    file.write_text(yaml.safe_dump({"models": [MODEL], "state_dir": str(tmp_path / "s"), **data}))
    return load(file, {}, {})


# -- when there is a message -----------------------------------------------------------------


def status(**more: Any) -> dict[str, Any]:
    return {"model": "m", "server": {"epoch": 1}, "replicas": {"r": {"age_ms": 20.0}}, **more}


def looked(found: Conditions, at: float, failed: str | None = None, **more: Any) -> list[str]:
    marks: Mapping[str, Sequence[Mark]] = more.pop("marks", {})
    statuses = [] if failed else [status(**more)]
    look = Look(at, "http://here", statuses, marks, failed)
    return [f"{a.kind} {a.state} {a.text}" for a in found.of(look, 60.0)]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"drift": {"state": "act", "why": "since noon"}},
            "alarm raised the error rose: since noon",
        ),
        ({"journal": {"alarm": "it fills"}, "incidents": ["it fills"]}, "disk raised it fills"),
        ({"incidents": ["a surprise"], "journal": {"alarm": None}}, "incident raised a surprise"),
        (
            {"replicas": {"r": {"age_ms": 61_000.0}}},
            "stale raised replica r answers from a model 61 s old",
        ),
        (
            {"replicas": {"r": {"age_ms": 1.0, "unserved_s": 70.0}}},
            "stale raised replica r answers from a model 70 s old",
        ),
    ],
)
def test_a_condition_is_told_when_it_begins_and_when_it_ends(more: Any, said: str) -> None:
    found = Conditions()
    assert looked(found, 0.0) == []
    assert looked(found, 15.0, **more) == [said]
    assert looked(found, 30.0, **more) == []
    assert looked(found, 45.0) == [said.replace(" raised ", " over ")]
    assert looked(found, 60.0) == []


def test_an_incident_whose_figures_change_is_told_once() -> None:
    found = Conditions()
    assert len(looked(found, 0.0, incidents=["1,204 rows behind for 3.5 s"])) == 1
    assert looked(found, 15.0, incident="998 rows behind for 18 s") == [], "an old replica's"
    assert len(looked(found, 30.0, incidents=["the disk fails"])) == 2, (
        "another, and the first is over"
    )
    assert looked(found, 45.0, incidents=["the disk fails", "a surprise"]) == [
        "incident raised a surprise"
    ]


def test_who_does_not_answer_for_a_moment_is_not_told_of() -> None:
    found = Conditions()
    for at, failed in (
        (0.0, "gone"),
        (45.0, None),
        (1e6, "gone"),  # then the clock is set back
        (60.0, "gone"),
        (119.0, "gone"),
    ):
        assert looked(found, at, failed) == []
    assert looked(found, 120.0, "gone") == ["stale raised it does not answer: gone"]
    assert looked(found, 135.0) == ["stale over it does not answer: gone"]


def test_a_server_that_is_gone_for_long_is_told_of() -> None:
    found = Conditions()
    assert [len(looked(found, at, server=None)) for at in (0.0, 59.0, 60.0, 75.0)] == [0, 0, 1, 0]


def test_nothing_is_over_while_nobody_answers() -> None:
    found = Conditions()
    looked(found, 0.0, incidents=["a surprise"])
    assert looked(found, 15.0, "no answer") == []
    assert looked(found, 30.0, incidents=["a surprise"]) == []
    assert looked(found, 45.0) == ["incident over a surprise"]


def test_what_happened_is_told_once() -> None:
    marks = [
        Mark(1.0, "model", "linear serves"), Mark(2.0, "quarantine", "2 sources set aside"),
        Mark(3.0, "decision", "rollback"), Mark(4.0, "start", "epoch 2"), Mark(5.0, "alarm", "x"),
    ]  # fmt: skip
    assert looked(Conditions(), 6.0, marks={"m": marks}) == [
        "promotion happened linear serves",
        "quarantine happened 2 sources set aside",
        "decision happened rollback",
    ]


# -- webhooks --------------------------------------------------------------------------------


def test_a_webhook_is_signed_as_the_standard_has_it() -> None:
    body = b'{"test": 2432232314}'
    secret, name, at = (
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
    )
    assert signature(secret, name, at, body) == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_webhook_gets_the_message_and_can_prove_it() -> None:
    with hook() as found:
        given = Webhook(url=found.url, secret=SECRET)
        HttpReceiver(given, WAIT_S, lambda: 1_700_000_005.5).send(ALERT)
        headers, body = found.next()
    assert json.loads(body) == {
        "id": ALERT.id, "kind": "alarm", "model": "m", "state": "raised", "text": "the error rose",
        "summary": "m: the error rose", "at": "2023-11-14T22:13:20Z", "time": 1_700_000_000.0,
        "service": "http://here:8000",
    }  # fmt: skip
    assert headers["content-type"] == "application/json"
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    mac = base64.b64encode(hmac.digest(SECRET.encode(), signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{mac}"
    assert headers["webhook-timestamp"] == "1700000005"


def test_a_webhook_may_have_another_body() -> None:
    alert = Alert("stale", None, "over", 'it said "no"\x1b[31m', 0.0, "http://here")
    with hook() as found:
        given = Webhook(url=found.url, body={"text": "$kind: $summary", "n": 3, "tags": ["$state"]})
        HttpReceiver(given, WAIT_S).send(alert)
        headers, body = found.next()
    shown = 'stale: the service: over: it said "no"\\x1b[31m'
    assert json.loads(body) == {"text": shown, "n": 3, "tags": ["over"]}
    assert "webhook-signature" not in headers


@pytest.mark.parametrize(
    ("status", "again"), [(500, True), (503, True), (429, True), (400, False), (302, False)]
)
def test_a_webhook_that_refuses(status: int, again: bool) -> None:
    with hook(status) as found, pytest.raises(NotSent, match=f"status {status}") as refused:
        HttpReceiver(Webhook(url=found.url), WAIT_S).send(ALERT)
    assert refused.value.again is again
    assert found.came.qsize() == 1, "a redirect is not followed"


def test_a_webhook_that_hangs_is_cut() -> None:
    go_on = threading.Event()
    with hook(hang=go_on) as found:
        with pytest.raises(NotSent):
            HttpReceiver(Webhook(url=found.url), 0.05).send(ALERT)
        go_on.set()


def test_nobody_listens() -> None:
    with hook() as found:
        pass
    with pytest.raises(NotSent, match="refused") as refused:
        HttpReceiver(Webhook(url=found.url), WAIT_S).send(ALERT)
    assert refused.value.again


# -- mail ------------------------------------------------------------------------------------


def mail(port: int, **more: Any) -> Mail:
    data = {"host": "127.0.0.1", "port": port, "security": "none", "sender": "online@example.com"}
    return Mail(**{**data, "to": ["a@example.com", "b@example.com"], **more})


def test_a_mailbox_gets_the_message() -> None:
    alert = Alert("incident", "m", "raised", "line one\r\nBcc: evil@example.com", 0.0, "http://x")
    with post() as found:
        Mailbox(mail(found.port), WAIT_S).send(alert)
        to, got = found.next()
    assert to == ["a@example.com", "b@example.com"]
    assert got["Bcc"] is None
    assert got["Subject"].startswith("[online] m: line one")
    assert got["Message-ID"] == f"<{alert.id}@example.com>"
    assert "incident, raised" in got.get_payload()


def test_a_mailbox_has_templates() -> None:
    with post() as found:
        Mailbox(mail(found.port, subject="$model $state", text="$service: $text"), WAIT_S).send(
            ALERT
        )
        _, got = found.next()
    assert got["Subject"] == "m raised"
    assert got.get_payload().strip() == "http://here:8000: the error rose"


def test_a_mailbox_that_is_not_known_is_not_tried_again() -> None:
    with post("a@example.com", "b@example.com") as found, pytest.raises(NotSent) as refused:
        Mailbox(mail(found.port), WAIT_S).send(ALERT)
    assert not refused.value.again
    with post("b@example.com") as found, pytest.raises(NotSent, match=r"b@example\.com") as refused:
        Mailbox(mail(found.port), WAIT_S).send(ALERT)
    assert not refused.value.again, "the other one has it"


def test_no_mail_server() -> None:
    with post() as found:
        pass
    with pytest.raises(NotSent) as refused:
        Mailbox(mail(found.port), WAIT_S).send(ALERT)
    assert refused.value.again


# -- the way there ---------------------------------------------------------------------------


class Taker:
    """A receiver that fails as it is told to, and then takes what comes."""

    name, on = "taker", ("alarm",)

    def __init__(self, *failures: Exception, hold: threading.Event | None = None) -> None:
        self.failures, self.hold = list(failures), hold
        self.tried: list[str] = []
        self.taken: list[str] = []
        self.enough = threading.Semaphore(0)

    def send(self, alert: Alert) -> None:
        """Take it, or fail."""
        self.tried.append(alert.text)
        if self.hold is not None:
            self.hold.wait(WAIT_S)
        if self.failures:
            raise self.failures.pop(0)
        self.taken.append(alert.text)
        self.enough.release()


def alert(text: str, kind: Kind = "alarm") -> Alert:
    return Alert(kind, "m", "raised", text, 0.0, "http://here")


def test_a_message_is_sent_again_until_it_is_taken() -> None:
    taker = Taker(NotSent("taker", "busy"), NotSent("taker", "busy"))
    with contextlib.closing(Outbox(taker, alerts())) as box:
        box.put(alert("one"))
        box.put(alert("no", "disk"))
        box.put(alert("two"))
        assert taker.enough.acquire(timeout=WAIT_S)
        assert taker.enough.acquire(timeout=WAIT_S)
    assert taker.tried == ["one", "one", "one", "two"]
    assert (box.sent, box.given_up, box.dropped) == (2, 0, 0)


@pytest.mark.parametrize(
    ("failures", "tried"),
    [
        ([NotSent("taker", "no", False)], 1),
        ([NotSent("taker", "busy")] * 3, 3),
        ([ValueError("a surprise")], 1),
    ],
)
def test_a_message_that_nobody_takes_holds_up_no_other(failures: Any, tried: int) -> None:
    taker = Taker(*failures)
    with contextlib.closing(Outbox(taker, alerts(attempts=3))) as box:
        box.put(alert("one"))
        box.put(alert("two"))
        assert taker.enough.acquire(timeout=WAIT_S)
    assert taker.tried == ["one"] * tried + ["two"]
    assert (box.sent, box.given_up) == (1, 1)


def test_the_queue_has_a_bound_and_says_what_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    hold = threading.Event()
    taker = Taker(hold=hold)
    with contextlib.closing(Outbox(taker, alerts(queue_max=2))) as box:
        box.put(alert("0"))
        while not taker.tried:  # it is on its way, and waits no more
            pass
        for i in range(1, 5):
            box.put(alert(str(i)))
        assert box.dropped == 2
        hold.set()
        for _ in range(3):
            assert taker.enough.acquire(timeout=WAIT_S)
    assert taker.taken == ["0", "1", "2"]
    assert "one is left out" in caplog.text


def test_a_receiver_that_hangs_holds_up_no_other() -> None:
    hold = threading.Event()
    slow, quick = Taker(hold=hold), Taker()
    sending = Sending(alerts, lambda _: [slow, quick])
    sending(Look(0.0, "http://here", [status(drift={"state": "act"})]))
    assert quick.enough.acquire(timeout=WAIT_S)
    hold.set()
    sending(None)
    assert not slow.taken or slow.taken == quick.taken


def test_new_settings_are_taken_while_it_runs() -> None:
    now, made = [alerts(stale_s=1)], list[Alerts]()
    takers = [Taker(), Taker()]

    def make(given: Alerts) -> list[Taker]:
        made.append(given)
        return [takers[len(made) - 1]]

    sending = Sending(lambda: now[0], make)
    sending(Look(0.0, "http://here", [status()]))
    now[0] = alerts(stale_s=2)
    sending(Look(1.0, "http://here", [status(drift={"state": "act"})]))
    assert takers[1].enough.acquire(timeout=WAIT_S)
    sending(None)
    assert (made, takers[0].taken) == ([alerts(stale_s=1), alerts(stale_s=2)], [])
    assert not [t for t in threading.enumerate() if t.name == "online-alerts"]


def test_what_is_recorded_reaches_the_receivers(tmp_path: Path) -> None:
    def ask() -> list[dict[str, Any]]:
        return [
            status(
                quality={"n": 0}, learned=0, spec="s", learner="logreg",
                drift={"state": "act", "why": "since noon"},
            )
        ]  # fmt: skip

    with hook() as found, post() as box:
        given = alerts(webhooks=[{"url": found.url}], mail=[mail(box.port).model_dump()])
        recording = Recording(tmp_path, Sending(lambda: given))
        recording.start(ask)
        assert json.loads(found.next()[1])["summary"] == "m: the error rose: since noon"
        assert box.next()[1]["Subject"] == "[online] m: the error rose: since noon"
        recording.stop()


def test_a_history_that_can_not_be_written_tells_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "history").write_text("no folder")
    looks: list[Look | None] = []
    done = threading.Event()

    def heard(look: Look | None) -> None:
        looks.append(look)
        done.set()
        raise ValueError("a mistake of whoever hears it ends nothing")

    recording = Recording(tmp_path, heard, lambda: 7.0)
    recording.start(lambda: [status()])
    assert done.wait(WAIT_S)
    recording.stop()
    assert looks == [Look(7.0, "", [status()], {}), None]


# -- settings --------------------------------------------------------------------------------


GOOD: dict[str, Any] = {
    "webhooks": [{"url": "https://hooks.example.com/T0/B0/very-secret", "secret": SECRET}],
    "mail": [
        {
            "host": "smtp.example.com", "user": "u", "password": "hidden-word",
            "sender": "online@example.com", "to": ["ops@example.com"], "on": ["disk"],
        }
    ],
}  # fmt: skip


def test_settings_name_the_receivers_and_show_no_secret(tmp_path: Path) -> None:
    settings = loaded(tmp_path, {"alerts": GOOD})
    assert [one.name for one in receivers(settings.alerts)] == [
        "webhook hooks.example.com", "mail ops@example.com",
    ]  # fmt: skip
    shown = json.dumps(settings.model_dump(mode="json")) + repr(settings)
    for secret in ("very-secret", SECRET, "hidden-word"):
        assert secret not in shown
    assert "https://hooks.example.com/***" in shown


def test_no_other_process_gets_the_secrets(tmp_path: Path) -> None:
    settings = loaded(tmp_path, {"alerts": GOOD})
    data = settings.model_dump(mode="json", context=WITH_SECRETS)
    assert data["alerts"] == {}
    assert Settings.model_validate(data).alerts == Alerts()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"webhooks": [{"url": "ftp://x/y"}]}, "alerts.webhooks.0.url: give http"),
        ({"webhooks": [{"url": "http://u:pw-1@x/y"}]}, "alerts.webhooks.0.url: an address without"),
        ({"webhooks": [{"url": "http://x", "secret": "short"}]}, "24 at least"),
        ({"webhooks": [{"url": "http://x", "secret": "whsec_" + "é" * 24}]}, "base64"),
        ({"webhooks": [{"url": "http://x", "urll": 1}]}, "Did you mean `url`?"),
        ({"webhooks": [{"url": "http://x", "body": {"a": ["$who"]}}]}, "$who is no part"),
        ({"webhooks": [{"url": "http://x", "body": {"a": "5 $"}}]}, "write $$"),
        ({"webhooks": [{"url": "http://x", "on": ["fire"]}]}, "alerts.webhooks.0.on.0"),
        ({"mail": [{**GOOD["mail"][0], "security": "none"}]}, "with starttls or tls only"),
        ({"mail": [{**GOOD["mail"][0], "user": None}]}, "belong together"),
        ({"mail": [{**GOOD["mail"][0], "to": ["a@b\nBcc: c@d"]}]}, "alerts.mail.0.to.0"),
        ({"stale_s": "soon"}, "alerts.stale_s"),
    ],
)
def test_wrong_settings_are_named_without_their_secrets(
    tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, {"alerts": wrong})
    assert said in str(refused.value)
    for secret in ("pw-1", "hidden-word", "short"):
        assert secret not in str(refused.value)


def test_a_service_that_may_not_ask_itself_is_refused(tmp_path: Path) -> None:
    token = {role: f"{role}-0123456789abcdefghijkl" for role in ("predict", "feedback", "admin")}
    assert loaded(tmp_path, {"tokens": token, "alerts": GOOD}).alerts.mail
    token["admin"] = "sha256:" + "0f" * 32
    with pytest.raises(ConfigError, match="digests"):
        loaded(tmp_path, {"tokens": token, "alerts": GOOD})


def test_other_receivers_need_no_restart(tmp_path: Path) -> None:
    found = changes(loaded(tmp_path, {}), loaded(tmp_path, {"alerts": GOOD}))
    assert (found.restart, found.rolling, found.at_once) == ((), (), ("alerts",))


# -- the command -----------------------------------------------------------------------------


def run(file: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(application("alerts"), ["alerts", *words, "--config", str(file)])
    return done.exit_code, done.output or repr(done.exception)


def test_a_test_message_says_who_took_it(tmp_path: Path) -> None:
    with hook(204, 500) as found, post() as box:
        mailbox = mail(box.port).model_dump()
        loaded(tmp_path, {"alerts": {"webhooks": [{"url": found.url}], "mail": [mailbox]}})
        assert run(tmp_path / "online.yaml", "test", "--text", "hello") == (
            0, "1: webhook 127.0.0.1: sent\n2: mail a@example.com, b@example.com: sent\n",
        )  # fmt: skip
        assert json.loads(found.next()[1])["summary"] == "the service: a test: hello"
        assert box.next()[1]["Subject"] == "[online] the service: a test: hello"
        code, said = run(tmp_path / "online.yaml", "test", "--json")
    assert code == 1
    assert json.loads(said)["failed"] == {"1: webhook 127.0.0.1": "status 500"}


def test_nobody_is_named(tmp_path: Path) -> None:
    loaded(tmp_path, {})
    code, said = run(tmp_path / "online.yaml", "test")
    assert code == 1
    assert "no receiver is configured" in said


def test_every_kind_of_message_is_documented() -> None:
    page = (Path(receiving.__file__).parents[2] / "docs" / "alerts.md").read_text()
    for kind in ("alarm", "incident", "promotion", "quarantine", "decision", "disk", "stale"):
        assert f"| `{kind}` |" in page
