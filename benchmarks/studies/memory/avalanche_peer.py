"""The peer of the buffers' table: Avalanche's ``ReservoirSamplingBuffer``, run in its environment.

A question a line in JSON, a number a line as the answer: ``{"fill": n}`` makes a buffer of n items;
``{"steps": n, "fresh": k, "drawn": k}`` gives the seconds of a step.  The buffer takes data sets,
so the fresh items of a step are one.  A turn ends after n steps or half a second.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

TURN_S = 0.5


def main() -> None:
    """Answer until the input ends."""
    from avalanche.benchmarks.utils import AvalancheDataset
    from avalanche.training.storage_policy import ReservoirSamplingBuffer

    buffer: Any = None
    for line in sys.stdin:
        question = json.loads(line)
        if "fill" in question:
            buffer = ReservoirSamplingBuffer(question["fill"])
            buffer.update_from_dataset(AvalancheDataset([_rows(question["fill"])]))
            seconds = 0.0
        else:
            seconds = _turn(buffer, AvalancheDataset, **question)
        print(seconds, flush=True)


def _rows(n: int) -> list[tuple[dict[str, float], int]]:
    return [({"x": float(i)}, i % 10) for i in range(n)]


def _turn(
    buffer: Any, dataset: Callable[[list[Any]], Any], steps: int, fresh: int, drawn: int
) -> float:
    """Seconds of a step, on average."""
    done, begun = 0, time.perf_counter()
    while done < steps and (not done or time.perf_counter() - begun < TURN_S):
        buffer.update_from_dataset(dataset([_rows(fresh)]))
        kept = buffer.buffer
        for i in random.sample(range(len(kept)), drawn):
            kept[i]
        done += 1
    return (time.perf_counter() - begun) / done


if __name__ == "__main__":
    main()
