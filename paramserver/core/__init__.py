"""Model state as mergeable blocks, and the parameter server as a pure state machine."""
