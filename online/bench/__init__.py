"""Measured tables: each starts its own service, prints its figures and a peer's beside them."""
