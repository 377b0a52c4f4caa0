"""Errors of edge exports and releases (see :mod:`online.errors`)."""

from __future__ import annotations

from online.errors import OnlineError
from refusals import installing


class EdgeError(OnlineError):
    """Base class of errors of edge exports."""


class ExportRefused(EdgeError):
    """A model can't be exported exactly: ``node`` is the part, ``reason`` the cause."""

    node: str
    reason: str
    text = (
        "no export of {node}: {reason}. Serve it online, or take a model whose parts are all "
        "listed in docs/edge.md"
    )


class PackCorrupt(EdgeError):
    """The bytes are not a complete edgepack; none of them were used."""

    reason: str
    text = "no edgepack: {reason}. Fetch the file again"


class ParityFailed(EdgeError):
    """A file does not predict as the model does: it must not be published or activated.

    ``difference`` is the largest one, ``bound`` the allowed one, ``row`` the golden row.
    """

    target: str
    difference: float
    bound: float
    row: int
    text = (
        "{target}: golden row {row} differs by {difference:.3g}, at most {bound:.3g} is allowed. "
        "Nothing was written; float64 targets round least"
    )


class TargetUnavailable(EdgeError):
    """A target's package is not installed."""

    target: str
    problem: str
    remedy: str = installing("edge")
    text = "target {target}: {problem}. {remedy}"


class StepsUnfit(EdgeError):
    """Weights can't be put on a grid: the release is exact, with larger updates."""

    reason: str
    text = "{reason}. The file is exact, and a difference from it is larger"


class DifferenceUnfit(EdgeError):
    """There is no delta between two packs: the newer one is sent completely."""

    reason: str
    text = "{reason}. The file is sent whole, once; the next difference is from it"


class ManifestRefused(EdgeError):
    """A manifest must not be used by clients."""

    reason: str
    text = "manifest refused: {reason}. The export in use stays"


class PublishRefused(EdgeError):
    """A release can't be published, promoted, halted or rolled back as requested."""

    problem: str
    remedy: str
    text = "{problem}. {remedy}"
