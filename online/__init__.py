"""The service: models, replicas, HTTP, commands."""

__version__ = "0.1.0"
