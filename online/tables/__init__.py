"""Reads files as validated rows by column, for re-scoring and backfills."""
