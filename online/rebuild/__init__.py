"""A state built again from the journal or from tables, and checked against it."""
