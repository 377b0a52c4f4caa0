"""The audit log: who decided what, when and from where, protected by the service's key."""
