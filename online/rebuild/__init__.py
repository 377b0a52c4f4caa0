"""Rebuilds of a model's state from the journal or from tables, and checks against the journal."""
