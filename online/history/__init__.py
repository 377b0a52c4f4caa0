"""Time series of each model's status, for a year; they may be deleted."""
