"""State containers: scalers and tables of factors as blocks that merge."""
