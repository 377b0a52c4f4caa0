"""The peer of `python -m benchmarks bandits`: VowpalWabbit, one setting of it on one stream."""

from __future__ import annotations

import numpy as np

from benchmarks.bandits_streams import Chance
from replay.example import Features

SETTINGS = {
    "squarecb": "--squarecb",
    "squarecb, gamma 100": "--squarecb --gamma_scale 100",
    "regcbopt": "--regcbopt --mellowness 0.001",
    "bag 5": "--bag 5",
    "cover 5": "--cover 5",
    "epsilon .05": "--epsilon 0.05",
    "greedy": "--epsilon 0",
}
RATES = (0.1, 0.5, 2.0)


def _line(features: Features) -> str:
    parts = []
    for name, value in features.items():
        key = name.replace(" ", "_").replace(":", "_").replace("|", "_")
        number = type(value) in (int, float)
        parts.append(f"{key}:{value}" if number else f"{key}={value}".replace(" ", "_"))
    return " ".join(parts)


def run(chances: list[Chance], setting: str, rate: float, seed: int) -> float:
    """Mean reward of the chosen action.  ImportError without the package."""
    import vowpalwabbit

    flags = f"--cb_explore_adf {SETTINGS[setting]} -q sa -l {rate} --random_seed {seed} --quiet"
    vw, rng, total = vowpalwabbit.Workspace(flags), np.random.default_rng(seed), 0.0
    for chance in chances:
        shared = f"shared |s {_line(chance.context)}"
        lines = [f"|a id={name} {_line(of)}" for name, of in chance.actions]
        p = np.array(vw.predict([shared, *lines]))
        i = int(rng.choice(len(p), p=p / p.sum()))
        total += chance.rewards[i]
        lines[i] = f"0:{-chance.rewards[i]}:{p[i]} {lines[i]}"
        vw.learn([shared, *lines])
    vw.finish()
    return total / len(chances)
