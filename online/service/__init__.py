"""The composition root: processes of Ray, start, roll-out and stop of everything."""
