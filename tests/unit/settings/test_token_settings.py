"""Tokens in the settings: in place, in files, as digests; and no output that shows one."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from typer.testing import CliRunner

from online.commands.cli import app as command_line
from online.errors import ConfigError, RequestError
from online.http.middleware.access import Access
from online.messages.sender import sender
from online.settings.access_tokens import WITH_SECRETS
from online.settings.config import Settings, load, own_token
from online.settings.tokens import ROLES, Grant, Role, digest

TOKENS: Final[dict[Role, str]] = {role: f"{role}-0123456789abcdefghijkl" for role in ROLES}
STRANGE: Final = "nobody-0123456789abcdefghijkl"
MODELS: Final = [{"name": "m", "task": "binary", "learner": "logreg"}]


def held(guard: Access, header: str | None) -> set[str]:
    """Roles that the header has, by asking for each."""
    out: set[str] = set()
    for role in ROLES:
        headers = {} if header is None else {b"authorization": header.encode("latin-1")}
        with contextlib.suppress(RequestError):
            guard.check(headers, frozenset({role}))
            out.add(role)
    return out


def settings_of(tmp_path: Path, tokens: Any, **more: Any) -> Settings:
    path = tmp_path / "online.yaml"
    path.write_text(yaml.safe_dump({"models": MODELS, "tokens": tokens, **more}))
    return load(path, {}, {})


def token_files(tmp_path: Path) -> dict[str, str]:
    """A file for each role, readable by the owner; named as the settings name them."""
    for role, token in TOKENS.items():
        path = tmp_path / f"{role}.token"
        path.write_text(f"# of {role}\n\n  {token}  \n")
        path.chmod(0o600)
    return {f"{role}_file": f"{role}.token" for role in ROLES}


def test_files_of_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_of(tmp_path, token_files(tmp_path))
    assert {role: settings.tokens.of(role) for role in ROLES} == {
        role: (token,) for role, token in TOKENS.items()
    }
    assert not caplog.text
    (tmp_path / "admin.token").chmod(0o640)
    settings_of(tmp_path, token_files_of(ROLES))
    assert "chmod 600" in caplog.text
    assert TOKENS["admin"] not in caplog.text


def token_files_of(roles: tuple[Role, ...]) -> dict[str, str]:
    return {f"{role}_file": f"{role}.token" for role in roles}


def test_a_file_may_hold_the_next_token_beside_this_one(tmp_path: Path) -> None:
    tokens = token_files(tmp_path)
    with (tmp_path / "predict.token").open("a") as file:
        file.write(f"{digest(STRANGE)}\n")
    found = settings_of(tmp_path, tokens).tokens
    guard = Access({role: found.of(role) for role in ROLES})
    assert held(guard, f"Bearer {STRANGE}") == held(guard, f"Bearer {TOKENS['predict']}")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_tokens_open_other_addresses(tmp_path: Path, host: str) -> None:
    assert settings_of(tmp_path, TOKENS, host=host).host == host
    with pytest.raises(ConfigError, match="Give tokens for predict, feedback and admin"):
        settings_of(tmp_path, {}, host=host)


@pytest.mark.parametrize("missing", ROLES)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_all_roles_have_tokens_or_none(tmp_path: Path, missing: Role, host: str) -> None:
    some = {role: token for role, token in TOKENS.items() if role != missing}
    with pytest.raises(ConfigError, match=f"none for {missing}"):
        settings_of(tmp_path, some, host=host)


def test_a_feedback_token_may_stand_for_a_source(tmp_path: Path) -> None:
    """Two of one source while they are changed; an admin's may name any; a file has them too."""
    shop, next_shop, plain = (f"{name}-0123456789abcdefghijkl" for name in ("shop", "next", "any"))
    entries = [{"source": "shop", "token": shop}, {"source": "shop", "token": next_shop}, plain]
    settings = settings_of(tmp_path, {**TOKENS, "feedback": [*entries, TOKENS["admin"]]})
    data = settings.model_dump(mode="json", context=WITH_SECRETS)
    for tokens in (settings.tokens, Settings.model_validate(data).tokens):
        guard = Access({role: tokens.of(role) for role in ROLES}, tokens.grants)
        found = {}
        for token in (shop, next_shop, plain, TOKENS["admin"]):
            headers = {b"authorization": f"Bearer {token}".encode()}
            guard.check(headers, frozenset[Role]({"feedback"}))
            found[token] = sender.get().source
        assert found == {shop: "shop", next_shop: "shop", plain: None, TOKENS["admin"]: None}
    assert "0123456789" not in str(settings.model_dump(mode="json"))
    (tmp_path / "feedback.token").write_text(f"shop {shop}\n{plain}\n")
    filed: dict[str, str] = {**TOKENS, "feedback_file": "feedback.token"}
    del filed["feedback"]
    assert settings_of(tmp_path, filed).tokens.grants == {("feedback", shop): Grant("shop")}
    wrongs = (f"{shop} {next_shop}", {"source": "a/b", "token": shop}, {"source": "a" * 24})
    for wrong in wrongs:
        with pytest.raises(ConfigError) as caught:
            settings_of(tmp_path, {**TOKENS, "feedback": [wrong]})
        assert "0123456789" not in str(caught.value)
    with pytest.raises(ConfigError, match="Give sources to tokens for predict and feedback only"):
        settings_of(tmp_path, {**TOKENS, "admin": [{"source": "shop", "token": shop}]})


def test_a_token_may_have_its_own_bound_and_those_it_labels_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the settings and in a file; what replicas get says the same; nobody else may have them."""
    shop, plain = (f"{name}-0123456789abcdefghijkl" for name in ("shop", "any"))
    entries = [
        {"source": "office", "token": shop, "weight_max": 50, "labels_for": ["app", "till-2"]},
        {"token": plain, "labels_for": "app"},
    ]
    wanted = {
        ("feedback", shop): Grant("office", 50.0, ("app", "till-2")),
        ("feedback", plain): Grant(None, None, ("app",)),
        ("predict", TOKENS["predict"]): Grant("app"),
    }
    given = {**TOKENS, "feedback": entries, "predict": f"app {TOKENS['predict']}"}
    settings = settings_of(tmp_path, given)
    assert settings.tokens.grants == wanted
    assert settings.tokens.vouched
    assert "labels_for names ['till-2']" in caplog.text
    data = settings.model_dump(mode="json", context=WITH_SECRETS)
    travelled = Settings.model_validate(data).tokens
    guard = Access({role: travelled.of(role) for role in ROLES}, travelled.grants)
    for (role, token), grant in wanted.items():
        guard.check({b"authorization": f"Bearer {token}".encode()}, frozenset[Role]({role}))
        assert sender.get() == grant
    lines = f"office {shop} weight_max=50 labels_for=app,till-2\n{plain} labels_for=app\n"
    (tmp_path / "feedback.token").write_text(lines)
    filed = {**given, "feedback_file": "feedback.token"}
    del filed["feedback"]
    assert settings_of(tmp_path, filed).tokens.grants == wanted
    for more in (
        {"weight_max": 0.5},
        {"weight_max": "x"},
        {"weight_max": 1e7},
        {"weight_max": float("nan")},
        {"labels_for": ["a/b"]},
        {"labels_for": []},
    ):
        with pytest.raises(ConfigError) as caught:
            settings_of(tmp_path, {**TOKENS, "feedback": [{"token": shop, **more}]})
        assert "0123456789" not in str(caught.value)
    with pytest.raises(ConfigError, match="to feedback tokens only"):
        settings_of(tmp_path, {**TOKENS, "predict": [{"token": shop, "weight_max": 5}]})


SECRET: Final = "hunter2-is-my-secret-token"
WRONG: Final[list[Any]] = [
    {**TOKENS, "predict": "hunter2"},
    {**TOKENS, "predict": f"{SECRET} {SECRET}"},
    {**TOKENS, "predict": [SECRET, "hunter2"]},
    {**TOKENS, "predict": {SECRET: 1}},
    {**TOKENS, "predict": {"token": SECRET}},
    {**TOKENS, "predcit": SECRET},
    {"predict": SECRET, "feedback": SECRET},
    {**TOKENS, "predict": SECRET, "predict_file": "predict.token"},
    {**TOKENS, "predict": "sha256:hunter2"},
    {**TOKENS, "predict": SECRET * 40},
    SECRET,
    [SECRET],
]


@pytest.mark.parametrize("tokens", WRONG)
def test_a_refusal_names_the_field_and_no_token(
    tmp_path: Path, tokens: Any, caplog: pytest.LogCaptureFixture
) -> None:
    token_files(tmp_path)
    with pytest.raises(ConfigError) as caught:
        settings_of(tmp_path, tokens)
    error = caught.value
    assert error.field.startswith("tokens")
    assert error.remedy
    shown = f"{error} {error!r} {error.__cause__!r} {caplog.text}"
    assert "hunter2" not in re.sub(r"unknown setting.*", "", shown)


@pytest.mark.parametrize("text", ["", "# nothing\n", "hunter2\n", f"{SECRET}\nhunter2\n"])
def test_a_file_that_holds_no_tokens(tmp_path: Path, text: str) -> None:
    tokens = token_files(tmp_path)
    (tmp_path / "predict.token").write_text(text)
    with pytest.raises(ConfigError, match="predict_file") as caught:
        settings_of(tmp_path, tokens)
    assert "hunter2" not in str(caught.value)
    (tmp_path / "predict.token").unlink()
    with pytest.raises(ConfigError, match="No such file"):
        settings_of(tmp_path, tokens)


def test_a_line_that_is_no_yaml_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "online.yaml"
    path.write_text(f"tokens:\n  admin: [{SECRET}\nhost: x\n")
    with pytest.raises(ConfigError, match="line 3") as caught:
        load(path, {}, {})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("files", [False, True])
def test_no_output_shows_a_token_or_its_digest(tmp_path: Path, files: bool) -> None:
    settings = settings_of(tmp_path, token_files(tmp_path) if files else dict(TOKENS))
    said = f"{settings} {settings!r} {settings.tokens!r} {settings.model_dump()}"
    said += settings.model_dump_json() + str(settings.model_dump(mode="json"))
    path = str(tmp_path / "online.yaml")
    for arguments in (["show", path], ["show", path, "--json"], ["check", path]):
        shown = CliRunner().invoke(command_line, ["config", *arguments])
        assert shown.exit_code == 0
        said += shown.output
    assert "***" in said
    for token in TOKENS.values():
        assert token not in said
        assert digest(token).removeprefix("sha256:") not in said
    travels = settings.model_dump(mode="json", context=WITH_SECRETS)
    assert not any(token in str(travels) for token in TOKENS.values()), "digests do"
    again = Settings.model_validate(travels).tokens
    guard = Access({role: again.of(role) for role in ROLES})
    assert [held(guard, f"Bearer {token}") for token in TOKENS.values()] == [{r} for r in ROLES]


def test_what_our_own_commands_send(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, TOKENS)
    assert own_token(settings, {}) == TOKENS["admin"]
    assert own_token(settings, {"ONLINE_TOKEN": STRANGE}) == STRANGE
    assert own_token(None, {}) is None
    hashed = settings_of(tmp_path, {role: digest(token) for role, token in TOKENS.items()})
    assert own_token(hashed, {}) is None
    for wrong in ("hunter2", digest(SECRET)):
        with pytest.raises(ConfigError, match="ONLINE_TOKEN") as caught:
            own_token(settings, {"ONLINE_TOKEN": wrong})
        assert wrong not in str(caught.value)


def test_play_needs_a_token_that_it_can_send(tmp_path: Path) -> None:
    settings_of(tmp_path, {role: digest(token) for role, token in TOKENS.items()})
    path = str(tmp_path / "online.yaml")
    result = CliRunner().invoke(command_line, ["serve", path, "--play", "phishing"])
    assert isinstance(result.exception, ConfigError)
    assert "ONLINE_TOKEN" in result.exception.remedy
