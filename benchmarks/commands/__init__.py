"""Commands of `python -m benchmarks` ask for a measurement each and print its table."""
