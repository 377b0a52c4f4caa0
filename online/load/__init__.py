"""Load: requests at a fixed rate and what became of them, for `online bench load`."""
