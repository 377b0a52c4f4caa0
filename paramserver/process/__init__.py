"""The process of a parameter server: restoring, decisions, publishing snapshots, trimming."""
