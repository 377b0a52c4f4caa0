"""Models as files for browsers and devices, proved to be the same function."""
