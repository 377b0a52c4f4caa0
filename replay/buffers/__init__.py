"""Bounded buffers of examples for rehearsal; each policy is in a file of its own."""
