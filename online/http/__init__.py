"""HTTP: routes, access control and the protocols that the service speaks."""
