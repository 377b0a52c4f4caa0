"""These tables say how fast it answers and learns, what it keeps, and how soon it begins."""
