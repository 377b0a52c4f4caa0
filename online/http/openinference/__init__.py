"""The Open Inference Protocol: its requests, its errors, and extensions of Triton."""
