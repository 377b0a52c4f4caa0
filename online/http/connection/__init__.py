"""Hot requests are served from the connection itself, and its answers are written in one step."""
