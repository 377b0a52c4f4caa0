"""Audit: who decided what, when and from where, in a log that nobody without the key can change."""
