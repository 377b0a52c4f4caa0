"""Studies that need no service: learners, detectors, filters, buffers in one process."""
