"""Suites that every implementation has to pass: of journals and buffers."""
