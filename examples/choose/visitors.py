"""Visitors of a shop: each is shown one article of three, and clicks it or not.

    online serve examples/choose/online.yaml        # in one shell
    python examples/choose/visitors.py              # in another one

What they like is known here only.  The shop learns it from clicks: the share of clicks begins at
that of a random choice, and ends near that of whoever knows.
"""

from __future__ import annotations

import random
import sys

from online.client import Client

LIKES = {"morning": "news", "noon": "sport", "evening": "film"}
"""The article that visitors click most, by the time of day."""
MOST, LEAST = 0.8, 0.1


def main(url: str, visitors: int = 600) -> list[float]:
    """Share of clicks in each sixth of the visits."""
    rng = random.Random(7)
    clicks: list[float] = []
    with Client(url) as client:
        shop = client.model("shop")
        for _ in range(visitors):
            daytime = rng.choice(list(LIKES))
            answer = shop.choose(["news", "sport", "film"], {"daytime": daytime})
            clicked = rng.random() < (MOST if answer.action == LIKES[daytime] else LEAST)
            shop.reward(answer.id, float(clicked))
            clicks.append(float(clicked))
    size = visitors // 6
    shares = [sum(clicks[i : i + size]) / size for i in range(0, size * 6, size)]
    print("share of clicks:", ", ".join(f"{share:.2f}" for share in shares))
    print(f"a random choice has {(MOST + 2 * LEAST) / 3:.2f}, whoever knows {MOST:.2f}")
    return shares


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
