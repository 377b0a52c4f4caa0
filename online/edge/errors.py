"""These errors say what can go wrong with an export (see :mod:`online.errors`)."""

from __future__ import annotations

from online.errors import OnlineError


class EdgeError(OnlineError):
    """Base of the exports' errors."""


class ExportRefused(EdgeError):
    """A model that can't be exported exactly: ``node`` is the part, ``reason`` why."""

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(node, reason)
        self.node, self.reason = node, reason

    def __str__(self) -> str:
        return (
            f"no export of {self.node}: {self.reason}. "
            "Serve it online, or take a model whose parts are all listed in docs/edge.md"
        )


class PackCorrupt(EdgeError):
    """Bytes that are no whole edgepack; nothing of them was used."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"no edgepack: {self.reason}. Fetch the file again"


class ParityFailed(EdgeError):
    """A file that does not answer as the model does: it must not be published or activated.

    ``difference`` is the largest one seen, ``bound`` what is allowed, ``row`` the golden row.
    """

    def __init__(self, target: str, difference: float, bound: float, row: int) -> None:
        super().__init__(target, difference, bound, row)
        self.target, self.difference, self.bound, self.row = target, difference, bound, row

    def __str__(self) -> str:
        return (
            f"{self.target}: golden row {self.row} differs by {self.difference:.3g}, "
            f"at most {self.bound:.3g} is allowed. "
            "Nothing was written; float64 targets round least"
        )


class TargetUnavailable(EdgeError):
    """A target whose package is not installed here."""

    def __init__(
        self,
        target: str,
        problem: str,
        remedy: str = "pip install 'online-learning-service[edge]'",
    ) -> None:
        super().__init__(target, problem, remedy)
        self.target, self.problem, self.remedy = target, problem, remedy

    def __str__(self) -> str:
        return f"target {self.target}: {self.problem}. {self.remedy}"


class TemplateUnfit(EdgeError):
    """A template into which these weights can't be spliced: a fresh one has to be made."""

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(target, reason)
        self.target, self.reason = target, reason

    def __str__(self) -> str:
        return f"template for {self.target}: {self.reason}. Make a new one of this model"


class StepsUnfit(EdgeError):
    """Weights that can't be put on a grid: the release answers exactly, in larger updates."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason}. The file is exact, and a difference from it is larger"


class DifferenceUnfit(EdgeError):
    """Two packs between which there is no difference: the newer one is sent whole."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason}. The file is sent whole, once; the next difference is from it"


class ManifestRefused(EdgeError):
    """A manifest that a client must not follow."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"manifest refused: {self.reason}. The export in use stays"


class PublishRefused(EdgeError):
    """A release that can't be published, promoted, halted or gone back to as asked."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy

    def __str__(self) -> str:
        return f"{self.problem}. {self.remedy}"
