"""Requests are sent at a fixed rate here and counted by what became of them (`bench load`)."""
