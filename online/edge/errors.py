"""These errors say what can go wrong with an export (see :mod:`online.errors`)."""

from __future__ import annotations

from online.errors import OnlineError
from refusals import installing


class EdgeError(OnlineError):
    """Base of the exports' errors."""


class ExportRefused(EdgeError):
    """A model that can't be exported exactly: ``node`` is the part, ``reason`` why."""

    node: str
    reason: str
    text = (
        "no export of {node}: {reason}. Serve it online, or take a model whose parts are all "
        "listed in docs/edge.md"
    )


class PackCorrupt(EdgeError):
    """Bytes that are no whole edgepack; nothing of them was used."""

    reason: str
    text = "no edgepack: {reason}. Fetch the file again"


class ParityFailed(EdgeError):
    """A file that does not answer as the model does: it must not be published or activated.

    ``difference`` is the largest one seen, ``bound`` what is allowed, ``row`` the golden row.
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
    """A target whose package is not installed here."""

    target: str
    problem: str
    remedy: str = installing("edge")
    text = "target {target}: {problem}. {remedy}"


class StepsUnfit(EdgeError):
    """Weights that can't be put on a grid: the release answers exactly, in larger updates."""

    reason: str
    text = "{reason}. The file is exact, and a difference from it is larger"


class DifferenceUnfit(EdgeError):
    """Two packs between which there is no difference: the newer one is sent whole."""

    reason: str
    text = "{reason}. The file is sent whole, once; the next difference is from it"


class ManifestRefused(EdgeError):
    """A manifest that a client must not follow."""

    reason: str
    text = "manifest refused: {reason}. The export in use stays"


class PublishRefused(EdgeError):
    """A release that can't be published, promoted, halted or gone back to as asked."""

    problem: str
    remedy: str
    text = "{problem}. {remedy}"
