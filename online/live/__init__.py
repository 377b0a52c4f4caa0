"""Live: what a replica answers and is told, for whoever watches just now; kept nowhere."""
