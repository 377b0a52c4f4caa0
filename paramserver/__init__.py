"""Versioned parameters under concurrent deltas: block algebra, server, snapshots."""
