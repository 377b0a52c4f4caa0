"""Filters that detect poisoned feedback: one test per file, their chain, and source statistics."""
