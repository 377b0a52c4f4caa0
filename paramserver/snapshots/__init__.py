"""Snapshots: one self-contained file of one version, published whole or not at all."""
