"""Rules for pushes of pushers that are not trusted, as plain functions."""
