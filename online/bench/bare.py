"""The peer of the recovery table: Ray Serve and an actor, same flags, same shape, no state."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from online import config
from online.cluster import ray_flags, start_ray

settings = config.load(Path(sys.argv[1]), {}, {})
private = Path(sys.argv[2])
flags = ray_flags(settings, private, haproxy=True)
os.environ.update(flags)
start_ray(settings, private, flags)

import ray  # noqa: E402  # it reads the flags when it is imported
from fastapi import FastAPI  # noqa: E402
from ray import serve  # noqa: E402

app = FastAPI()


class Pid:  # what stands where the parameter server is
    def pid(self) -> int:
        return os.getpid()


@app.get("/actor")
async def actor() -> dict[str, Any]:
    return {"pid": await ray.get_actor("bare", "online").pid.remote()}


options = {"num_replicas": settings.replicas, "ray_actor_options": {"num_cpus": 0.01}}
bare = serve.deployment(serve.ingress(app)(type("Bare", (), {})), **options)
Kept = ray.remote(Pid).options(name="bare", lifetime="detached", max_restarts=-1, num_cpus=0)
kept = Kept.remote()
serve.start(http_options={"host": "127.0.0.1", "port": settings.port})
serve.run(bare.bind(), name="bare")
first = int(flags["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"])
last = int(flags["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"])
print(json.dumps({"replica_ports": [first, last]}), flush=True)
sys.stdin.read()
serve.shutdown()
ray.shutdown()
