"""The files for clusters are what Ray, Serve, KubeRay and the service's settings take.

They can be checked here, not run: there is no Kubernetes, and no machine with sshd for `ray up`.
"""

from __future__ import annotations

import copy
import gzip
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
import typer
import yaml

from online.commands import cli
from online.errors import StartRefused
from online.service import worker_setup
from online.service.on_ray.ray_flags import ray_flags
from online.service.serve_deploy import Arguments, build
from online.settings import config

ROOT: Final = Path(__file__).parents[3]
DEPLOY: Final = ROOT / "deploy"
KUBERAY: Final = sorted((DEPLOY / "kuberay").glob("*.yaml"))
DATA: Final = config.data_dir()

# What a place or a machine decides; Ray derives them, or a container has its own.
_OF_A_PLACE: Final = re.compile(r"_(PORT|LOC|PATH|BASE|FILE)$|^RAY_AUTH_TOKEN$|FALLBACK|MAXCONN$")


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def objects() -> Iterator[dict[str, Any]]:
    """Every Kubernetes object of the files."""
    for file in KUBERAY:
        for document in yaml.safe_load_all(file.read_text()):
            yield from document["items"] if document["kind"] == "List" else [document]


def named(kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [o for o in objects() if o["kind"] == kind and name in ("", o["metadata"]["name"])]
    return found


# -- Ray's launcher, Serve ------------------------------------------------------------------------


def check_cluster(data: Any) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(data)))


def test_the_cluster_file_is_one_for_rays_launcher() -> None:
    data = load("ray_cluster.yaml")
    check_cluster(data)
    for target, source in data["file_mounts"].items():
        if source.startswith("./") and source != "./dist":  # which `python3 -m build` makes
            assert (ROOT / source).exists(), target
    for commands in (data["head_start_ray_commands"], data["worker_start_ray_commands"]):
        assert all(". ~/online/ray.env" in command for command in commands)
    assert data["auth"]["ssh_private_key"].startswith("~"), "no key of a machine"


@pytest.mark.parametrize("wrong", [{"worker_node_types": {}}, {"head_node": {"a": 1}}])
def test_rays_validator_sees_a_name_that_it_does_not_know(wrong: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r"Additional properties|head_node"):
        check_cluster({**load("ray_cluster.yaml"), **wrong})


def check_serve(data: Any) -> None:
    from ray.serve.schema import ServeDeploySchema

    parsed = ServeDeploySchema.model_validate(data)
    (application,) = parsed.applications
    module, _, name = application.import_path.partition(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))
    Arguments.model_validate(application.args)


def test_serves_file_and_kuberays_are_the_same() -> None:
    data = load("serve_config.yaml")
    check_serve(data)
    assert yaml.safe_load(named("RayService")["spec"]["serveConfigV2"]) == data


BUILD: Final = "online.service.serve_deploy:build"


@pytest.mark.parametrize(
    "wrong",
    [
        {"proxy_location": "Everywhere"},
        {"applications": [{"import_path": "online.service.serve_deploy:nothing"}]},
        {"applications": [{"import_path": BUILD, "args": {"file": "x"}}]},
    ],
)
def test_a_wrong_serve_file_is_found(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, AttributeError)):
        check_serve({**load("serve_config.yaml"), **wrong})


def test_the_builder_takes_what_serve_hands_to_it(tmp_path: Path) -> None:
    """A mapping, by Serve's own call; what it refuses comes after the settings were read."""
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    path = tmp_path / "online.yaml"
    path.write_text("models: [{name: m, task: binary, learner: logreg}]")
    with pytest.raises(StartRefused, match="cluster: local"):
        call_user_app_builder_with_args_if_necessary(build, {"settings": str(path)})
    with pytest.raises(ValueError, match="file"):
        call_user_app_builder_with_args_if_necessary(build, {"file": str(path)})


def exported() -> dict[str, str]:
    """deploy/ray.env as bash reads it."""
    script = f"env -i bash -c 'set -a; . {DEPLOY / 'ray.env'}; env -0'"
    lines = subprocess.run(script, shell=True, capture_output=True, text=True, check=True).stdout
    pairs = dict(line.split("=", 1) for line in lines.strip("\0").split("\0"))
    return {k: v for k, v in pairs.items() if k.startswith(("RAY_", "OMP_"))}


def test_nodes_get_the_flags_that_one_machine_has() -> None:
    settings = config.load(None, {}, {})
    wanted = ray_flags(settings, Path("/private"), 20_000, haproxy=True)
    wanted = {k: v for k, v in wanted.items() if not _OF_A_PLACE.search(k) or "CALLBACK" in k}
    for alone in ("RAY_enable_metrics_collection", worker_setup.FLAG):  # nodes have Ray's agents
        del wanted[alone]
    found = exported()
    assert found.pop("RAY_SERVE_HAPROXY_MAXCONN") == "20000"
    assert found == wanted
    pods = dict(named("ConfigMap", "online-ray")["data"])
    assert pods == exported()


# -- Kubernetes -----------------------------------------------------------------------------------


def closed(schema: Any) -> Any:
    """The CRD's schema, refusing names that it does not know, as a strict `kubectl apply` does."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: closed(value) for key, value in schema.items()}
    open_to_all = schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and "type" in schema and not open_to_all:
        out.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
    return out


def crd(kind: str) -> Any:
    if DATA is None:
        pytest.skip("no ONLINE_DATA_DIR: the CRDs of KubeRay are in its kuberay_crds")
    file = DATA / "kuberay_crds" / f"ray.io_{kind.lower()}s.yaml.gz"
    if not file.exists():
        pytest.skip(f"no {file}")
    versions = yaml.load(gzip.decompress(file.read_bytes()), yaml.CSafeLoader)["spec"]["versions"]
    (found,) = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"]
    found["properties"]["metadata"] = {}  # of all objects alike, not the CRD's
    return closed(found)


@pytest.mark.data
@pytest.mark.parametrize("kind", ["RayService", "RayJob", "RayCronJob"])
def test_kuberays_objects_fit_its_schemas(kind: str) -> None:
    check = jsonschema.Draft202012Validator(crd(kind)).validate  # its schema is Kubernetes' own
    found = [o for o in objects() if o["kind"] == kind]
    assert len(found) == {"RayJob": 2}.get(kind, 1)
    for one in found:
        check(one)
        wrong = copy.deepcopy(one)
        inner = wrong["spec"].get("jobTemplate", wrong["spec"])
        cluster = inner.get("rayClusterConfig") or inner["rayClusterSpec"]
        cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["imag"] = "x"
        with pytest.raises(jsonschema.ValidationError, match="imag"):
            check(wrong)


def test_pods_share_key_settings_and_snapshots() -> None:
    """What several nodes must have alike is mounted in all of them, and the settings name it."""
    text = named("ConfigMap", "online-settings")["data"]["online.yaml"]
    data = yaml.safe_load(text)
    tokens = {role: "t" * 32 for role in ("predict", "feedback", "admin")}
    settings = config.load(None, {**data, "tokens": tokens}, {"ONLINE_JOURNAL": "redis://r/0"})
    assert settings.cluster == "auto"
    cluster = named("RayService")["spec"]["rayClusterConfig"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in pods:
        spec = pod["template"]["spec"]
        (container,) = spec["containers"]
        mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
        assert str(settings.snapshot_dir).startswith(f"file://{mounts['shared']}")
        assert str(settings.key_path).startswith(mounts["settings"])
        assert mounts.keys() == {v["name"] for v in spec["volumes"]}
        assert container["envFrom"] == [{"configMapRef": {"name": "online-ray"}}]
        assert pod["template"]["metadata"]["labels"] == {"app": "online"}
    (workers,) = cluster["workerGroupSpecs"]
    probes = workers["template"]["spec"]["containers"][0]
    assert probes["readinessProbe"]["httpGet"]["path"] == "/readyz"
    # One command holds: what is referred to exists.
    made = {(o["kind"], o["metadata"]["name"]) for o in objects()}
    assert ("PersistentVolumeClaim", "online-shared") in made
    assert ("Service", "online-redis") in made


def test_entrypoints_of_jobs_are_commands() -> None:
    for one in objects():
        if one["kind"] in ("RayJob", "RayCronJob"):
            inner = one["spec"].get("jobTemplate", one["spec"])
            program, verb, *words = shlex.split(inner["entrypoint"])
            assert program == "online"
            command = typer.main.get_command(cli.app).commands[verb]  # type: ignore[attr-defined]
            known = {o for p in command.params for o in p.opts}
            assert {w for w in words if w.startswith("--")} <= known


_DURABLE: Final = ("--appendonly yes", "--appendfsync always", "--no-appendfsync-on-rewrite no",
                   "--maxmemory-policy noeviction")  # fmt: skip


def test_the_journals_servers_are_durable() -> None:
    pods = named("StatefulSet")["spec"]["template"]["spec"]["containers"][0]["command"][-1]
    compose = load("deploy/compose.yaml")["services"]["redis"]["command"][-1]
    for command in (pods, compose):
        assert all(setting in command for setting in _DURABLE)
    assert named("StatefulSet")["spec"]["replicas"] == 1


# -- container ------------------------------------------------------------------------------------


def test_the_image_has_what_the_package_needs() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M):
        for name in source.split():
            assert (ROOT / name).exists(), name
    for package in ("online", "evaluation", "paramserver", "replay", "refusals"):
        assert f"COPY {package} {package}" in text
    entry, command = re.search(r'^ENTRYPOINT \["(\w+)"\]\nCMD \["(\w+)"', text, re.M).groups()  # type: ignore[union-attr]
    assert (entry, command) == ("online", "serve")
    compose = load("deploy/compose.yaml")["services"]
    assert compose["online"]["image"] == compose["online"]["build"].get("image", "online:0.1.0")
    assert set(compose["online"]["depends_on"]) <= compose.keys()


# -- what the image and the checkout hold ---------------------------------------------------------


def test_a_worker_is_alive_while_its_raylet_is(tmp_path: Path) -> None:
    """The probe's own command, with a process of that name; control: of another name."""
    groups = named("RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = groups[0]["template"]["spec"]["containers"]
    command = container["livenessProbe"]["exec"]["command"]
    assert "pgrep" not in " ".join(command), "the image has none"
    for name, alive in (("raylet-asked-fo", True), ("another", False)):
        program = tmp_path / name
        program.write_bytes(Path("/bin/sleep").read_bytes())
        program.chmod(0o700)
        asked = [part.replace("raylet", "raylet-asked-fo") for part in command]
        with subprocess.Popen([program, "60"]) as process:
            try:
                while (Path("/proc") / str(process.pid) / "comm").read_text().strip() != name:
                    os.sched_yield()  # it is not what it will be yet
                # Of a process that ends meanwhile grep says 2, not 1: both mean "not alive".
                assert (subprocess.run(asked, capture_output=True).returncode == 0) is alive
            finally:
                process.kill()


def test_the_composed_service_gets_the_token_files_that_its_page_makes() -> None:
    compose = load("deploy/compose.yaml")
    mounted = {s["target"]: s["source"] for s in compose["services"]["online"]["secrets"]}
    for role in ("predict", "feedback", "admin"):
        source = mounted[f"/etc/online/{role}.token"]
        assert compose["secrets"][source]["file"] == f"./{role}.token"


def test_no_secret_that_the_documents_make_can_be_committed_or_get_into_an_image() -> None:
    made = ["redis.password", "predict.token", "feedback.token", "admin.token", "key"]
    asked = [f"{folder}{name}" for folder in ("", "deploy/") for name in made]
    found = subprocess.run(
        ["git", "-C", ROOT, "check-ignore", "--no-index", *asked], capture_output=True, text=True
    )
    if found.returncode == 128:
        pytest.skip("this is no git checkout")
    assert set(found.stdout.split()) == set(asked)
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    assert lines[1] == "*", "what is not named stays out"
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
        for name in line.split():
            assert f"!{name}" in lines, f"{name} is copied and left out"
