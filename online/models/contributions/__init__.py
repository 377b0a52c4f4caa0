"""Contributions of features to an answer, read off the weights of additive models."""
