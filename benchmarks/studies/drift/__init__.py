"""These studies run drift detectors on streams whose changes are known."""
