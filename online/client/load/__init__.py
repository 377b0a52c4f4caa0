"""Load generation at a fixed rate, with outcomes and latencies counted (`bench load`)."""
