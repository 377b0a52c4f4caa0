"""The status of a model, and what operators decide about its events."""
