"""Snapshots: a self-contained file format, a directory that publishes whole files, retention."""
