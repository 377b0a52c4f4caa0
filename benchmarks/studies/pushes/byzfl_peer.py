"""The peer of the synchronous table: byzfl's aggregators, run in its own environment.

A question is a line of JSON (``rules``: names with arguments, the first ones before the last one
aggregates; ``n``, ``d``) and then n · d float32; the answer is a line of JSON with the seconds that
the rules took, and then d float32.  An answer of several rows, as of a rule that only prepares, is
their number and all of them.
"""

import contextlib
import json
import sys
import time
from typing import Any

import numpy as np


def main() -> None:
    """Answer until the input ends."""
    with contextlib.redirect_stdout(sys.stderr):
        import byzfl
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    for line in stdin:
        question = json.loads(line)
        n, d = question["n"], question["d"]
        x = np.frombuffer(stdin.read(4 * n * d), np.float32).reshape(n, d)
        if question.get("double"):
            x = x.astype(np.float64)
        rows: Any = x.copy()
        begun = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):  # byzfl's Krum prints
            for name, arguments in question["rules"]:
                rows = getattr(byzfl, name)(**arguments)(rows)
        seconds = time.perf_counter() - begun
        out = np.ascontiguousarray(np.atleast_2d(rows), dtype=np.float32)
        head = {"seconds": seconds, "n": len(out)}
        stdout.write(json.dumps(head).encode() + b"\n" + out.tobytes())
        stdout.flush()


if __name__ == "__main__":
    main()
