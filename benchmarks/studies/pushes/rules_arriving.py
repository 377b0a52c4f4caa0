"""Rules for one vector at a time, as asynchronous pushes come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


def _dot(a: Vector, b: Vector) -> float:
    return float(np.dot(a.astype(np.float64), b.astype(np.float64)))


def zeno(
    gradient: Vector, reference: Vector, *, rate: float, rho: float = 0.001, slack: float = 0.0
) -> Vector | None:
    """Zeno++ (Xie, Koyejo, Gupta 2020, algorithm 1): scaled to the reference's length, or None.

    Taken if rate · ⟨v, g⟩ − ρ ‖g‖² + rate · ε ≥ 0 after scaling; v is the gradient of the server's
    own clean rows, ε is ``slack``.
    """
    length = _dot(gradient, gradient) ** 0.5
    if length == 0.0:
        return None
    scaled = gradient * np.float32(_dot(reference, reference) ** 0.5 / length)
    score = rate * _dot(reference, scaled) - rho * _dot(scaled, scaled) + rate * slack
    return scaled if score >= 0.0 else None


def aflguard(gradient: Vector, reference: Vector, *, reach: float) -> bool:
    """AFLGuard (Fang et al. 2022): ‖g − v‖ ≤ λ ‖v‖, λ is ``reach``."""
    away = gradient - reference
    return _dot(away, away) <= reach**2 * _dot(reference, reference)


def lipschitz(gradient: Vector, before: Vector, params: Vector, params_before: Vector) -> float:
    """‖g − g′‖ / ‖x − x′‖ of a pusher's last two pushes; infinite if nothing has moved."""
    moved = params - params_before
    turned = gradient - before
    distance = _dot(moved, moved) ** 0.5
    return _dot(turned, turned) ** 0.5 / distance if distance > 0.0 else float("inf")


def kardam(value: float, of_each: Sequence[float], f: int) -> bool:
    """Kardam (Damaskinos et al. 2018): not above the (n − f)/n quantile of the pushers' values."""
    if len(of_each) <= f:
        return True
    return value <= sorted(of_each)[len(of_each) - f - 1]


def throttle_weight(before: int, pushers: int, *, q: float = 1.1) -> float:
    """THROTTLE (Otsuka, Meyer et al. 2026): weight of a push in a round.

    The first one of a pusher weighs 1/n; after ``before`` others of it, q^−before / n.
    """
    return float(q ** -float(before)) / pushers


def damped(staleness: int) -> float:
    """1 / (1 + τ), Kardam's dampening; τ is the number of versions since the push's base."""
    return 1.0 / (1.0 + staleness)
