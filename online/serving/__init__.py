"""Serving: predictions, feedback and status of the models; knows no HTTP."""
