"""Feedback: events become rows, alone or in batches, and their outcomes become receipts."""
