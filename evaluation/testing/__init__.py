"""Suites that every implementation has to pass: of detectors of drift."""
