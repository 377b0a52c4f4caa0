"""Measured tables: each benchmark is a function that returns its rows."""
