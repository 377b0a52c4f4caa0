"""What the documents say is so: commands, settings, requests, links and the example model."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import typer
import yaml

from benchmarks.commands import cli as tables
from online.commands import cli
from online.messages import tensors
from online.messages.structs import Event, FeedbackRequest, Prediction, PredictRequest, Receipt
from online.models.loading.load import load
from online.rows.validator import Validator
from online.serving.feedback import receipts
from online.settings import config

ROOT: Final = Path(__file__).parents[3]
DOCUMENTS: Final = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
)
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
REQUESTS: Final = (ROOT / "docs" / "requests.md").read_text(encoding="utf-8")
REFERENCE: Final = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
README_LINES_MAX: Final = 150

_FENCE: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_MACHINE: Final = re.compile(r"(?<![\w.])/(?:work|root|home|Users|tmp)/\w")


def fenced(text: str, language: str) -> list[str]:
    """Contents of the fenced blocks of a language."""
    return [body for found, body in _FENCE.findall(text) if found == language]


def commands(text: str) -> Iterator[list[str]]:
    """Words of every `online …` in shell blocks, unit files and inline code.

    So of every `python -m benchmarks …`, whose first word is `benchmarks`.
    """
    places = [
        line
        for language in ("sh", "ini")
        for block in fenced(text, language)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    places += re.findall(r"`((?:online|python -m benchmarks) [^`\n]+)`", _FENCE.sub("", text))
    for place in places:
        line = re.sub(r"^ExecStart=\S*/", "", place.strip())
        line = re.sub(r"^python3? -m benchmarks ", "benchmarks ", line)
        if line.startswith(("online ", "benchmarks ")):
            yield shlex.split(line, comments=True)


@cache
def tree(name: str) -> Any:
    """The command line, every command below it; to make it takes a while."""
    return typer.main.get_command({"online": cli.app, "benchmarks": tables.app}[name])


def check_command(words: list[str]) -> None:
    """Each word that should be a command or an option is one."""
    command, words = tree(words[0]), words[1:]
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    options = {o: p for p in command.params for o in p.opts if o.startswith("-")}
    left = len([p for p in command.params if p.param_type_name == "argument"])
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word.startswith("-"):
            assert word in options or word == "--help", f"no option {word!r}"
            skip = word in options and not options[word].is_flag
        else:
            left -= 1
    assert left >= 0, f"too many arguments: {words}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_commands_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":  # released versions had other commands
        text = text.partition("\n## [0.1.0]")[0]
    for words in commands(text):
        check_command(words)


def test_options_named_in_the_text_exist() -> None:
    simulation = (ROOT / "tests" / "simulation" / "run.py").read_text(encoding="utf-8")
    known = {
        "--help",
        "--json",
        *_all_options(),
        *re.findall(r'add_argument\("(--\w+)"', simulation),
    }
    for path in DOCUMENTS:
        for option in re.findall(r"`(--[a-z0-9-]+)[^`]*`", path.read_text(encoding="utf-8")):
            assert option in known, f"{path.name}: {option}"


def _all_options() -> set[str]:
    todo: list[Any] = [tree("online"), tree("benchmarks")]
    found: set[str] = set()
    while todo:
        command = todo.pop()
        todo += getattr(command, "commands", {}).values()
        found |= {o for p in command.params for o in p.opts}
    return found


@pytest.mark.parametrize(
    "words",
    [
        ["online", "bogus"],
        ["online", "serve", "--bogus"],
        ["online", "snapshot", "bogus"],
        ["online", "status", "a", "b"],
        ["online", "bench", "http"],
        ["benchmarks", "load"],
        ["benchmarks", "http", "--bogus"],
    ],
)
def test_unknown_commands_are_found(words: list[str]) -> None:
    with pytest.raises(AssertionError):
        check_command(words)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        named = re.findall(r"`make (\w+)[^`]*`", text)
        for block in fenced(text, "sh"):
            named += re.findall(r"^make (\w+)", block, re.M)
        assert set(named) <= targets, path.name


# -- links ---------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def check_links(path: Path, text: str) -> None:
    """Every relative link leads to a file, and to a heading in it if it names one."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), f"{path.name}: {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_resolve(path: Path) -> None:
    check_links(path, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("link", ["[a](docs/absent.md)", "[a](README.md#no-such-heading)"])
def test_broken_links_are_found(link: str) -> None:
    with pytest.raises(AssertionError):
        check_links(ROOT / "README.md", link)


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "Makefile"], ids=lambda p: p.name)
def test_no_paths_of_a_machine(path: Path) -> None:
    assert not _MACHINE.search(path.read_text(encoding="utf-8"))


def test_machine_paths_are_found() -> None:
    assert _MACHINE.search("see /home/me/x")
    assert not _MACHINE.search("under /tmp, or .venv/rooted/x")


# -- the example model and the first requests ------------------------------------------------------


def test_the_readme_is_read_in_a_minute() -> None:
    assert len(README.splitlines()) <= README_LINES_MAX


def test_the_readme_begins_with_the_two_commands() -> None:
    """They come before all else that can be copied, and in the first screen."""
    first = re.search(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)
    assert first is not None
    assert first[1] == "sh"
    assert re.findall(r"^make (\w+)", first[2], re.M) == ["serve", "test"]
    assert README[: first.start()].count("\n") <= 12


def test_the_readme_has_five_lines_of_python() -> None:
    """They are run by ``tests/integration/test_embedded.py``."""
    assert len(fenced(README, "python")[0].splitlines()) == 5


def test_the_example_of_the_readme_works(tmp_path: Path) -> None:
    _, code = fenced(README, "python")
    (settings,) = fenced(README, "yaml")
    (tmp_path / "model.py").write_text(code)
    (tmp_path / "online.yaml").write_text(settings)
    loaded = config.load(tmp_path / "online.yaml", {}, {})
    (example,) = loaded.models
    model = load(
        example.learner,
        example.params,
        task=example.task,
        classes=dict(example.classes or {}),
        key=b"k" * 32,
        base_dir=loaded.base_dir,
    ).model
    assert model.mergeable, "the text says that it is served by several replicas"
    assert loaded.replicas > 1
    for i in range(40):
        model.learn({"x": float(i % 2)}, bool(i % 2), 1.0)
    assert model.predict({"x": 1.0}).label is True
    assert model.predict({"x": 0.0}).label is False


def test_settings_in_the_reference_have_the_defaults_named() -> None:
    plain = config.load(None, {}, {})
    assert (plain.host, plain.port, plain.replicas) == ("127.0.0.1", 8000, 2)
    sync, snapshots = plain.models[0].sync, plain.models[0].snapshots
    assert (sync.interval_ms, sync.updates, sync.merge) == (20, 64, "auto")
    assert (snapshots.interval_s, snapshots.keep) == (10, 24)
    assert plain.models[0].token_lifetime == 7 * 86_400
    for row in ("| 127.0.0.1, 8000 |", "| 20, 64 |", "| 10, 24 |", "| `7d` |"):
        assert row in REFERENCE


def requests(text: str) -> list[tuple[str, str, Any]]:
    """``(url, action, body)`` of every curl with a body, as the shell would send it."""
    found = []
    for block in fenced(text, "sh"):
        for part in re.split(r"^(?=(?:ID=\$\()?curl)", block.replace("\\\n", " "), flags=re.M):
            line = part.replace("$ID", "token").replace("ID=$(", "").split("|")[0]
            if line.startswith("curl") and " -d " in line:
                words = shlex.split(line)
                url = next(w for w in words if w.startswith("http"))
                found.append((url, url.rsplit("/", 1)[1], words[words.index("-d") + 1]))
    return found


_BODIES: Final = {"predict": PredictRequest, "feedback": FeedbackRequest}
_VERSIONS: Final = {"predict": "v1", "feedback": "v1", "infer": "v2"}


def test_first_requests_fit_what_make_serve_serves() -> None:
    found = [one for one in requests(README + REQUESTS) if "/prices/" not in one[0]]
    assert [action for _, action, _ in found] == [
        "predict", "feedback", "feedback", "predict", "feedback", "predict", "feedback", "infer",
        "feedback", "feedback",
    ]  # fmt: skip
    settings = config.load(None, {}, {})
    validator = Validator(settings.models[0], settings.limits, numeric_only=True)
    for url, action, body in found:
        model = settings.models[0].name
        at = f"http://{settings.host}:{settings.port}/{_VERSIONS[action]}/models/{model}/{action}"
        assert url == at
        if action == "infer":
            assert tensors.rows(tensors.parse(body.encode(), None).inputs, settings.limits.rows_max)
            continue
        request: Any = msgspec.json.decode(body, type=_BODIES[action])
        for one in getattr(request, "events", None) or [request]:
            if one.features is not None:
                validator.features(one.features, "features")
            if action == "feedback":
                validator.label(one.label, "label")
        for features in getattr(request, "instances", None) or ():
            validator.features(features, "instances")


def test_the_label_for_the_own_model_is_one_of_its_classes() -> None:
    ((_, action, body),) = [one for one in requests(README) if "/models/prices/" in one[0]]
    (settings,) = fenced(README, "yaml")
    classes = yaml.safe_load(settings)["models"][0]["classes"]
    assert action == "feedback"
    assert msgspec.json.decode(body, type=FeedbackRequest).label in classes.values()


def test_uploaded_lines_are_events() -> None:
    (block,) = [b for b in fenced(REQUESTS, "sh") if "events.ndjson" in b]
    lines = [word for word in shlex.split(block.replace("\\\n", " ")) if word.startswith("{")]
    assert len(lines) == 2
    for line in lines:
        assert msgspec.json.decode(line, type=Event).features


def test_wrong_requests_are_found() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode('{"feature":{"a":1}}', type=PredictRequest)


def test_shown_answers_have_the_fields_that_answers_have() -> None:
    prediction, receipt = (json.loads(block) for block in fenced(README, "json"))
    assert set(prediction) <= {f.name for f in msgspec.structs.fields(Prediction)}
    assert set(receipt) <= {f.name for f in msgspec.structs.fields(Receipt)}


def test_fields_and_statuses_explained_exist() -> None:
    table = REQUESTS.split("## What an answer says")[1]
    named = set(re.findall(r"^\| `(\w+)` \| (?:predict|feedback|both) ", table, re.M))
    structs = (Prediction, Receipt)
    assert named <= {f.name for s in structs for f in msgspec.structs.fields(s)}
    statuses = set(re.findall(r"^\| `(\w+)` \| (?:\d+|as)", table, re.M))
    assert statuses == {*receipts.HTTP, "refused"}


def test_example_settings_hold_only_yaml_that_is_used() -> None:
    (settings,) = fenced(README, "yaml")
    assert set(yaml.safe_load(settings)) <= set(config.Settings.model_fields)
