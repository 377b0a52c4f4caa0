"""Access to the state folder, the journal and the parameter servers of a service."""
