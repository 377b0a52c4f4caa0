"""Judging learners on streams: prequential metrics beside honest baselines."""

from evaluation.put_off import RIVER, PutOff, install

install(PutOff(RIVER))
