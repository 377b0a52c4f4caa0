"""Bounded memories of examples to learn again; one policy a file."""
