"""Commands that evaluate a model and its history of decisions without changing either."""
