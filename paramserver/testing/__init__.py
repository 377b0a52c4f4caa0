"""Suites that every implementation has to pass: of filters and places of snapshots."""
