"""Serving: predictions, feedback and status of the models, independent of HTTP."""
