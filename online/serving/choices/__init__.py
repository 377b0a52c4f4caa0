"""Choices: actions are chosen, their rewards collected, and missing rewards replaced."""
