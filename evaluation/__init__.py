"""Evaluation of learners on streams: prequential metrics beside simple baselines, and drift."""

from evaluation.deferred_imports import RIVER, DeferredImports, install

install(DeferredImports(RIVER))
