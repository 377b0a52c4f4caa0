"""Models made from river's estimators and from plain Python classes."""
