"""Traces of requests: what happened to one event, from its request to the other replicas.

Nothing here imports OpenTelemetry but :mod:`online.tracing.spans`, which is imported when an
endpoint is configured.
"""
