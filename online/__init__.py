"""The service: models, replicas, HTTP, commands."""
