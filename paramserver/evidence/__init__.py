"""Evidence about sources: what their rows said, counted so that replicas can add it up."""
