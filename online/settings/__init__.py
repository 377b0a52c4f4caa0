"""Settings: the only reader of files and environment, and what follows from them."""
