"""The commands of `online`, a module a group."""
