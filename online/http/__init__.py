"""HTTP: routes, access and the protocols that requests may come by."""
