"""These tables say what is lost, and for how long, when processes, disks and hosts die."""
