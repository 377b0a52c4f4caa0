"""Middleware, which requests pass before their route: access control, bounds, traces, the log."""
