"""Filters over feedback: one test a file, a chain of them, and what is known of each source."""
