"""What processes of the service import and which ones there are: no more than the settings ask."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from online.service import worker_setup
from online.service.on_ray.ray_processes import fewest_processes, without_agents

_HEAVY = {
    "httpx", "matplotlib", "onnx", "onnxruntime", "pandas", "pyarrow", "scipy.optimize",
    "scipy.sparse", "scipy.special", "scipy.stats", "sklearn", "torch", "zensical",
    "online.rescore.run", "online.edge.export",
    "evaluation.report.build", "evaluation.report.values",
}  # fmt: skip


def heavy(script: str) -> set[str]:
    """Those of the heavy modules that a process has imported after the script."""
    shown = f"import sys; print(*{_HEAVY} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}\n{shown}"], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


_SERVED = """
from urllib.request import Request, urlopen
from online.service.embedded import Embedded
from online.settings.config import load
import json
settings = load(None, {{"cluster": "embedded", "port": 0, "state_dir": {folder!r}, **{more}}}, {{}})
with Embedded(settings, lambda _: None) as service:
    service.start(fresh=False, relearn=False)
    url = f"{{service.url}}/v1/models/{{settings.models[0].name}}"
    for path, body in (
        ("predict", {{"features": {{"x": 1.0}}}}),
        ("feedback", {{"features": {{"x": 1.0}}, "label": True, "event_id": "e"}}),
    ):
        data = json.dumps(body).encode()
        urlopen(Request(f"{{url}}/{{path}}", data, {{"Content-Type": "application/json"}})).read()
"""


def served(folder: Path, **more: Any) -> str:
    """A script that serves one prediction and one event, all in its own process."""
    return _SERVED.format(folder=str(folder), more=more)


def test_a_service_that_has_answered_and_learned_has_imported_nothing_heavy(tmp_path: Path) -> None:
    assert heavy(served(tmp_path)) - {"httpx"} == set(), "httpx: the client of the embedded form"


def test_a_root_set_brings_what_it_needs(tmp_path: Path) -> None:
    """The negative control, and the reason why it is not imported in general."""
    rows = [{"features": {"x": float(i), "y": 1.0}, "label": i % 2 == 0} for i in range(40)]
    lines = "\n".join(str(row).replace("'", '"').replace("True", "true").replace("False", "false")
                      for row in rows)  # fmt: skip
    (tmp_path / "root.jsonl").write_text(lines)
    model = {
        "name": "m", "task": "binary", "learner": "logreg",
        "root_set": str(tmp_path / "root.jsonl"),
    }  # fmt: skip
    assert "scipy.optimize" in heavy(served(tmp_path / "state", models=[model]))


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        ("paramserver.clients.ray_client", {"ray"}),  # the process of a parameter server
        ("online.service.service", set()),  # of `online serve`
        ("online.service.on_ray.deployment", {"ray", "fastapi"}),  # what it hands to Ray Serve
        ("online.service.on_ray.replica_parts", {"ray", "fastapi", "river"}),  # a replica's process
    ],
)
def test_what_a_process_imports(module: str, wanted: set[str]) -> None:
    script = (
        f"from online.service.worker_setup import without_tables\nwithout_tables()\n"
        f"import {module}, sys\n"
        f"assert {wanted} <= sys.modules.keys()\n"
        f"assert {'river' in wanted or module.endswith('service')} or 'river' not in sys.modules\n"
    )
    assert heavy(script) == set()


def test_serve_without_the_setup_imports_pandas() -> None:
    assert "pandas" in heavy("from ray import serve")


_PICKLES = """
from ray.util import serialization_addons
class Context:
    def __getattr__(self, name):
        return lambda *args, **named: None
serialization_addons.apply(Context())
"""


def test_rays_pickles_know_tables_of_pyarrow_only_without_the_setup() -> None:
    setup = "from online.service.worker_setup import without_tables\nwithout_tables()\n"
    assert "pyarrow" not in heavy(setup + _PICKLES)
    assert "pyarrow" in heavy(_PICKLES)


@pytest.mark.parametrize("begun", [True, False])
def test_rays_processes_send_messages_without_pydantic_and_starlette(begun: bool) -> None:
    """Importing both took a killed server a fifth of the time until it served again."""
    setup = "from online.service.worker_setup import begin\nbegin()\n" if begun else ""
    found = "import sys\nfound = {'pydantic', 'starlette'} & sys.modules.keys()\n"
    heavy(f"{setup}{_PICKLES}{found}assert bool(found) is not {begun}, found\n")


def test_what_a_parameter_server_is_given_imports_no_settings(tmp_path: Path) -> None:
    """It is read in the server's new process, whose pushes wait for it."""
    from ray import cloudpickle

    from online.service.replica_names import gone
    from online.settings.config import load
    from online.settings.places import journal_opener
    from paramserver.process.actor import ServerSettings
    from paramserver.process.lineage import Lineage

    opener = journal_opener(load(None, {"state_dir": str(tmp_path)}, {}))
    given = cloudpickle.dumps((Lineage("m", "s", "", "sum"), opener, ServerSettings(), gone))
    script = f"import pickle, sys\npickle.loads({given!r})\n"
    script += "found = {'pydantic', 'starlette', 'online.settings.config'} & sys.modules.keys()\n"
    heavy(script + "assert found == set(), found\n")


def test_ray_starts_without_a_look_at_its_dashboard() -> None:
    script = "import sys\nfrom ray._private import utils\n"
    look = "assert utils.get_dashboard_dependency_error() is {}\n"
    spared = "from online.service.on_ray.ray_processes import fewest_processes\n"
    spared += "with fewest_processes():\n    error = utils.get_dashboard_dependency_error()\n"
    spared += "assert isinstance(error, ImportError) and 'aiohttp' not in sys.modules\n"
    heavy(script + spared + look.format("None") + "assert 'aiohttp' in sys.modules\n")


def test_what_ray_calls_first_in_a_process_can_be_called() -> None:
    from ray._private import ray_constants
    from ray._private.runtime_env.setup_hook import load_class

    assert ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR == worker_setup.FLAG
    assert load_class(worker_setup.HOOK) is worker_setup.begin


@pytest.mark.parametrize("changed", [True, False])
def test_a_balancer_that_knows_no_application_says_so(changed: bool) -> None:
    """Callers that ask while it begins again took the text of a 404 for an answer."""
    begun = "from online.service.worker_setup import begin\nbegin()\n"
    script = "import ray.serve._private.haproxy as found\n"
    script += "text = found.HAPROXY_CONFIG_TEMPLATE.partition('\\nbackend default_backend\\n')[2]\n"
    script += "line = text.splitlines()[0]\n"
    script += f"assert ('status 503 ' in line and 'no_replica' in line) is {changed}, line\n"
    script += f"assert ('status 404 ' in line) is not {changed}, line\n"
    heavy((begun if changed else "") + script)


def test_another_text_of_ray_for_its_balancer_is_left_alone_and_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert worker_setup.template_warning() is None, "this Ray's text is known"
    other = "from online.service import worker_setup\nworker_setup._UNKNOWN = 'another'\n"
    other += "worker_setup.begin()\nimport ray.serve._private.haproxy as found\n"
    heavy(other + "assert 'status 404 ' in found.HAPROXY_CONFIG_TEMPLATE\n")
    monkeypatch.setattr(worker_setup, "_UNKNOWN", "another")
    assert "404 in plain text" in str(worker_setup.template_warning())
    monkeypatch.setattr(worker_setup, "_templates", lambda: None)
    assert "404 in plain text" in str(worker_setup.template_warning()), "and with none at all"


def test_raylet_is_started_with_nobody_in_the_place_of_its_agents(tmp_path: Path) -> None:
    node = "ab" * 28
    command = [
        "raylet", f"--session_dir={tmp_path}", f"--node_id={node}", "--head",
        "--dashboard_agent_command=python a.py --x=1", "--runtime_env_agent_command=python b.py",
    ]  # fmt: skip
    found = without_agents(command)
    assert found[:4] == command[:4]
    assert found[4] == '--dashboard_agent_command=/bin/sh -c "exec cat"'
    assert found[5] == '--runtime_env_agent_command=/bin/sh -c "exec cat"'
    ports = {file.name: file.read_text() for file in tmp_path.iterdir()}
    names = ("dashboard_agent_listen", "metrics_agent", "metrics_export", "runtime_env_agent")
    assert ports == {f"{name}_port_{node}": "-1" for name in names}
    other = ["gcs_server", "--log_dir=x"]
    assert without_agents(other) is other


def test_ray_is_as_it_was_afterwards() -> None:
    from ray._private import services, utils
    from ray._private.node import Node

    def state() -> list[Any]:
        names = ("start_monitor", "start_api_server", "start_log_monitor")
        found = [services.start_ray_process, utils.get_dashboard_dependency_error]
        return [*found, *(vars(Node)[name] for name in names)]

    before = state()
    with fewest_processes():
        assert not {*map(id, state())} & {*map(id, before)}
    assert state() == before

    def fails() -> None:
        with fewest_processes():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert state() == before
