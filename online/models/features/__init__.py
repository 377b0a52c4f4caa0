"""Feature preparation: a row of any values becomes a row of numbers."""
