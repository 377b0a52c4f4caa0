"""The peer of the recovery and start tables: Ray Serve, same shape, no state.

``recovery``: with the service's flags, and an actor where the service has its parameter server.
``hello``: with the flags, without the actor.  ``shipped``: as Ray and Serve come.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from online.service.on_ray.ray_flags import port_range, ray_flags
from online.service.service import start_ray
from online.settings import config


class Pid:
    """An actor without state that stands where the service has its parameter server."""

    def pid(self) -> int:
        """Return the id of the actor's process."""
        return os.getpid()


def main(path: Path, private: Path, kind: str) -> None:
    """Serve until standard input ends."""
    settings = config.load(path, {}, {})
    taken = port_range(private)
    flags = ray_flags(settings, private, taken.first, haproxy=True)
    if kind != "shipped":
        os.environ.update(flags)
    import ray  # it reads the flags
    from ray import serve

    if kind == "shipped":
        ray.init(address="local", _temp_dir=str(private / "ray"))
    else:
        start_ray(settings, private, flags)
    app = FastAPI()

    @app.get("/actor")
    async def actor() -> dict[str, Any]:
        return {"pid": await ray.get_actor("bare", "online").pid.remote()}

    @app.get("/")
    async def hello() -> str:
        return "hello"

    options = {"num_replicas": settings.replicas_max, "ray_actor_options": {"num_cpus": 0.01}}
    bare = serve.deployment(serve.ingress(app)(type("Bare", (), {})), **options)
    handle = None
    if kind == "recovery":
        kept = ray.remote(Pid).options(
            name="bare", lifetime="detached", max_restarts=-1, num_cpus=0
        )
        handle = kept.remote()
    serve.start(http_options={"host": "127.0.0.1", "port": settings.port})
    serve.run(bare.bind(), name="bare")
    ports = [int(flags[f"RAY_SERVE_DIRECT_INGRESS_{end}_HTTP_PORT"]) for end in ("MIN", "MAX")]
    print(json.dumps({"replica_ports": ports, "actor": repr(handle)}), flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()
    taken.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if sys.argv[3:] else "recovery")
