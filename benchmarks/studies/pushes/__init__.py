"""These studies ask which filters of whole pushes stand which senders of bad ones."""
