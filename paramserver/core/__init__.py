"""The values of a model: blocks, how they merge, and the server as a pure state machine."""
