"""Measured tables: each starts what it measures, and prints its figures and a peer's."""
