"""Watch: detection of drift, of rising loss on trusted rows and of divergence, and reactions."""
