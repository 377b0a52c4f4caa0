"""These tables judge choices among actions on known worlds and streams, beside other policies."""
