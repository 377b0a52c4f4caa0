"""These tables compare exports, their runtimes and the devices that learn with them."""
