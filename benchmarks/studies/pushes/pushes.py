"""The chain that judges whole pushes of an asynchronous network, where the tables of filters do."""

from __future__ import annotations

from benchmarks.studies.pushes.copies import Copies
from benchmarks.studies.pushes.inputs import Inputs, LayerReference
from paramserver.filters.base import Filter
from paramserver.filters.chain import Chain
from paramserver.filters.direction import Direction
from paramserver.filters.norm import Norm
from paramserver.filters.rate import Rate
from paramserver.filters.reference import Reference
from paramserver.filters.samples import Samples
from paramserver.filters.schema import Schema
from paramserver.filters.sources import SOURCES_MAX
from paramserver.filters.surprise import Surprise


def usual(
    size: int | None, reference: Reference | None, *, sources_max: int = SOURCES_MAX
) -> Chain:
    """Make the chain over pushes.

    ``size``: numbers of the model's gradient, None for models without one, which are judged by
    budget, samples and losses.  Without a root set directions are not judged.
    """
    filters: list[Filter] = [Schema(size), Rate(), Samples()]
    if size is not None:
        filters.append(Norm(reference))
        if reference is not None and reference.problem is None:
            filters += [Direction(reference), Copies(reference)]
            if isinstance(reference, LayerReference):
                filters.append(Inputs(reference.still))
    filters.append(Surprise())
    return Chain(filters, reference=reference, sources_max=sources_max)
