"""Models: how river estimators and plain Python classes become blocks."""
