"""Uncertainty: conformal sets and intervals, calibrated probabilities, contributions, slices."""
