"""The journal: the durable log of feedback on which all processes agree."""
