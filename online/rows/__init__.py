"""Rows: values become canonical, labels find their prediction, decisions are read."""
