"""Versioned model parameters that many replicas update at once: merge rules, server, snapshots."""
