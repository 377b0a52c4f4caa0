"""Figures as lines for people show them."""

from __future__ import annotations


def short(value: float | None) -> str:
    """A score in a few characters."""
    if value is None:
        return "  –  "
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"
