"""Has the world changed?  Detectors row by row, distributions window by window."""
