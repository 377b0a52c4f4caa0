"""These tables say how good answers are on real streams, beside the plain library's."""
