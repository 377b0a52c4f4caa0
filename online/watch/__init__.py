"""Watch: drift, canary rows and divergence, and what is done about them."""
