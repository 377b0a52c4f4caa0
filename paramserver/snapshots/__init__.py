"""Snapshots: file format, atomic storage in directories and object stores, and retention."""
