"""Judging learners on streams: prequential metrics beside honest baselines."""
