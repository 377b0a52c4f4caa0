"""Tables: files read as checked rows by column, for re-scoring and for backfills."""
