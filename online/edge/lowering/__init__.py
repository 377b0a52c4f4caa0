"""A served model becomes tables of numbers here: one form, whatever model and target there are."""
