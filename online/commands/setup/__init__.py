"""Commands that create, check and explain the settings and models of a service."""
