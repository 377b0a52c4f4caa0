"""Commands that change what a model has learned: roll back, forget, backfill, promote."""
