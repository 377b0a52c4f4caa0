"""Training examples, the durable journal of feedback, and rehearsal buffers."""
