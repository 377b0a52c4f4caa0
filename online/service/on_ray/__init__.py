"""Ray actors, Ray Serve deployments and Ray settings of a service that runs on a cluster."""
