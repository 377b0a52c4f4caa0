"""Commands that start a service, send it traffic, and watch it while it runs."""
