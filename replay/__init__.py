"""Examples, the durable journal of feedback, and rehearsal memory."""
