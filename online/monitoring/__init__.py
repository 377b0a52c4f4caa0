"""Monitoring: time series of each model's status, and the alerts that follow from it."""
