"""Telemetry: metrics as Prometheus text, the log format, and traces of requests.

Only :mod:`online.telemetry.spans` imports OpenTelemetry; it is imported when an endpoint is
configured.
"""
