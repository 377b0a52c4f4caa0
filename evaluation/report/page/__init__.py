"""The page of a report: a template and figures, filled from the report's value."""
