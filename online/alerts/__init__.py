"""Alerts: incidents and events of the service are sent by webhook and mail."""
