"""Rows: validates values, joins labels with their predictions, and reads decisions."""
