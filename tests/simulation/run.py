"""Run seeds of the simulation by hand.

``run.py --seed 1234 [--trace]`` replays one; ``run.py --seeds 20000 [--first N] [--jobs 2]`` runs
many, with progress.  Exit code 1: a seed has failed; the command that replays it is printed.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sim_vfs import Vfs
from sim_world import World

_vfs: Vfs | None = None


def vfs() -> Vfs:
    global _vfs
    if _vfs is None:
        _vfs = Vfs()
        reason = _vfs.install()
        assert reason is None, reason
    return _vfs


def main() -> int:
    p = argparse.ArgumentParser()
    p.add_argument("--seed", type=int)
    p.add_argument("--seeds", type=int, default=100)
    p.add_argument("--first", type=int, default=0)
    p.add_argument("--trace", action="store_true")
    a = p.parse_args()
    seeds = [a.seed] if a.seed is not None else range(a.first, a.first + a.seeds)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    total: Counter[str] = Counter()
    t = time.perf_counter()
    bad = 0
    gc.disable()
    for s in seeds:
        try:
            w = World(vfs(), folder, s, trace=print if a.trace else None)
            total += w.run()
        except BaseException as e:
            if isinstance(e, KeyboardInterrupt):
                raise
            bad += 1
            print("FAILED", s, repr(e)[:300])
            if a.seed is not None:
                traceback.print_exc()
        if s % 10 == 9:
            gc.collect()
    n = len(seeds)
    print(dict(total))
    print(f"{bad} of {n} failed, {(time.perf_counter() - t) / n * 1000:.0f} ms a seed")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
