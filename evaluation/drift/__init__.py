"""Drift detection: detectors on each row, and comparison of distributions by window."""
