"""Batch re-scoring: tables in, audited scores out, published whole."""
