"""Snapshots: a self-contained file format, stores that keep it whole or absent, retention."""
