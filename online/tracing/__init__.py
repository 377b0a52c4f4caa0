"""Traces of requests: the steps of one event, from its request to the other replicas.

Only :mod:`online.tracing.spans` imports OpenTelemetry; it is imported when an endpoint is
configured.
"""
