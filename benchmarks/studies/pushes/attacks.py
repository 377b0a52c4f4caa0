"""Vectors that hostile pushers send; for checks of filters and for the benchmark.

``own`` is what the pusher would send if it were honest, ``others`` [n, d] what honest ones have
sent last: most attackers here know it.  float32 in and out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


def sign_flip(own: Vector) -> Vector:
    """Return −g, the honest vector with its sign flipped."""
    return np.asarray(-own)


def negated(own: Vector, times: float = 10.0) -> Vector:
    """Return −10 g, the honest vector times −``times``."""
    return np.asarray(own * np.float32(-times))


def inner_product(others: Vector, strength: float) -> Vector:
    """IPM (Xie et al. 2019): −ε · mean; the "Empire" of THROTTLE is ε = 6."""
    return np.asarray(mean_of(others) * np.float32(-strength))


def little_is_enough(others: Vector, z: float) -> Vector:
    """ALIE (Baruch et al. 2019): mean − z · deviation, of each number."""
    return np.asarray(mean_of(others) - np.float32(z) * others.std(axis=0), dtype=np.float32)


def min_max(others: Vector, steps: int = 12) -> Vector:
    """Min-max (Shejwalkar & Houmansadr 2021): as far along −deviation as honest ones are apart.

    mean − γ · deviation with the largest γ for which no honest vector is further from it than the
    two that are furthest apart; γ by halving, ``steps`` times.
    """
    mean, deviation = mean_of(others), others.std(axis=0)
    widest = max(float(((others - row) ** 2).sum(axis=1).max()) for row in others)
    low, high = 0.0, 20.0
    for _ in range(steps):
        gamma = (low + high) / 2
        vector = mean - np.float32(gamma) * deviation
        if float(((others - vector) ** 2).sum(axis=1).max()) <= widest:
            low = gamma
        else:
            high = gamma
    return np.asarray(mean - np.float32(low) * deviation, dtype=np.float32)


def noisy(own: Vector, rng: np.random.Generator, share: float = 0.2) -> Vector:
    """g + N(0, (share · ‖g‖)²) on each number: the noise is √d · share times as long as g."""
    noise = rng.standard_normal(len(own), dtype=np.float32)
    return np.asarray(own + np.float32(share * np.linalg.norm(own)) * noise)


def fixed(size: int, rng: np.random.Generator, length: float = 10.0) -> Vector:
    """A random vector of this length."""
    vector = rng.standard_normal(size, dtype=np.float32)
    return np.asarray(vector * np.float32(length / np.linalg.norm(vector)))


def score_aware(harm: Vector, reference: Vector, cosine: float, length: float) -> Vector:
    """Return as much of ``harm`` as fits beside the cosine to ``reference`` of honest vectors.

    It is for an attacker who knows the score: c · v + √(1 − c²) · u, where u is the part of the
    harm at right angles to v.
    """
    v = reference / np.float32(np.linalg.norm(reference) + 1e-12)
    u = harm - np.float32(harm @ v) * v
    u = u / np.float32(np.linalg.norm(u) + 1e-12)
    c = min(max(cosine, -1.0), 1.0)
    out = np.float32(c) * v + np.float32((1.0 - c * c) ** 0.5) * u
    return np.asarray(out * np.float32(length), dtype=np.float32)


def mean_of(others: Vector) -> Vector:
    """Return the mean vector, in float32."""
    return np.asarray(others.mean(axis=0), dtype=np.float32)
