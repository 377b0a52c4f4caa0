"""The journal: the only place where anything is agreed."""
