"""The peer of the table of confidence: SAOCP of ``online-conformal``, run in its environment.

A line of JSON in, ``{"scores": [...], "delay": n, "scale": x}``; one out, the thresholds that each
score was asked with, while the label of a score comes ``delay`` scores later.
"""

import json
import sys


def main() -> None:
    """Answer until the input ends."""
    import pandas as pd
    from online_conformal.saocp import SAOCP

    zero = pd.Series([0.0])
    for line in sys.stdin:
        given = json.loads(line)
        scores, delay = given["scores"], given["delay"]
        peer = SAOCP(None, None, coverage=0.9, horizon=1, max_scale=given["scale"])
        asked = []
        for i in range(len(scores)):
            asked.append(float(peer.predict(1)[1]))
            if i >= delay:
                peer.update(pd.Series([scores[i - delay]]), zero, 1)
        print(json.dumps(asked), flush=True)


if __name__ == "__main__":
    main()
