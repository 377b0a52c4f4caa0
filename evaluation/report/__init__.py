"""The report on a model: what was seen, what it means, what to do.

One pass over the rows (:mod:`tally`, memory bounded whatever their number) gives one value
(:class:`values.Report`), judged by one verdict (:mod:`verdict`).  The page, the JSON, the exit
code and gauges are views of that value: a number stands in one place.
"""
