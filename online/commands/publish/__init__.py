"""Commands that publish snapshots outside the service: scored tables and edge exports."""
