"""Sets every flag of Ray, Serve and HAProxy that the service relies on, and their ports."""

from __future__ import annotations

import resource
import secrets
from pathlib import Path
from typing import Final

from online.service import processes, worker_setup
from online.settings.config import Settings

REPLICA_PORTS = 120  # ports of stopped replicas are not reused for a while
_CONNECTIONS_MAX = 20_000  # about 60 MB of HAProxy's memory when all of them are idle
_ASKS = "{ path_end /predict } || { path_end /infer }"  # requests that change no state
_FILES_BESIDE = 256  # HAProxy's other files; each connection takes 2½ (two, and half a pipe)
_HEAD_S = 10  # for the head of a request, from the start of the connection
_CLIENT_S = 60  # without a byte from a client that is expected to send


_ALWAYS: Final = {
    "RAY_worker_niceness": "0",  # the default of 15 gives long tails at saturation
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",  # Serve evaluates it before the flag above
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.2",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",  # HAProxy drops a replica by then
    "RAY_USAGE_STATS_ENABLED": "0",
    # The head keeps a record of each push: 12 MB per minute until it has 100,000 of them.
    "RAY_task_events_report_interval_ms": "0",
    # A call of a process that has ended fails when both have passed, and only then is the next one
    # made.  The defaults are a second each, so that a server that is back was not asked for two.
    "RAY_timeout_ms_task_wait_for_death_info": "50",
    "RAY_core_worker_internal_heartbeat_ms": "50",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "online.service.serve_middleware.middlewares",
    "OMP_NUM_THREADS": "1",
}
"""Flags of every service, whatever its settings."""


def port_range(private: Path) -> processes.PortRange:
    """Reserve a range of ports for one service."""
    # Outside the kernel's ephemeral range: Ray uses dozens of those before HAProxy starts.
    return processes.PortRange(REPLICA_PORTS + 5, hash(str(private)))


def ray_flags(settings: Settings, private: Path, first: int, *, haproxy: bool) -> dict[str, str]:
    """All flags as environment variables; ``first`` is the first port of :func:`port_range`."""
    http, grpc, metrics, stats = range(first + REPLICA_PORTS, first + REPLICA_PORTS + 4)
    flags = _ALWAYS | {
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + REPLICA_PORTS - 1),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(grpc),
    }
    if settings.cluster == "local":  # a cluster that is joined has its own values
        flags |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_enable_metrics_collection": "0",  # by an agent that is not started
            worker_setup.FLAG: worker_setup.HOOK,
        }
    if haproxy:
        nobody = f"http-error status 503 {worker_setup.ABSENT}"  # the default would be a 500
        ended = f"http-error status 502 {worker_setup.ENDED}"  # as a 503: see below
        again = f"""
    http-request wait-for-body time {settings.limits.body_wait_s * 1e3:.0f}ms if {_ASKS}
    http-request disable-l7-retry unless {{ method GET HEAD }} || {_ASKS}
    http-after-response set-status 503 if {{ status 502 }}
    """
        flags |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(private / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(private / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(private),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(private / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
            "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": str(int(settings.start_wait_s)),
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "15",  # for a worker that a reload replaced
            # Serve restarts a dead HAProxy after three failed checks (10 s each by default), and
            # ends one that starts slowly after three, just when it is ready (5 or 10 s each).
            "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": f"{max(settings.start_wait_s / 3, 5):g}",
            "RAY_SERVE_HAPROXY_MAXCONN": str(_connections_max()),
            "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(_CLIENT_S),
            # Requests to a lost host go to the next replica after one second (default 5 s).
            "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",
            # A replica that stops or is killed does not answer: requests that change no state are
            # retried on another replica.  Feedback is not, because without an id it would be
            # learned twice.  Serve has no setting for a line in HAProxy's section of replicas, so
            # this one is inserted between two of its lines through the health check's interval.
            "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
            "RAY_SERVE_HAPROXY_RETRIES": "2",  # so a request that kills replicas does not reach all
            "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": f"1s{again}default-server",
            # Nor for the time of a request's head, without which a slow client holds a connection
            # for ever, and for the options that good answers write no line to a log nobody reads,
            # and that a client which has sent all and closes its side is answered: Serve's
            # abortonclose says 400 to it, although the replica records what it sent.
            "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "\n    ".join(
                (
                    "leastconn",
                    f"timeout http-request {_HEAD_S}s",
                    nobody,
                    ended,
                    "option dontlog-normal",
                    "no option abortonclose",
                )
            ),
            "RAY_SERVE_PORT_QUARANTINE_S": "20",
        }
    return flags


def _connections_max() -> int:
    """Connections that HAProxy may hold: it does not start without enough file descriptors."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if files == resource.RLIM_INFINITY:
        return _CONNECTIONS_MAX
    return max(min(_CONNECTIONS_MAX, (files - _FILES_BESIDE) * 2 // 5), 100)
