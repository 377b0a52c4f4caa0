"""Apprentice models: they answer for the caller once they surely keep enough of its reward."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from online.decide.choice_metrics import KEPT
from online.errors import RequestError
from online.replica.replica import ModelReplica
from online.sure.views import choices_in
from paramserver.core.standing_decisions import Answers

MODEL: Final = "model"
CALLER: Final = "caller"


def answering(replica: ModelReplica) -> str:
    """Return who decides choices now: the model, or the caller from whom it learns."""
    choose = replica.settings.choose
    watches = choose is not None and choose.apprentice
    return CALLER if watches and not replica.control.decisions.answers else MODEL


def promotion_decision(replica: ModelReplica, *, back: bool, force: bool) -> bytes | None:
    """Return the encoded decision that the model answers choices or, with ``back``, the caller.

    None: the promotion is not about an apprentice.  Raises RequestError if it is not ready.
    """
    choose, settings = replica.settings.choose, replica.settings
    if choose is None or not choose.apprentice:
        return None
    if answering(replica) == MODEL and settings.challenger is not None:
        return None
    choices = choices_in(replica.learner.tally.views)
    standing = None if choices is None else choices.standing()
    evidence: dict[str, Any] = {} if standing is None else msgspec.to_builtins(standing)
    if not back and not force and answering(replica) == CALLER and not evidence.get("ready"):
        raise _not_ready(settings.name, evidence)
    return msgspec.json.encode(Answers(not back, evidence))


def _not_ready(model: str, evidence: dict[str, Any]) -> RequestError:
    seen = "none of the caller's choices was rewarded"
    if evidence:
        share = "nothing was earned" if evidence["kept"] is None else f"{evidence['kept']:.1%}"
        seen = (
            f"it agrees with {evidence['agreed']:.1%} of {evidence['n']:,} choices and keeps "
            f"{share} of their reward, and is not sure of {KEPT:.0%}"
        )
    hint = "Let it learn on, or promote it all the same: force (`online promote --yes`)"
    return RequestError(409, "not_ready", f"the apprentice of {model}: {seen}", None, hint)
