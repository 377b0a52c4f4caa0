"""A process that serves a model's values: restoring, deciding, publishing, trimming."""
