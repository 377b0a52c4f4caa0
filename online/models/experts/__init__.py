"""Linear experts with different learning rates, and the weights by which they are mixed."""
