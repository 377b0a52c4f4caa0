"""Evaluation of learners on streams: prequential metrics beside simple baselines, and drift."""

from evaluation.put_off import RIVER, PutOff, install

install(PutOff(RIVER))
