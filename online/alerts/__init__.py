"""Alerts: what happens to the service is told by webhooks and mail, as the settings say."""
