"""The composition root starts, reconfigures and stops the service, on Ray or in one process."""
