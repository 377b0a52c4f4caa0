"""The parts of one serving process, the same with and without Ray."""
