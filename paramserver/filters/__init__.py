"""Filters that detect poisoned feedback: one test per file, and their chain."""
