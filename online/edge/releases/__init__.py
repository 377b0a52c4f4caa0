"""Releases are given out to devices in steps, signed, as differences where they have the last."""
