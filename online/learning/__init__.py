"""Learning: the local model of one replica and its unsent deltas, without I/O or clocks."""
