"""History: how a model and its service did, minute by minute, for a year; disposable."""
