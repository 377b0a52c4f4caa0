"""These studies compare rehearsal and other remedies against forgetting."""
